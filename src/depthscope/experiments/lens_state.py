"""The state of training a tuned lens, stored so that training can be interrupted at any time and resumed.

One file, `training.safetensors`: tensors (sums, maps, those kept, Adam's moments), and in its header what is not a tensor
(position, KL curve, settings) and the file's SHA-256. It is replaced atomically and removed when the lens is written.
"""

import json
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from depthscope.errors import DamagedError, DamageWarning
from depthscope.experiments.lens_sums import LensSums, Matrices, Vectors
from depthscope.models.model import Model
from depthscope.run.files import write_file
from depthscope.schema.seal import BLANK, SealError, hash_in_safetensors, require_hash, safetensors_header, with_hash
from depthscope.untrusted import read_bounded

FILE = "training.safetensors"
MOST_BYTES = 1 << 36
STORE_EVERY = 15.0
"""Seconds between two writes of the state. They do not change the result."""


@dataclass(slots=True)
class LensState:
    """Where training is."""

    settings: dict[str, Any]
    sums: LensSums
    units: int = 0
    """Pieces of the training text that are in the sums."""
    step: int = 0
    stalled: int = 0
    """Evaluations in a row without improvement."""
    curve: list[dict[str, Any]] = field(default_factory=list)
    """Held-out KL by depth: of the logit lens and of least squares at step 0, then of the maps."""
    lowest: list[float] = field(default_factory=list)
    """For each depth the KL of the map that is kept."""
    matrix: Matrices | None = None
    bias: Vectors | None = None
    kept_matrix: Matrices | None = None
    kept_bias: Vectors | None = None
    adam: torch.optim.Adam | None = None
    _stored: float = field(default_factory=time.monotonic)

    @property
    def begun(self) -> bool:
        """Whether the sums are complete and the steps have begun."""
        return self.matrix is not None

    def begin(self, matrix: Matrices, bias: Vectors) -> None:
        """Begin the steps from these maps."""
        self.matrix, self.bias = matrix.clone(), bias.clone()
        self.kept_matrix, self.kept_bias = matrix.clone(), bias.clone()
        self.adam = torch.optim.Adam([self.matrix, self.bias])

    def measured(self, name: str, kl: Float64[Tensor, " depth"], matrix: Matrices, bias: Vectors) -> None:
        """Note held-out KL by depth, and keep the map of each depth where it is the lowest so far."""
        assert self.kept_matrix is not None
        assert self.kept_bias is not None
        values = kl.tolist()
        self.curve.append({"step": self.step, "maps": name, "held_out_kl": values})
        for depth, value in enumerate(values):
            if not self.lowest or value < self.lowest[depth]:
                self.kept_matrix[depth], self.kept_bias[depth] = matrix[depth], bias[depth]
        self.lowest = [min(pair) for pair in zip(values, self.lowest or values, strict=True)]

    def back_to_kept(self) -> None:
        """Go on from the maps that are kept."""
        assert self.matrix is not None
        assert self.bias is not None
        assert self.kept_matrix is not None
        assert self.kept_bias is not None
        self.matrix.copy_(self.kept_matrix)
        self.bias.copy_(self.kept_bias)

    def store(self, directory: Path, *, now: bool = False) -> None:
        """Write the state if that is due, or `now`."""
        if not now and time.monotonic() - self._stored < STORE_EVERY:
            return
        tensors = {name: getattr(self.sums, name) for name in ("shift", "moments", "final")}
        if self.adam is not None:
            assert self.matrix is not None
            assert self.bias is not None
            tensors |= {name: getattr(self, name) for name in MAPS}
            for name, parameter in (("matrix", self.matrix), ("bias", self.bias)):
                tensors |= {f"adam.{name}.{part}": value for part, value in self.adam.state[parameter].items()}
        header = {name: getattr(self, name) for name in PLAIN} | {"tokens": self.sums.tokens}
        write_state(directory, tensors, header)
        self._stored = time.monotonic()

    @classmethod
    def resume(cls, directory: Path, model: Model) -> "LensState | None":
        """The state stored in a directory; None if there is none, or, with a DamageWarning, if it is damaged."""
        with damaged_state(directory):
            if (there := read_state(directory, model)) is None:
                return None
            tensors, header = there
            sums = LensSums(tensors["shift"], tensors["moments"], tensors["final"], header.pop("tokens"))
            state = cls(sums=sums, **header)
            if "matrix" in tensors:
                state.begin(tensors["matrix"], tensors["bias"])
                state.kept_matrix, state.kept_bias = tensors["kept_matrix"], tensors["kept_bias"]
                state._resume_adam(tensors)
            return state
        return None

    def _resume_adam(self, tensors: dict[str, Tensor]) -> None:
        assert self.adam is not None
        assert self.matrix is not None
        assert self.bias is not None
        for name, parameter in (("matrix", self.matrix), ("bias", self.bias)):
            start = f"adam.{name}."
            parts = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
            if parts:
                # Adam counts its steps on the CPU, wherever the parameters are.
                self.adam.state[parameter] = parts | {"step": parts["step"].cpu()}

    @staticmethod
    def remove(directory: Path) -> None:
        """Remove the stored state."""
        remove_state(directory)


def write_state(directory: Path, tensors: Mapping[str, Tensor], header: dict[str, Any]) -> None:
    """Write the state of fitting a lens: tensors, and JSON values in the file's header."""
    plain = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    content = save(plain, {"state": json.dumps(header), "sha256": BLANK})
    write_file(directory / FILE, with_hash(content, hash_in_safetensors(content)))


def read_state(directory: Path, model: Model) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What `write_state` wrote, on the model's device; None if there is none. Use it within `damaged_state`."""
    if not (directory / FILE).exists():
        return None
    content = read_bounded(directory / FILE, DamagedError, MOST_BYTES)
    require_hash(content, hash_in_safetensors(content))
    header = json.loads(json.loads(safetensors_header(content))["__metadata__"]["state"])
    return {name: tensor.to(model.device) for name, tensor in load(content).items()}, header


@contextmanager
def damaged_state(directory: Path) -> Iterator[None]:
    """While open, what a damaged state raises becomes a DamageWarning, and ends the block."""
    try:
        yield
    except (DamagedError, SealError, SafetensorError, ValueError, KeyError, TypeError) as error:
        message = f"{directory / FILE} is damaged ({error}). The lens is trained from the beginning"
        warnings.warn(message, DamageWarning, stacklevel=3)


def remove_state(directory: Path) -> None:
    """Remove the stored state."""
    (directory / FILE).unlink(missing_ok=True)


MAPS = ("matrix", "bias", "kept_matrix", "kept_bias")
PLAIN = ("settings", "units", "step", "stalled", "curve", "lowest")

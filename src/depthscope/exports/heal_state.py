"""The state of healing, stored so that it can be interrupted at any time and resumed.

One file, `healing.safetensors`, in a directory next to the output: the adapter's weights, Adam's moments, and in its header the
step and the settings, with the file's SHA-256. It is replaced atomically and removed at the end.
"""

import json
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from depthscope.errors import DamagedError, DamageWarning, DepthscopeError
from depthscope.run.files import write_file
from depthscope.schema.seal import BLANK, SealError, hash_in_safetensors, require_hash, safetensors_header, with_hash
from depthscope.untrusted import read_bounded

FILE, ENDING = "healing.safetensors", ".healing"
MOST_BYTES = 1 << 36
STORE_EVERY = 15.0
"""Seconds between two writes. They do not change the result."""
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(slots=True)
class HealState:
    """Where healing is: its trainable weights by name, their optimizer, and the steps done."""

    settings: dict[str, Any]
    weights: dict[str, torch.nn.Parameter]
    adam: torch.optim.AdamW
    directory: Path
    step: int = 0
    losses: list[float] = field(default_factory=list)
    """Mean KL on the training text of every step."""
    _stored: float = field(default_factory=time.monotonic)

    @classmethod
    def of(
        cls, out: Path, settings: dict[str, Any], weights: dict[str, torch.nn.Parameter], adam: torch.optim.AdamW
    ) -> "HealState":
        """The state that was stored for `out`, put into the weights, or a new one.

        A damaged file is a DamageWarning, and healing starts again. Raises DepthscopeError for one made with other settings.
        """
        state = cls(json.loads(json.dumps(settings)), weights, adam, out.with_name(out.name + ENDING))
        path = state.directory / FILE
        if not path.exists():
            return state
        try:
            content = read_bounded(path, DamagedError, MOST_BYTES)
            require_hash(content, hash_in_safetensors(content))
            header = json.loads(json.loads(safetensors_header(content))["__metadata__"]["state"])
            state._require_same(header["settings"])
            state._resume(load(content), header)
        except (DamagedError, SealError, SafetensorError, ValueError, KeyError, TypeError) as error:
            message = f"{path} is damaged ({error}). Healing starts from the beginning"
            warnings.warn(message, DamageWarning, stacklevel=2)
        return state

    def store(self, *, now: bool = False) -> None:
        """Write the state if that is due, or `now`."""
        if not now and time.monotonic() - self._stored < STORE_EVERY:
            return
        tensors: dict[str, Tensor] = {}
        for name, weight in self.weights.items():
            tensors[f"weight.{name}"] = weight.detach()
            tensors |= {f"{part}.{name}": self.adam.state[weight][part] for part in MOMENTS}
        header = json.dumps({"step": self.step, "losses": self.losses, "settings": self.settings})
        plain = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        content = save(plain, {"state": header, "sha256": BLANK})
        write_file(self.directory / FILE, with_hash(content, hash_in_safetensors(content)))
        self._stored = time.monotonic()

    def remove(self) -> None:
        """Remove the stored state, and its directory if nothing else is in it."""
        (self.directory / FILE).unlink(missing_ok=True)
        with suppress(OSError):
            self.directory.rmdir()

    def _require_same(self, there: dict[str, Any]) -> None:
        differing = [
            f"{name}: {there.get(name)!r} stored, {value!r} requested"
            for name, value in self.settings.items()
            if there.get(name) != value
        ]
        if differing:
            lines = "".join(f"\n  {line}" for line in differing)
            raise DepthscopeError(
                f"{self.directory} holds healing that was interrupted, with other settings:{lines}\nUse the same settings to "
                "resume it, or give another --out."
            )

    def _resume(self, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
        for name, weight in self.weights.items():
            if tensors[f"weight.{name}"].shape != weight.shape:
                raise ValueError(f"{name} has another shape")
        with torch.no_grad():
            for name, weight in self.weights.items():
                weight.copy_(tensors[f"weight.{name}"])
                moments = {part: tensors[f"{part}.{name}"] for part in MOMENTS}
                # Adam counts its steps on the CPU, wherever the weights are.
                self.adam.state[weight] = {
                    part: one if part == "step" else one.to(weight.device) for part, one in moments.items()
                }
        self.step, self.losses = int(header["step"]), list(header["losses"])

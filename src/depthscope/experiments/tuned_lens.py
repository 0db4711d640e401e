"""The tuned lens (Belrose et al. 2023): for each depth an affine map, then the model's own final norm and unembedding.

At depth l < L the stream x becomes x + A_l x + b_l, with A_l and b_l trained so that the decoded distribution is close to the
model's final one (`tune_lens`). After the last block it is the identity. A lens on disk is a directory:

    params.safetensors   matrix [L, d_model, d_model] and bias [L, d_model]
    config.json          the model it was trained for, how, on what, the SHA-256 of params.safetensors, and the file's own seal

Published lenses are files of PyTorch's pickle, which are converted to this form first (`published_lens`).
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from depthscope.errors import DamagedError, DepthscopeError, RunError
from depthscope.models.model import Model
from depthscope.printable import listed, shown
from depthscope.run.files import write_file
from depthscope.schema.lens import LENSES, TUNED
from depthscope.schema.seal import LENS, Seal, SealError, read_seal
from depthscope.schema.stored import SEAL, sealed_json
from depthscope.shapes import Hidden, Residual
from depthscope.untrusted import parse_json, read_bounded

PARAMS, CONFIG = "params.safetensors", "config.json"
FORMAT = 2
"""From this format on, the configuration has a seal."""
KIND, MISSING = "lens", "missing"
"""Entries of config.json: a lens's name in LENSES (a tuned lens has none), and the depths below L without a map (if any)."""
MOST_BYTES = 1 << 36
AGAIN = f"Restore it, or delete {CONFIG} and {PARAMS} and train the lens again"


Fitted = TypeVar("Fitted", bound="FittedLens")


class FittedLens(ABC):
    """A lens with parameters that were fitted for a model, and the directory it is stored in. A Lens.

    `config` is the content of config.json.
    """

    kind: ClassVar[str]
    """Its name in LENSES."""
    called: ClassVar[str]
    """Its title within a sentence."""

    def __init__(self, model: Model, config: dict[str, Any] | None = None) -> None:
        self.unembedding, self.depth = model.unembedding, model.depth
        self.config = config or {}

    @property
    def missing(self) -> tuple[int, ...]:
        """Depths that have no map, where nothing can be decoded: a published lens need not have all."""
        return tuple(self.config.get(MISSING, ()))

    def decode(self, residual: Residual, depth: int, last: Residual) -> Hidden:
        """The final norm applied to the stream after the depth's map, which is computed in the lens's dtype.

        Raises DepthscopeError at a depth that has no map.
        """
        if depth == self.depth:
            return self.unembedding.hidden(residual)
        if depth in self.missing:
            raise DepthscopeError(
                f"this {self.called} has no map for x_{depth}: it has none for {_depths(self.missing)}"
            )
        return self.unembedding.hidden(self.moved(residual.to(self.dtype), depth).to(residual.dtype))

    @abstractmethod
    def moved(self, stream: Residual, depth: int) -> Residual:
        """The stream after the depth's map, in the dtype of the parameters."""

    @property
    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The parameters by their names in the file."""

    @classmethod
    @abstractmethod
    def shapes(cls, model: Model) -> dict[str, tuple[int, ...]]:
        """The shapes of the parameters for a model."""

    @property
    def dtype(self) -> torch.dtype:
        """That of the parameters."""
        return next(iter(self.tensors.values())).dtype

    @property
    def sha256(self) -> str:
        """SHA-256 of the file of parameters."""
        return _digest(self._bytes())

    def save(self, directory: str | Path) -> None:
        """Write the lens to a directory, in place of one that is there.

        Raises RunError if the directory has files of these names that are not an intact lens.
        """
        require_replaceable(Path(directory))
        self.write(directory)

    def write(self, directory: str | Path) -> None:
        """Write the parameters, then the configuration, without which a directory has no lens. Replaces what is there."""
        content = self._bytes()
        write_file(Path(directory) / PARAMS, content)
        config = {**self.config, "params_sha256": _digest(content)}
        write_file(Path(directory) / CONFIG, sealed_json(config, Seal(kind=LENS)))

    def is_stored(self, directory: Path) -> bool:
        """Whether this lens is in a directory, intact."""
        try:
            config = read_config(directory)
            require_params(directory, config)
        except DepthscopeError:
            return False
        return config["params_sha256"] == self.sha256

    @classmethod
    def load(cls: type[Fitted], directory: str | Path, model: Model) -> Fitted:
        """Read a lens for a model.

        Raises DepthscopeError if there is none, if it is of another kind or was fitted for another model (one with other
        weights, or with the same weights in another dtype), or, as DamagedError, if it is not what was written.
        """
        directory = Path(directory)
        config = read_config(directory)
        if (kind := config.get(KIND, TUNED)) != cls.kind:
            raise DepthscopeError(f"{directory} holds a lens of the kind {shown(kind)}: expected a {cls.called}")
        cls._require_model(directory, config.get("model", {}), model)
        content = require_params(directory, config)
        try:
            found = load(content)
            tensors = {name: found[name] for name in cls.shapes(model)}
        except (SafetensorError, KeyError) as error:
            raise DepthscopeError(f"{directory / PARAMS} cannot be read ({error}): train the lens again") from error
        expected = cls.shapes(model)
        if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != expected:
            there = " and ".join(f"a {name} of {list(tensor.shape)}" for name, tensor in tensors.items())
            wanted = " and ".join(str(list(shape)) for shape in expected.values())
            raise DepthscopeError(f"{directory / PARAMS} has {there}: expected {wanted}")
        if not set(config.get(MISSING, ())) <= set(range(model.depth)):
            raise DepthscopeError(f"{directory / CONFIG} names depths without a map that {model.name} does not have")
        create: Any = cls  # each kind takes its own tensors
        return create(model, *tensors.values(), config=config)

    @classmethod
    def _require_model(cls, directory: Path, trained_for: dict[str, Any], model: Model) -> None:
        for key, own in describe(model).items():
            if key != "name" and trained_for.get(key) != own:
                raise DepthscopeError(
                    f"the {cls.called} in {directory} is for another model, {trained_for.get('name')}: its {key} is "
                    f"{trained_for.get(key)}, that of {model.name} {own}. Train one for this model and dtype with "
                    "`depthscope tune`"
                )

    def _bytes(self) -> bytes:
        return save({name: tensor.cpu().contiguous() for name, tensor in self.tensors.items()})


class TunedLens(FittedLens):
    """Affine maps for depths 0 … L−1 of a model. A Lens.

    `matrix` and `bias` are float32, or float64 for a float64 model. `config` is the content of config.json.
    """

    kind, called = TUNED, LENSES[TUNED].called

    def __init__(
        self,
        model: Model,
        matrix: Float[Tensor, "depth d_model d_model"],
        bias: Float[Tensor, "depth d_model"],
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(model, config)
        self.matrix, self.bias = (part.to(model.device) for part in (matrix, bias))

    @classmethod
    def identity(cls, model: Model) -> "TunedLens":
        """The lens whose maps are all the identity: the logit lens, bit for bit."""
        dtype = parameter_dtype(model)
        matrix, bias = (torch.zeros(shape, dtype=dtype) for shape in cls.shapes(model).values())
        return cls(model, matrix, bias)

    def moved(self, stream: Residual, depth: int) -> Residual:
        """x + A x + b."""
        return stream + (stream @ self.matrix[depth].T + self.bias[depth])

    @property
    def tensors(self) -> dict[str, Tensor]:
        """A and b of all depths."""
        return {"matrix": self.matrix, "bias": self.bias}

    @classmethod
    def shapes(cls, model: Model) -> dict[str, tuple[int, ...]]:
        """[depth, d_model, d_model] and [depth, d_model]."""
        width = model.unembedding.weight.shape[1]
        return {"matrix": (model.depth, width, width), "bias": (model.depth, width)}


def parameter_dtype(model: Model) -> torch.dtype:
    """The dtype of a lens's parameters: float32, or float64 for a float64 model."""
    return torch.float64 if model.unembedding.weight.dtype == torch.float64 else torch.float32


def require_replaceable(directory: Path) -> None:
    """Raise RunError if a directory has a file that writing a lens would replace, and not an intact lens."""
    there = [name for name in (CONFIG, PARAMS) if (directory / name).exists()]
    if not there:
        return
    try:
        require_params(directory, read_config(directory))
    except DepthscopeError as error:
        raise RunError(
            f"{directory} has {' and '.join(there)}, and not an intact lens, so nothing is overwritten ({error}). Give another "
            "directory"
        ) from error


def read_config(directory: str | Path) -> dict[str, Any]:
    """The configuration of a stored lens. Raises DepthscopeError if there is no complete lens of a known format."""
    path = Path(directory) / CONFIG
    if not path.exists():
        raise DepthscopeError(
            f"{directory} holds no trained lens: expected a directory with {PARAMS} and {CONFIG}, as written by "
            "`depthscope tune` or `depthscope convert`, or in lenses/ of a run"
        )
    content = read_bounded(path, DepthscopeError)
    try:
        seal = read_seal(content)
    except SealError as error:
        raise DamagedError(f"{path} is damaged: {error}. {AGAIN}") from error
    try:
        config = parse_json(content, "it", DepthscopeError)
    except DepthscopeError as error:
        raise DepthscopeError(f"{path} cannot be read: {error}. {AGAIN}") from error
    found = config.get("format") if isinstance(config, dict) else type(config).__name__
    known = isinstance(found, int) and 1 <= found <= FORMAT
    if not known or (found == FORMAT and seal is None):
        kind = "no checksum" if known else f"format {found}"
        raise DepthscopeError(
            f"{path} has {kind}: expected format {FORMAT}, of a lens trained with depthscope. {AGAIN}"
        )
    config.pop(SEAL, None)
    return config


def require_params(directory: Path, config: dict[str, Any]) -> bytes:
    """The bytes of a stored lens's parameters. Raises DamagedError if they are not those that its configuration describes."""
    content = read_bounded(directory / PARAMS, DamagedError, MOST_BYTES)
    if _digest(content) != config.get("params_sha256"):
        raise DamagedError(
            f"{directory / PARAMS} is not the file that {CONFIG} describes: its SHA-256 is {_digest(content)}, expected "
            f"{config.get('params_sha256')}. {AGAIN}"
        )
    return content


def describe(model: Model) -> dict[str, Any]:
    """What a lens records of the model it is for."""
    return {
        "name": model.name,
        "depth": model.depth,
        "d_model": model.unembedding.weight.shape[1],
        "vocabulary": model.unembedding.vocabulary,
        "dtype": model.facts.dtype,
        "weights": model.weight_hash(),
    }


def _depths(depths: Sequence[int]) -> str:
    return listed((f"x_{depth}" for depth in depths), 8)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

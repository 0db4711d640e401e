"""Lenses: what the unembedding reads from the residual stream at a depth. The logit lens is computed here, for studies,
prompts and the explorer.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from depthscope.errors import DepthscopeError, UnsupportedError
from depthscope.experiments.jacobian_lens import JacobianLens
from depthscope.experiments.tuned_lens import FittedLens, TunedLens
from depthscope.models.model import Model
from depthscope.models.weights import norm_affine
from depthscope.schema.lens import LENSES
from depthscope.shapes import Hidden, Residual

LOGIT, FROZEN_SCALE = "logit", "frozen_scale"


@runtime_checkable
class Lens(Protocol):
    """A map from the residual stream at each depth to what the model's unembedding reads."""

    def decode(self, residual: Residual, depth: int, last: Residual) -> Hidden:
        """What the unembedding reads from `residual`, the stream before block `depth` (L: after the last block).

        `last` is the stream after the last block at the same positions, which some lenses use.
        """
        ...


def make_lens(lens: str | Lens, model: Model, directory: str | Path | None = None) -> Lens:
    """A lens by its name in LENSES, created for a model; a Lens unchanged. `directory`: of a trained lens, where it is.

    Raises DepthscopeError for an unknown name or a trained lens that is not there, UnsupportedError if the model does not
    support the lens.
    """
    if not isinstance(lens, str):
        return lens
    LENSES.known([lens])
    make = LENSES[lens].maker()
    return make(model, directory) if LENSES[lens].trained else make(model)


def lenses_of(model: Model, directories: Mapping[str, Path]) -> tuple[dict[str, Lens], dict[str, str]]:
    """Every lens that can read a model, by its name, and why each other one cannot. Both are in the order of LENSES.

    A trained lens is read from its directory in `directories`; without one it is in neither.
    """
    found: dict[str, Lens] = {}
    refused: dict[str, str] = {}
    for name, kind in LENSES.items():
        if kind.trained and name not in directories:
            continue
        try:
            found[name] = make_lens(name, model, directories.get(name))
        except DepthscopeError as error:
            refused[name] = str(error)
    return found, refused


def stored_lens(model: Model, directory: str | Path | None) -> TunedLens:
    """The tuned lens in a directory. Raises DepthscopeError if none is named, and what TunedLens.load raises."""
    if directory is None:
        raise DepthscopeError(
            f"the tuned lens is trained for a model: expected the directory of one for {model.name} (--tuned-lens, or "
            "tuned_lens=…). `depthscope tune`, ds.tune_lens, or a study with --lens tuned trains it"
        )
    return TunedLens.load(directory, model)


def stored_jacobian_lens(model: Model, directory: str | Path | None) -> JacobianLens:
    """The Jacobian lens in a directory. Raises DepthscopeError if none is named, and what JacobianLens.load raises."""
    if directory is None:
        raise DepthscopeError(
            f"the Jacobian lens is fitted to a model: expected the directory of one for {model.name} (--jacobian-lens, or "
            "jacobian_lens=…). `depthscope tune --lens jacobian`, ds.tune_lens, or a study with --lens jacobian fits it"
        )
    return JacobianLens.load(directory, model)


def depths_without(lens: Lens) -> tuple[int, ...]:
    """Depths that a lens cannot decode: those without a map, of a fitted lens."""
    return lens.missing if isinstance(lens, FittedLens) else ()


class LogitLens:
    """The final norm, with the statistics of the decoded stream, and the unembedding (nostalgebraist 2020)."""

    def __init__(self, model: Model) -> None:
        self.unembedding = model.unembedding

    def decode(self, residual: Residual, depth: int, last: Residual) -> Hidden:
        """The final norm applied to the stream."""
        return self.unembedding.hidden(residual)


class FrozenScaleLens:
    """The final norm with the statistics of the last residual stream at every depth, as in the script of Lad et al. 2024.

    Raises UnsupportedError for a model without a single final norm.
    """

    def __init__(self, model: Model) -> None:
        modules = model.unembedding.modules
        if len(modules) != 1:
            raise UnsupportedError(
                f"{model.name} has {len(modules)} modules between last block and unembedding: expected one norm, "
                "whose scale the frozen-scale lens (protocol lad2024) would use at every depth"
            )
        self.affine = norm_affine(modules[0], model.unembedding.weight.shape[1])

    def decode(self, residual: Residual, depth: int, last: Residual) -> Hidden:
        """The final norm applied to the stream with the statistics of the last one."""
        centred, centred_last = residual, last
        if self.affine.centring:
            centred, centred_last = (x - x.mean(-1, keepdim=True) for x in (residual, last))
        scale = centred_last.float().square().mean(-1, keepdim=True).sqrt()
        return (centred / scale * self.affine.scale + self.affine.shift).to(residual.dtype).flatten(0, 1)

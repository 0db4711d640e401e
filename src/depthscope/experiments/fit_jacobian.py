"""Fitting the Jacobian lens (Gurnee et al. 2026): mean Jacobians over windows of text, added up until they no longer change.

Windows are taken from the text that trains a lens, in a drawn order, so that the first ones are of many documents; of each the
first 128 tokens. Its Jacobians are exact (`engine.stream_jacobians`): one forward pass, and one backward pass per coordinate of
the stream. The running mean over windows is the lens. After each window its relative change, ‖J̄_n − J̄_{n−1}‖ / ‖J̄_{n−1}‖ in
the Frobenius norm, is averaged over depths; the fit ends when the mean of the last ten changes is below 0.002, after 100
windows at the earliest, or after 1,000, or with the text.

The state is stored as it goes on; a fit that was killed resumes from there and gives the same bytes on a CPU.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from depthscope.engine.stream_jacobians import Jacobians, require_gradients, stream_jacobians
from depthscope.errors import NumericError
from depthscope.experiments.jacobian_lens import JacobianLens
from depthscope.experiments.lens_directory import found_lens, require_same, write_lens
from depthscope.experiments.lens_state import STORE_EVERY, damaged_state, read_state, write_state
from depthscope.experiments.lens_text import LensText
from depthscope.experiments.tune_lens import HeldOut, Tell
from depthscope.experiments.tuned_lens import FORMAT, KIND, describe, parameter_dtype
from depthscope.models.finite import all_finite
from depthscope.models.model import Model
from depthscope.schema.lens import JACOBIAN, SMOOTHING

STORE_SHARE = 0.05
"""The state is stored less often where storing it takes more than this share of the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JacobianRecipe:
    """How a Jacobian lens is fitted. Recorded in config.json."""

    length: int = 128
    """The most tokens of a window."""
    skip: int = 16
    """Positions at the beginning of a window that are left out, but at most a quarter of it: attention sinks lie there."""
    fewest: int = 100
    most: int = 1000
    """Windows before which the fit does not end for lack of change, and with which it ends."""
    change: float = 2e-3
    """The smoothed relative change below which the fit ends."""
    smoothing: int = SMOOTHING
    """Changes that are averaged."""
    seed: int = 0

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: getattr(self, name) for name in self.__slots__}


def fit_jacobian_lens(
    model: Model,
    text: LensText,
    directory: str | Path,
    *,
    recipe: JacobianRecipe | None = None,
    tell: Tell | None = None,
) -> JacobianLens:
    """Fit the lens in `directory`, resume its fit, or read it if it is complete.

    Raises DepthscopeError if the directory has a lens of another model, text or recipe, and UnsupportedError where gradients
    cannot be taken through the model.
    """
    directory, recipe = Path(directory), recipe or JacobianRecipe()
    record = {"model": describe(model), "text": text.record(), "recipe": recipe.record()}
    asked: dict[str, Any] = {"format": FORMAT, KIND: JACOBIAN, **record}
    complete, known = found_lens(JacobianLens, directory, model, asked)
    if complete is not None:
        return complete
    require_gradients(model)
    state = JacobianState.resume(directory, model) or JacobianState.empty(model, asked)
    require_same(JacobianLens, directory, state.settings, asked)
    ended = _add_windows(model, text, directory, recipe, state, tell or (lambda what, done, units: None))
    lens = JacobianLens(model, (state.sums / state.windows).to(parameter_dtype(model)))
    model.kernels.forget()
    held_out = HeldOut(model, text.held_out, recipe.seed)
    lens.config = {
        **asked,
        "training": {
            "windows": state.windows,
            "positions_per_window": _length(text, recipe) - _skip(text, recipe),
            "ended": ended,
            "change": state.changes,
            "held_out_kl": held_out.kl_of(
                lambda depth, stream: lens.moved(stream[None].to(lens.dtype), depth)[0]
            ).tolist(),
            "logit_held_out_kl": held_out.kl_of(lambda depth, stream: stream).tolist(),
        },
    }
    write_lens(lens, directory, known)
    return lens


@dataclass(slots=True)
class JacobianState:
    """Where a fit is."""

    settings: dict[str, Any]
    sums: Jacobians
    """Jacobians added over windows, in float64."""
    windows: int = 0
    changes: list[float] = field(default_factory=list)
    """The relative change by each window from the second on, averaged over depths."""

    @classmethod
    def empty(cls, model: Model, settings: dict[str, Any]) -> "JacobianState":
        """Before the first window."""
        width = model.unembedding.weight.shape[1]
        return cls(settings, torch.zeros(model.depth, width, width, dtype=torch.float64, device=model.device))

    @classmethod
    def resume(cls, directory: Path, model: Model) -> "JacobianState | None":
        """The state stored in a directory; None if there is none, or, with a DamageWarning, if it is damaged."""
        with damaged_state(directory):
            if (there := read_state(directory, model)) is not None:
                return cls(sums=there[0]["sums"], **there[1])
        return None

    def store(self, directory: Path) -> None:
        """Write it."""
        header = {"settings": self.settings, "windows": self.windows, "changes": self.changes}
        write_state(directory, {"sums": self.sums}, header)

    def add(self, jacobians: Jacobians) -> None:
        """Add a window."""
        if self.windows:
            mean = self.sums / self.windows
            moved = (jacobians - mean).flatten(1).norm(dim=1) / (self.windows + 1)
            self.changes.append(float((moved / mean.flatten(1).norm(dim=1)).mean()))
        self.sums += jacobians
        self.windows += 1

    def settled(self, recipe: JacobianRecipe) -> bool:
        """Whether the smoothed change is small enough to end."""
        last = self.changes[-recipe.smoothing :]
        return self.windows >= recipe.fewest and float(np.mean(last)) < recipe.change


def _add_windows(
    model: Model,
    text: LensText,
    directory: Path,
    recipe: JacobianRecipe,
    state: JacobianState,
    tell: Callable[..., None],
) -> str:
    """Add windows until the fit ends; the reason why it did."""
    order = np.random.default_rng(recipe.seed).permutation(len(text.training))
    count, length = min(len(order), recipe.most), _length(text, recipe)
    due = time.monotonic() + STORE_EVERY
    while state.windows < count and not state.settled(recipe):
        window = text.training.take(order[state.windows : state.windows + 1])
        model.check_ids(ids := window.batch()[0][:, :length])
        jacobians = stream_jacobians(model, ids, _skip(text, recipe))
        if not all_finite([jacobians]):
            raise NumericError(
                f"the Jacobians of {model.name} have NaN or infinity in {window.called(0)}: expected another --dtype, or "
                "other text"
            )
        state.add(jacobians)
        if (begun := time.monotonic()) >= due:
            state.store(directory)
            due = time.monotonic() + max(STORE_EVERY, (time.monotonic() - begun) / STORE_SHARE)
        tell("Jacobian lens", state.windows, count)
    tell("Jacobian lens", count, count)
    if state.settled(recipe):
        return "the change is small enough"
    return "the most windows" if state.windows == recipe.most else "all windows of the text"


def _length(text: LensText, recipe: JacobianRecipe) -> int:
    return min(text.training.length, recipe.length)


def _skip(text: LensText, recipe: JacobianRecipe) -> int:
    return min(recipe.skip, _length(text, recipe) // 4)

"""Training the tuned lens (Belrose et al. 2023) in a streamed pass that can be interrupted.

1. *Sums.* One pass over the training text adds up, for each depth, the products of the stream x_l with itself and with
   x_L − x_l: d_model × d_model numbers a depth, whatever the number of tokens. Positions are weighted by 1/|x_L|², because
   the final norm divides by the stream's size. From the sums follows the affine map nearest to x_L in least squares, with a
   ridge of d_model / tokens on the correlation matrix: the start. It uses every token and costs no unembedding. At depths
   where the identity, which is the logit lens, has the lower KL on the held-out text, the start is the identity.
2. *Steps.* Adam on KL(p‖lens) at positions drawn from one piece of the text per step, the same at all depths, so that one
   baseline run and one p serve them all. Parameters are in standardised coordinates (of the stream and of x_L), so that one
   step size suits coordinates of any size, those with massive activations too.
3. *Held-out stop.* Every 16 steps KL is measured at fixed positions of held-out documents. For each depth the map with the
   lowest is kept, the start included, so no map is worse there than the logit lens. An evaluation at which the mean over
   depths is not lower by 0.2 % sends training back to the kept maps; the second such evaluation in a row ends it. So does
   the last step: the step size falls linearly to it, as in Belrose et al.

The state is stored as it goes on; a run that was killed resumes from there and gives the same bytes on a CPU.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline
from depthscope.engine.divergence import compare, reference
from depthscope.engine.lens_gradient import kl_gradient, log_probabilities, positions_at_once
from depthscope.errors import NumericError
from depthscope.experiments.lens_directory import found_lens, require_same, write_lens
from depthscope.experiments.lens_state import LensState
from depthscope.experiments.lens_sums import Coordinates, LensSums, Matrices, Positions, Vectors
from depthscope.experiments.lens_text import LensText
from depthscope.experiments.tuned_lens import FORMAT, TunedLens, describe, parameter_dtype
from depthscope.models.finite import first_row
from depthscope.models.model import Model

UNIT = 1024
"""Tokens run at once, and per step."""
HELD_OUT = 8
"""Held-out positions, as a multiple of those of a step."""
LOGIT, LEAST_SQUARES, TRAINED = "logit", "least_squares", "trained"
"""The maps in the KL curve: the identity, the start, and those after some steps."""

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a lens is trained. Recorded in config.json."""

    rate: float = 2e-3
    """Adam's first step size, in standard deviations of x_L per standard deviation of x_l; it falls linearly to 0."""
    betas: tuple[float, float] = (0.9, 0.99)
    steps: int = 64
    """The most steps."""
    evaluate_every: int = 16
    least_improvement: float = 0.002
    patience: int = 2
    """Evaluations in a row without that improvement that end training."""
    seed: int = 0

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        values = {name: getattr(self, name) for name in self.__slots__}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def tune_lens(
    model: Model, text: LensText, directory: str | Path, *, recipe: Recipe | None = None, tell: Tell | None = None
) -> TunedLens:
    """Train the lens in `directory`, resume its training, or read it if it is complete.

    Raises DepthscopeError if the directory has a lens trained for another model, on other text or in another way.
    """
    directory, recipe = Path(directory), recipe or Recipe()
    record = {"model": describe(model), "text": text.record(), "recipe": recipe.record()}
    asked: dict[str, Any] = {"format": FORMAT, **record}
    complete, known = found_lens(TunedLens, directory, model, asked)
    if complete is not None:
        return complete
    state = LensState.resume(directory, model) or LensState(asked, LensSums.empty(model))
    require_same(TunedLens, directory, state.settings, asked)
    model.kernels.forget()
    training = _Training(model, text, directory, recipe, tell or (lambda what, done, units: None), state)
    training.add_sums()
    matrix, bias = training.steps()
    lens = TunedLens(model, matrix, bias, {**asked, "training": training.record()})
    write_lens(lens, directory, known)
    return lens


@dataclass(slots=True)
class _Training:
    """The two phases of training, with the state they advance."""

    model: Model
    text: LensText
    directory: Path
    recipe: Recipe
    tell: Tell
    state: LensState

    def add_sums(self) -> None:
        """The pass over the training text."""
        windows, state = self.text.training, self.state
        each = max(1, UNIT // windows.length)
        units = -(-len(windows) // each)
        for unit in range(state.units, units):
            part = windows.part(unit * each, min((unit + 1) * each, len(windows)))
            with self.model.measuring():
                streams = Baseline(self.model, *part.batch(), named=part.called).residuals
                state.sums.add([stream.flatten(0, 1) for stream in streams])
            state.units = unit + 1
            state.store(self.directory, now=state.units == units)
            self.tell("tuned lens, sums", state.units, units)

    def steps(self) -> tuple[Matrices, Vectors]:
        """The maps A and b that are kept when training ends."""
        state, recipe = self.state, self.recipe
        coordinates, *solved = state.sums.solved(parameter_dtype(self.model))
        held_out = HeldOut(self.model, self.text.held_out, recipe.seed)
        if not state.begun:
            identity = [torch.zeros_like(part) for part in solved]
            state.begin(*identity)
            for name, maps in ((LOGIT, identity), (LEAST_SQUARES, solved)):
                state.measured(name, held_out.kl(coordinates, *maps), *maps)
            state.back_to_kept()
            state.store(self.directory, now=True)
        while state.step < recipe.steps and state.stalled < recipe.patience:
            self._step(coordinates)
            if state.step % recipe.evaluate_every == 0 or state.step == recipe.steps:
                self._evaluate(coordinates, held_out)
            state.store(self.directory)
            self.tell("tuned lens, steps", state.step, recipe.steps)
        self.tell("tuned lens, steps", recipe.steps, recipe.steps)
        assert state.kept_matrix is not None
        assert state.kept_bias is not None
        return coordinates.plain(state.kept_matrix, state.kept_bias)

    def record(self) -> dict[str, Any]:
        """How training went, as JSON values."""
        state = self.state
        return {
            "steps": state.step,
            "positions_per_step": positions_at_once(self.model.unembedding),
            "ended": "no lower held-out KL" if state.stalled >= self.recipe.patience else "all steps done",
            "held_out_kl": state.lowest,
            "curve": state.curve,
        }

    def _step(self, coordinates: Coordinates) -> None:
        """One step of Adam at positions drawn from one piece of the text."""
        windows, head, state = self.text.training, self.model.unembedding, self.state
        assert state.matrix is not None
        assert state.bias is not None
        assert state.adam is not None
        drawn = np.random.default_rng((self.recipe.seed, state.step))
        rows = drawn.choice(len(windows), min(len(windows), max(1, UNIT // windows.length)), replace=False)
        with self.model.measuring():
            drawn_windows = windows.take(rows)
            streams = Baseline(self.model, *drawn_windows.batch(), named=drawn_windows.called).residuals
        count = len(rows) * windows.length
        chosen = torch.from_numpy(drawn.choice(count, min(count, positions_at_once(head)), replace=False))
        # Cloned because what inference made cannot be differentiated.
        here = [stream.flatten(0, 1)[chosen.to(stream.device)].clone() for stream in streams]
        with torch.no_grad():
            log_p = log_probabilities(head, head.hidden(here[-1][None]))
        state.matrix.grad, state.bias.grad = torch.empty_like(state.matrix), torch.empty_like(state.bias)
        for depth, stream in enumerate(here[:-1]):
            standard, moved = coordinates.moved(depth, stream, state.matrix, state.bias)
            gradient = kl_gradient(head, log_p, moved)[1] * coordinates.final_spread / len(chosen)
            state.matrix.grad[depth], state.bias.grad[depth] = gradient.T @ standard, gradient.sum(0)
        for group in state.adam.param_groups:
            group["lr"] = self.recipe.rate * (1 - state.step / self.recipe.steps)
            group["betas"] = self.recipe.betas
        state.adam.step()
        state.step += 1

    def _evaluate(self, coordinates: Coordinates, held_out: "HeldOut") -> None:
        state = self.state
        assert state.matrix is not None
        assert state.bias is not None
        before = sum(state.lowest)
        kl = held_out.kl(coordinates, state.matrix, state.bias)
        state.measured(TRAINED, kl, state.matrix, state.bias)
        improved = sum(state.lowest) <= (1 - self.recipe.least_improvement) * before
        state.stalled = 0 if improved else state.stalled + 1
        if not improved:
            state.back_to_kept()


class HeldOut:
    """Streams at fixed positions of the held-out windows, and the KL of maps there. Computed in pieces, kept in memory."""

    def __init__(self, model: Model, windows: Windows, seed: int) -> None:
        self.model = model
        count = min(windows.tokens, HELD_OUT * positions_at_once(model.unembedding))
        chosen = np.sort(np.random.default_rng(seed).choice(windows.tokens, count, replace=False))
        each, parts = max(1, UNIT // windows.length), []
        targets = windows.batch()[1].flatten()[torch.from_numpy(chosen)]
        self.targets = targets.to(model.device)
        for start in range(0, len(windows), each):
            stop = min(start + each, len(windows))
            first, last = start * windows.length, stop * windows.length
            places = torch.from_numpy(chosen[(chosen >= first) & (chosen < last)] - first).to(model.device)
            part = windows.part(start, stop)
            with model.measuring():
                streams = Baseline(model, *part.batch(), named=part.called).residuals
                parts.append([stream.flatten(0, 1)[places] for stream in streams])
        self.streams = [torch.cat(of_depth) for of_depth in zip(*parts, strict=True)]
        with model.measuring():
            self.reference = reference(model.unembedding, model.unembedding.hidden(self.streams[-1][None]))

    def kl(self, coordinates: Coordinates, matrix: Matrices, bias: Vectors) -> Float64[Tensor, " depth"]:
        """Mean KL(p‖lens) of each depth in nats."""
        return self.kl_of(lambda depth, stream: coordinates.moved(depth, stream, matrix, bias)[1])

    def kl_of(self, moved: Callable[[int, Positions], Positions]) -> Float64[Tensor, " depth"]:
        """Mean KL(p‖lens) of each depth in nats, given the map that moves a depth's streams before they are decoded."""
        head, means = self.model.unembedding, []
        with self.model.measuring():
            for depth, stream in enumerate(self.streams[:-1]):
                hidden = head.hidden(moved(depth, stream).to(stream.dtype)[None])
                means.append(compare(head, self.reference, hidden, self.targets).kl.double().mean())
        found = torch.stack(means).cpu()
        if (broken := first_row(found[:, None])) is not None:
            raise NumericError(
                f"training the lens of {self.model.name} gives NaN or infinity at depth {broken}: expected a lower rate, "
                "another --dtype, or other text"
            )
        return found

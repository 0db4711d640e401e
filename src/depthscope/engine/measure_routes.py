"""Many routes on a batch of token windows: one plan, one baseline, four numbers per route and token."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from depthscope.engine.baseline import Baseline, pieces, require_finite
from depthscope.engine.execute import execute
from depthscope.engine.plan import Instruction, make_plan
from depthscope.measure.divergence import SLICE, Measured, compare
from depthscope.models.model import Model
from depthscope.routes import Route
from depthscope.shapes import TokenIds


@dataclass(frozen=True, slots=True)
class RouteMeasures:
    """KL(p‖q), top-1 agreement, H(q) and −log q(next token), in nats, for every route, window and position."""

    kl: Float32[Tensor, "routes batch seq"]
    agreement: Bool[Tensor, "routes batch seq"]
    entropy: Float32[Tensor, "routes batch seq"]
    loss: Float32[Tensor, "routes batch seq"]


COLUMNS = ("kl", "agreement", "entropy", "loss")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """How much is computed at once. It decides speed and memory, never the numbers."""

    tokens: int = 1024
    """Tokens of one piece; at least one window always is."""
    together: int = 1024
    """Tokens that may be in one call: several routes go in together when the piece is smaller than this."""
    slice_width: int = SLICE
    """Vocabulary entries in one slice."""


class RouteMeter:
    """Measures a fixed list of routes against the model's own. Raises RouteError for a route the model cannot run."""

    def __init__(self, model: Model, routes: Sequence[Route], pieces: Pieces | None = None) -> None:
        for route in routes:
            model.check_route(route)
        self.model = model
        self.routes = tuple(routes)
        self.pieces = pieces or Pieces()
        self._all = (Route.own(model.depth), *routes)
        self._plans: dict[int, list[Instruction]] = {}

    @torch.inference_mode()
    def measure(self, ids: TokenIds, targets: TokenIds) -> RouteMeasures:
        """Measure every route on token windows; index 0 of the result is the model itself, i + 1 is `routes[i]`.

        `targets` are the tokens that follow each position. Raises DataError for token ids outside the vocabulary and
        NumericError, naming route and position, for NaN or infinity in the activations.
        """
        parts = [
            self.against(Baseline(self.model, *piece, slice_width=self.pieces.slice_width))
            for piece in pieces(ids, targets, self.pieces.tokens)
        ]
        columns = ([getattr(part, name) for part in parts] for name in COLUMNS)
        return RouteMeasures(*(torch.cat(column, 1) for column in columns))

    @torch.inference_mode()
    def against(self, baseline: Baseline) -> RouteMeasures:
        """The same, given the model's own run: its residual streams are what the routes branch off from."""
        head, shape = self.model.head, baseline.ids.shape
        plan = self._plan(max(1, self.pieces.together // baseline.ids.numel()))
        measured: dict[int, Measured] = {}
        for routes, residual in execute(self.model, plan, baseline.ids, baseline.entry, baseline.residuals):
            if not measured:
                measured.update(dict.fromkeys(routes[0], baseline.measured))
                continue
            for indices, stream in zip(routes, residual.split(shape[0]), strict=True):
                one = compare(
                    head, baseline.reference, head.hidden(stream), baseline.flat_targets, baseline.slice_width
                )
                require_finite(one, baseline, f"the route {self._all[indices[0]].name!r}")
                measured.update(dict.fromkeys(indices, one))
        rows = [measured[index] for index in range(len(self._all))]
        return RouteMeasures(*(torch.stack([getattr(row, name).view(shape).cpu() for row in rows]) for name in COLUMNS))

    def _plan(self, width: int) -> list[Instruction]:
        width = min(width, len(self._all))
        if width not in self._plans:
            self._plans[width] = make_plan(self._all, width)
        return self._plans[width]

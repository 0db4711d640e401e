"""Many routes on a batch of token windows: one plan, one baseline, four numbers per route and token."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from depthscope.engine.execute import execute
from depthscope.engine.plan import Instruction, make_plan
from depthscope.errors import NumericError
from depthscope.measure.divergence import SLICE, Measured, Reference, compare, measure_baseline, reference
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
        self.model.check_ids(ids)
        self.model.check_ids(targets)
        ids, targets = ids.to(self.model.device), targets.to(self.model.device)
        at_once = max(1, self.pieces.tokens // ids.shape[1])
        parts = [
            self._piece(some_ids, some_targets)
            for some_ids, some_targets in zip(ids.split(at_once), targets.split(at_once), strict=True)
        ]
        return RouteMeasures(*(torch.cat(column, 1) for column in zip(*parts, strict=True)))

    def _piece(self, ids: TokenIds, targets: TokenIds) -> tuple[Tensor, ...]:
        head, shape = self.model.head, ids.shape
        plan = self._plan(max(1, self.pieces.together // ids.numel()))
        flat = targets.flatten().long()
        base: Reference | None = None
        measured: dict[int, Measured] = {}
        for routes, residual in execute(self.model, plan, ids):
            if base is None:
                base = reference(head, head.hidden(residual), self.pieces.slice_width)
                own = measure_baseline(head, base, flat)
                measured.update(dict.fromkeys(routes[0], own))
                self._require_finite(own, routes[0], shape)
                continue
            for indices, stream in zip(routes, residual.split(shape[0]), strict=True):
                one = compare(head, base, head.hidden(stream), flat, self.pieces.slice_width)
                self._require_finite(one, indices, shape)
                measured.update(dict.fromkeys(indices, one))
        columns = ("kl", "agreement", "entropy", "loss")
        rows = [measured[index] for index in range(len(self._all))]
        return tuple(torch.stack([getattr(row, name).view(shape).cpu() for row in rows]) for name in columns)

    def _plan(self, width: int) -> list[Instruction]:
        width = min(width, len(self._all))
        if width not in self._plans:
            self._plans[width] = make_plan(self._all, width)
        return self._plans[width]

    def _require_finite(self, measured: Measured, indices: tuple[int, ...], shape: torch.Size) -> None:
        fine = torch.isfinite(measured.loss) & torch.isfinite(measured.entropy) & torch.isfinite(measured.kl)
        if not bool(fine.all()):
            place = int((~fine).nonzero()[0, 0])
            raise NumericError(
                f"NaN or infinity on the route {self._all[indices[0]].name!r} of {self.model.name}, "
                f"window {place // shape[1]} of the batch, position {place % shape[1]}"
            )

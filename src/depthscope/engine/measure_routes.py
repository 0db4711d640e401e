"""Many routes on a batch of token windows: one plan, one baseline, four numbers per route and token."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from depthscope.engine.baseline import Baseline, Keep, pieces
from depthscope.engine.divergence import Measured, compare
from depthscope.engine.execute import execute
from depthscope.engine.plan import Instruction, make_plan
from depthscope.engine.reductions import Reductions
from depthscope.engine.sizes import sizes_for
from depthscope.errors import MemoryShortError, NumericError
from depthscope.models.model import Model
from depthscope.routes import Route, Step
from depthscope.shapes import Residual, TokenIds


@dataclass(frozen=True, slots=True)
class RouteMeasures:
    """KL(p‖q), top-1 agreement, H(q) and −log q(next token), in nats, for every route, window and position."""

    kl: Float32[Tensor, "routes batch seq"]
    agreement: Bool[Tensor, "routes batch seq"]
    entropy: Float32[Tensor, "routes batch seq"]
    loss: Float32[Tensor, "routes batch seq"]

    @classmethod
    def empty(cls, *shape: int, device: torch.device) -> "RouteMeasures":
        """Room for [routes, batch, seq] of them."""
        numbers = (torch.empty(shape, device=device) for _ in range(3))
        agreement = torch.empty(shape, dtype=torch.bool, device=device)
        return cls(agreement=agreement, **dict(zip(("kl", "entropy", "loss"), numbers, strict=True)))

    def put(self, routes: Sequence[int], measured: Measured) -> None:
        """The measures of these routes, which end alike."""
        for name in COLUMNS:
            column = getattr(self, name)
            rows = getattr(measured, name).view(column.shape[1:])
            for route in routes:
                column[route] = rows


COLUMNS = ("kl", "agreement", "entropy", "loss")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """How much is computed at once, and how. It decides speed and memory; the numbers stay, up to rounding."""

    tokens: int | None = None
    """Tokens of one piece; at least one window always is. What suits the device by default, like the next two."""
    together: int | None = None
    """Tokens that may be in one call: several routes go in together when the piece is smaller than this."""
    slice_width: int | None = None
    """Vocabulary entries in one slice."""
    reductions: Reductions | None = None
    """How the passes over the vocabulary are computed; what suits the device by default."""


class RouteMeter:
    """Measures a fixed list of routes against the model's own, with the weights as they are when it is made.

    Raises RouteError for a route the model cannot run.
    """

    def __init__(self, model: Model, routes: Sequence[Route], pieces: Pieces | None = None) -> None:
        for route in routes:
            model.check_route(route)
        model.kernels.forget()
        self.model = model
        self.routes = tuple(routes)
        self.pieces = pieces or Pieces()
        sizes = sizes_for(model.device, model.head.weight.shape[1])
        self._tokens = self.pieces.tokens or sizes.tokens
        self._together = self.pieces.together or sizes.together
        silences = any(route.silences for route in routes)
        self.keep = Keep.SILENCED if silences and model.shares_components else Keep.NOTHING
        """What a baseline can keep that saves work here."""
        self.halved = 0
        """How often a piece did not fit into memory and was measured in two halves."""
        self._all = (Route.own(model.depth), *routes)
        self._plans: dict[tuple[int, int], list[Instruction]] = {}

    def measure(self, ids: TokenIds, targets: TokenIds) -> RouteMeasures:
        """Measure every route on token windows; index 0 of the result is the model itself, i + 1 is `routes[i]`.

        `targets` are the tokens that follow each position. Raises DataError for token ids outside the vocabulary and
        NumericError, naming route and position, for NaN or infinity in the activations.
        """
        width, form = self.pieces.slice_width, self.pieces.reductions
        with self.model.measuring():
            return _joined(
                [
                    self.against(Baseline(self.model, *piece, keep=self.keep, slice_width=width, reductions=form))
                    for piece in pieces(ids, targets, self._tokens)
                ]
            )

    def against(self, baseline: Baseline) -> RouteMeasures:
        """The same, given the model's own run: its residual streams are what the routes branch off from.

        To be called under `model.measuring()`. What does not fit into memory is measured in halves. Raises
        MemoryShortError where a single window does not fit.
        """
        try:
            return self._checked(self.on_device(baseline), baseline)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not _short_of_memory(error):
                raise
            windows, length = baseline.ids.shape
            if windows == 1:
                raise MemoryShortError(
                    f"not enough memory to measure {len(self.routes)} routes on one window of {length} tokens: "
                    "expected a shorter --window or fewer --edits"
                ) from error
        self.halved += 1
        middle = windows // 2
        return _joined([self.against(baseline.part(0, middle)), self.against(baseline.part(middle, windows))])

    def on_device(self, baseline: Baseline) -> RouteMeasures:
        """The measures where the model is, unchecked. Queues work for an accelerator without ever waiting for it."""
        head, (windows, length) = self.model.head, baseline.ids.shape
        # Made first and filled as routes end: what stays must not be strewn among the large tensors that come and go.
        measured = RouteMeasures.empty(len(self._all), windows, length, device=baseline.ids.device)
        together = max(1, self._together // baseline.ids.numel())
        plan = self._plan(self.model.routes_under_way(baseline.ids.numel(), together), together)
        known = (baseline.entry, baseline.residuals, baseline.states)
        streams = execute(self.model, plan, baseline.ids, *known, partial(_known, baseline))
        measured.put(next(streams)[0][0], baseline.measured)
        for routes, residual in streams:
            ended = compare(head, baseline.reference, head.hidden(residual), baseline.flat_targets)
            for indices, one in zip(routes, ended.split(windows * length), strict=True):
                measured.put(indices, one)
        return measured

    def _checked(self, measured: RouteMeasures, baseline: Baseline) -> RouteMeasures:
        """The measures on the CPU. Raises NumericError, naming route and position, where one is NaN or infinite."""
        fine = torch.isfinite(measured.kl) & torch.isfinite(measured.entropy) & torch.isfinite(measured.loss)
        if not bool(fine.all()):
            route, window, position = (int(place) for place in (~fine).nonzero()[0])
            raise NumericError(
                f"NaN or infinity on the route {self._all[route].name!r} of {baseline.model.name}, "
                f"window {window} of the batch, position {position}"
            )
        return RouteMeasures(*(getattr(measured, name).cpu() for name in COLUMNS))

    def _plan(self, width: int, together: int) -> list[Instruction]:
        sizes = min(width, len(self._all)), min(together, len(self._all))
        if sizes not in self._plans:
            self._plans[sizes] = make_plan(self._all, *sizes)
        return self._plans[sizes]


def _known(baseline: Baseline, step: Step, stream: int) -> Residual | None:
    """What a visit to a stream of the plan gives, where the model's own run has it: its own stream b is x_b."""
    return baseline.silenced.get(step) if stream == step.block else None


def _joined(parts: Sequence[RouteMeasures]) -> RouteMeasures:
    columns = ([getattr(part, name) for part in parts] for name in COLUMNS)
    return RouteMeasures(*(torch.cat(column, 1) for column in columns))


def _short_of_memory(error: BaseException) -> bool:
    """CUDA has an error of its own; a CPU's allocator says it in words."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)

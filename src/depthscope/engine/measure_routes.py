"""Many routes on a batch of token windows: one plan, one baseline, and the measures per route and token."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import and_

import torch

from depthscope.engine.baseline import Baseline, Keep, pieces
from depthscope.engine.divergence import ByMeasure, TokenMeasures, compare
from depthscope.engine.execute import execute, first_broken
from depthscope.engine.plan import Instruction, make_plan
from depthscope.engine.reductions import Reductions
from depthscope.engine.sizes import sizes_for
from depthscope.engine.token_functions import apply_functions
from depthscope.errors import MemoryShortError, NumericError
from depthscope.models.finite import REMEDY
from depthscope.models.memory import short_of_memory
from depthscope.models.model import Model
from depthscope.routes import Route, Step
from depthscope.schema.measures import AGREEMENT, BUILT_IN, Measure
from depthscope.shapes import Hidden, Residual, TokenIds

EndingAlike = tuple[tuple[int, ...], ...]
"""Groups of routes by number; the routes of a group are the same route, so they have the same final residual stream."""


class RouteMeasures(ByMeasure):
    """Measures of each token under each route, shaped [routes, batch, seq]: float32 in the measure's unit, agreement bool."""

    @classmethod
    def empty(cls, measures: Sequence[Measure], *shape: int, device: torch.device) -> "RouteMeasures":
        """Uninitialised tensors shaped [routes, batch, seq] for each measure."""
        dtypes = {measure.name: torch.bool if measure is AGREEMENT else torch.float32 for measure in measures}
        return cls({name: torch.empty(shape, dtype=dtype, device=device) for name, dtype in dtypes.items()})

    def put(self, routes: Sequence[int], measured: TokenMeasures) -> None:
        """Store the measures of these routes, which are the same route."""
        for name, column in self.items():
            rows = measured[name].view(column.shape[1:])
            for route in routes:
                column[route] = rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """How much is computed at once, and how. Affects speed and memory; the numbers stay the same up to rounding."""

    tokens: int | None = None
    """Tokens of one piece, which has at least one window. By default suited to the device, like the next two."""
    together: int | None = None
    """The most tokens in one call: several routes share a call if the piece is smaller than this."""
    slice_width: int | None = None
    """Vocabulary entries in one slice."""
    reductions: Reductions | None = None
    """How the passes over the vocabulary are computed; by default suited to the device."""


class RouteMeter:
    """Measures a fixed list of routes against the unmodified model. `measures` are the built-in ones by default.

    Raises RouteError for a route the model cannot run.
    """

    def __init__(
        self,
        model: Model,
        routes: Sequence[Route],
        pieces: Pieces | None = None,
        measures: Sequence[Measure] = tuple(BUILT_IN.values()),
    ) -> None:
        for route in routes:
            model.check_route(route)
        self.model = model
        self.routes = tuple(routes)
        self.pieces = pieces or Pieces()
        self.measures = tuple(measures)
        self._functions = [measure for measure in self.measures if measure.per_token is not None]
        sizes = sizes_for(model.device, model.unembedding.weight.shape[1])
        self._tokens = self.pieces.tokens or sizes.tokens
        self._together = self.pieces.together or sizes.together
        silences = any(route.silences for route in routes)
        self.keep = Keep.SILENCED if silences and model.shares_components else Keep.NOTHING
        """What a baseline should keep to save work here."""
        self.halved = 0
        """How often a piece did not fit into memory and was measured in two halves."""
        self._all = (Route.own(model.depth), *routes)
        self._plans: dict[tuple[int, int], list[Instruction]] = {}

    def measure(self, ids: TokenIds, targets: TokenIds) -> RouteMeasures:
        """Measure every route on token windows; index 0 of the result is the unmodified model, i + 1 is `routes[i]`.

        `targets` are the next tokens at each position. The model's current weights are used. Raises DataError for token ids
        outside the vocabulary and NumericError, with route and position, for NaN or infinity in the activations.
        """
        self.model.kernels.forget()
        with self.model.measuring():
            return _joined(
                [
                    self.against(Baseline(self.model, *piece, keep=self.keep))
                    for piece in pieces(ids, targets, self._tokens)
                ]
            )

    def against(self, baseline: Baseline) -> RouteMeasures:
        """The same, given the baseline run, from whose residual streams the routes branch off.

        Call it under `model.measuring()`. A batch that does not fit into memory is measured in halves. Raises
        MemoryShortError if a single window does not fit. With Keep.ROUTES it is computed once for all meters of the same routes
        and measures, so it must not be changed.
        """
        if Keep.ROUTES not in baseline.keep:
            return self._against(baseline)
        key = self.routes, self.measures, self.pieces
        if key not in baseline.shared:
            baseline.shared[key] = self._against(baseline)
        return baseline.shared[key]

    def _against(self, baseline: Baseline) -> RouteMeasures:
        try:
            return self._checked(self.on_device(baseline), baseline)
        except (RuntimeError, MemoryError) as error:
            if not short_of_memory(error):
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
        """The measures on the model's device, unchecked. Queues work for an accelerator without waiting for it."""
        baseline = baseline.reduced_with(self.pieces.slice_width, self.pieces.reductions)
        windows, length = baseline.ids.shape
        # Allocated first and filled as routes end: results must not fragment memory between large temporary tensors.
        measured = RouteMeasures.empty(self.measures, len(self._all), windows, length, device=baseline.ids.device)
        ends = self.ends(baseline)
        (own,), _ = next(ends)
        measured.put(own, self._of_own(baseline))
        for routes, hidden in ends:
            ended = self._of_edited(baseline, hidden)
            for indices, one in zip(routes, ended.split(windows * length), strict=True):
                measured.put(indices, one)
        return measured

    def ends(self, baseline: Baseline, start: int = 0) -> Iterator[tuple[EndingAlike, Hidden]]:
        """What the unembedding reads, as routes end: for callers that need more of an edited model than its measures.

        Each item is (routes, hidden). `hidden` holds the positions from `start` on of every window, flattened, for
        `len(routes)` groups of routes in sequence; `routes[i]` are the numbers of the routes in the i-th group: 0 is
        the unmodified model, i + 1 is `routes[i]` of the meter. The first item is the unmodified model alone, with the
        baseline's numbers. Call it under `model.measuring()`.
        """
        streams = self.streams(baseline)
        own, _ = next(streams)
        yield own, baseline.hidden if start == 0 else self.model.unembedding.hidden(baseline.residuals[-1][:, start:])
        for routes, residual in streams:
            yield routes, self.model.unembedding.hidden(residual if start == 0 else residual[:, start:])

    def streams(self, baseline: Baseline) -> Iterator[tuple[EndingAlike, Residual]]:
        """As `ends`, with the residual streams after the last block: the windows of each group of routes in sequence."""
        together = max(1, self._together // baseline.ids.numel())
        plan = self._plan(self.model.routes_under_way(baseline.ids.numel(), together), together)
        known = (baseline.entry, baseline.residuals, baseline.states)
        yield from execute(self.model, plan, baseline.ids, *known, partial(_known, baseline))

    def _of_own(self, baseline: Baseline) -> TokenMeasures:
        found = TokenMeasures(baseline.measured if len(self._functions) < len(self.measures) else {})
        return self._with_functions(found, baseline, baseline.hidden)

    def _of_edited(self, baseline: Baseline, hidden: Hidden) -> TokenMeasures:
        found = TokenMeasures()
        if len(self._functions) < len(self.measures):
            found = compare(self.model.unembedding, baseline.reference, hidden, baseline.flat_targets)
        return self._with_functions(found, baseline, hidden)

    def _with_functions(self, found: TokenMeasures, baseline: Baseline, hidden: Hidden) -> TokenMeasures:
        if self._functions:
            found.update(
                apply_functions(self.model.unembedding, self._functions, baseline.hidden, hidden, baseline.flat_targets)
            )
        return found

    def _checked(self, measured: RouteMeasures, baseline: Baseline) -> RouteMeasures:
        """The measures on the CPU. Raises NumericError, with route and position, where one is NaN or infinite."""
        finite = {name: torch.isfinite(column) for name, column in measured.items() if column.is_floating_point()}
        fine = reduce(and_, finite.values()) if finite else torch.tensor(True)
        if not bool(fine.all()):  # one check for all measures, because each check waits for the accelerator
            route, window, position = place = tuple((~fine).nonzero()[0].tolist())
            broken = [name for name, one in finite.items() if not bool(one[place])]
            where = f"{baseline.named(window)}, position {position}"
            on = f"on the route {self._all[route].name!r} of {baseline.model.name}, {where}"
            if not set(broken) & set(BUILT_IN):
                raise NumericError(f"NaN or infinity in the measure {broken[0]} {on}: expected a finite number")
            at = first_broken(baseline.model, self._all[route], baseline.ids[window : window + 1])
            raise NumericError(f"NaN or infinity {on}, {at}. {REMEDY}, or leave the edit out")
        return RouteMeasures({name: column.cpu() for name, column in measured.items()})

    def _plan(self, width: int, together: int) -> list[Instruction]:
        sizes = min(width, len(self._all)), min(together, len(self._all))
        if sizes not in self._plans:
            self._plans[sizes] = make_plan(self._all, *sizes)
        return self._plans[sizes]


def _known(baseline: Baseline, step: Step, stream: int) -> Residual | None:
    """The result of a visit to a stream of the plan, if the baseline run has it: its stream b is x_b."""
    return baseline.silenced.get(step) if stream == step.block else None


def _joined(parts: Sequence[RouteMeasures]) -> RouteMeasures:
    return RouteMeasures({name: torch.cat([part[name] for part in parts], 1) for name in parts[0]})

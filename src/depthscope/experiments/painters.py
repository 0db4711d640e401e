"""The painters' edits (Sun et al. 2024): ranges in the middle of the model changed, and the claimed order of edits tested."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import polars as pl
from jaxtyping import Float64

from depthscope.data.windows import Windows
from depthscope.edits import parse_edit
from depthscope.engine.baseline import Baseline
from depthscope.engine.measure_routes import RouteMeter
from depthscope.errors import RouteError, UnsupportedError
from depthscope.experiments.document_sums import Rows, Sums, estimate_columns, window_sums
from depthscope.experiments.experiment import Subject
from depthscope.models.model import Model
from depthscope.routes import Route
from depthscope.schema.painters import (
    AS_CLAIMED,
    CLAIMED_ORDER,
    EDITS,
    KL_DIFFERENCE,
    MEASURED,
    METRICS,
    NOT_RESOLVED,
    PAINTERS_ORDER_TABLE,
    PAINTERS_TABLE,
    REVERSED,
)
from depthscope.schema.sweep import BASELINE_EDIT, BASELINE_LAYER
from depthscope.statistics.estimate import LEVEL, ClusterMoments, Estimate
from depthscope.statistics.two_way import over_both

NAME = "painters"
KEYS = {"edit": pl.String, "layer": pl.Int32, "other": pl.Int32, "draw": pl.Int32}
NO_DRAW = -1
"""`draw` in shards where nothing is random; null in the table."""
Key = tuple[str, int, int, int]
BASELINE: Key = (BASELINE_EDIT, BASELINE_LAYER, BASELINE_LAYER, NO_DRAW)
STEPS = tuple(pairwise(CLAIMED_ORDER))
"""(worse, better) by the claim."""


def middle_ranges(depth: int) -> list[tuple[int, int]]:
    """(first, last) of the ranges N … T − N of the paper, here from 0, with at least two layers; the largest first."""
    return [(first, depth - 2 - first) for first in range(depth) if depth - 2 - first > first]


def painters_routes(depth: int) -> dict[Key, Route]:
    """The route of each edit of each range; of random orders, of each draw. Raises UnsupportedError for too few layers."""
    if not middle_ranges(depth):
        raise UnsupportedError(f"a model of {depth} layers has no range in the middle: expected at least 3 layers")
    own, routes = Route.own(depth), {}
    for name, one in EDITS.items():
        blocks = [(first, first + one.block - 1) for first in range(depth - one.block + 1)]
        for first, last in blocks if one.block else middle_ranges(depth):
            for draw in range(one.draws) or [NO_DRAW]:
                text = one.edit.format(first=first, last=last, seed=draw)
                routes[name, first, last, draw] = parse_edit(text)(own)
    return routes


def _runnable(routes: dict[Key, Route], model: Model) -> tuple[dict[Key, Route], dict[str, str]]:
    """The routes that the model can run, and of each edit with others the reason for the first."""
    possible: dict[Key, Route] = {}
    refused: dict[str, str] = {}
    for key, route in routes.items():
        try:
            model.check_route(route)
        except RouteError as error:
            refused.setdefault(key[0], f"layers {key[1]} to {key[2]}: {error}")
        else:
            possible[key] = route
    if not possible:
        raise UnsupportedError(f"{model.name} ({model.family}): {next(iter(refused.values()))}")
    # A mean over the orders that happen to be possible would be that of another distribution.
    count = Counter(key[:3] for key in possible)
    whole = {key: route for key, route in possible.items() if count[key[:3]] == max(1, EDITS[key[0]].draws)}
    return whole, refused


@dataclass(frozen=True, slots=True)
class Contrast:
    """A comparison of two edits on some ranges: the rows of each, by draw where one is random."""

    worse: str
    better: str
    ranges: tuple[tuple[int, int], ...]

    @property
    def keys(self) -> tuple[str, str, int, int, int]:
        """Its keys in PAINTERS_ORDER_TABLE."""
        first, last = min(self.ranges)[0], max(last for _, last in self.ranges)
        return self.worse, self.better, first, last, len(self.ranges)


class Painters:
    """The painters' edits of every range in the middle. A reading of the shared pass."""

    name = NAME

    def __init__(self, model: Model) -> None:
        self.settings = {"edits": [one.edit for one in EDITS.values()]}
        self.routes, self.not_done = _runnable(painters_routes(model.depth), model)
        self.meter = RouteMeter(model, list(self.routes.values()), measures=MEASURED)
        self.keep, self.readouts = self.meter.keep, len(set(self.routes.values())) + 1
        self.names: list[Key] = [BASELINE, *self.routes]
        self.rows = Rows(KEYS, self.names, MEASURED)
        self._means = _by_range(self.names)
        self.contrasts = _contrasts(self._means)

    @property
    def halved(self) -> int:
        """How often a piece of work did not fit into memory and was done in two halves."""
        return self.meter.halved

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a unit: per document the sums of every edit."""
        measured = self.meter.against(baseline)
        values = np.stack([measured[measure.name].flatten(1).float().numpy() for measure in MEASURED])
        return self.rows.shard(window_sums(values, len(windows)), windows.length, windows.document)

    def joined(self, shards: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """The shard of a unit that was read in parts."""
        return self.rows.joined(shards)

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """PAINTERS_TABLE and PAINTERS_ORDER_TABLE, in one pass."""
        averaged = [key for key, rows in self._means.items() if len(rows) > 1]
        names = [*self.names, *((*key, NO_DRAW) for key in averaged)]
        table = Rows(KEYS, names, METRICS)
        moments, compared = table.moments(), ClusterMoments(len(self.contrasts))
        for document in self.rows.documents(shards):
            values = _with_loss_change(document.sums)
            means = [values[:, self._means[key]].mean(1) for key in averaged]
            tokens = int(document.tokens[0])
            moments.add(tokens, np.column_stack([values, *means]))
            compared.add(tokens, np.array([self._difference(values[0], one) for one in self.contrasts]))
        estimate = moments.estimate()
        for place, key in enumerate(averaged, len(self.names)):
            _set_interval(estimate, place, estimate.mean[:, self._means[key]].T)
        found = table.filled(estimate).filter(pl.col("edit") != BASELINE_EDIT)
        drawn = pl.col("draw").replace(NO_DRAW, None)
        return {
            NAME: found.with_columns(drawn).cast(pl.Schema(PAINTERS_TABLE)),
            "painters_order": self._order(compared, estimate),
        }

    def _difference(self, kl: Float64[np.ndarray, " rows"], one: Contrast, draw: int | None = None) -> float:
        """The difference in KL on average over ranges; with `draw`, of that random order instead of the mean over them."""
        sides = []
        for edit in (one.worse, one.better):
            rows = [self._means[edit, *span] for span in one.ranges]
            chosen = [found if draw is None or len(found) == 1 else found[draw : draw + 1] for found in rows]
            sides.append(np.mean([kl[found].mean() for found in chosen]))
        return float(sides[0] - sides[1])

    def _order(self, compared: ClusterMoments, estimate: Estimate) -> pl.DataFrame:
        """The claimed order's steps with their verdicts."""
        if not self.contrasts:
            return pl.DataFrame(schema=PAINTERS_ORDER_TABLE)
        level = 1 - (1 - LEVEL) / len(STEPS)
        found, usual, kl = compared.estimate(level), compared.estimate(), estimate.mean[0]
        for place, one in enumerate(self.contrasts):
            if draws := max(EDITS[one.worse].draws, EDITS[one.better].draws):
                per_draw = np.array([[self._difference(kl, one, draw)] for draw in range(draws)])
                both = over_both(usual.columns(np.array([place])), per_draw, level)
                found.low[place], found.high[place] = both.low[0], both.high[0]
        keys = pl.DataFrame(
            [one.keys for one in self.contrasts],
            schema=["worse", "better", "layer", "other", "ranges"],
            orient="row",
        )
        verdicts = [
            AS_CLAIMED if low > 0 else REVERSED if high < 0 else NOT_RESOLVED
            for low, high in zip(found.low, found.high, strict=True)
        ]
        columns = estimate_columns(found, [KL_DIFFERENCE] * len(self.contrasts))
        return keys.hstack(columns).with_columns(verdict=pl.Series(verdicts)).cast(pl.Schema(PAINTERS_ORDER_TABLE))


def _with_loss_change(sums: Sums) -> Float64[np.ndarray, "derived rows"]:
    """A document's sums of METRICS from those of MEASURED; the first row is the baseline."""
    kl, agreement, loss = sums
    return np.stack([kl, agreement, loss - loss[0]])


def _by_range(names: Sequence[Key]) -> dict[tuple[str, int, int], list[int]]:
    """The rows of each edit of each range: several, in the order of the draws, where orders are random."""
    found: dict[tuple[str, int, int], list[int]] = {}
    for row, (edit, first, last, _) in enumerate(names):
        found.setdefault((edit, first, last), []).append(row)
    return found


def _contrasts(rows: dict[tuple[str, int, int], list[int]]) -> list[Contrast]:
    """The claimed order's steps, each on all ranges that both edits have, then on each of them."""
    found = []
    for worse, better in STEPS:
        ranges = sorted((first, last) for edit, first, last in rows if edit == worse and (better, first, last) in rows)
        if ranges:
            found += [Contrast(worse, better, tuple(ranges)), *(Contrast(worse, better, (span,)) for span in ranges)]
    return found


def _set_interval(estimate: Estimate, place: int, per_draw: Float64[np.ndarray, "draws metrics"]) -> None:
    """Replace the interval of a mean over draws, which is over documents alone, by one over both."""
    mean, low, high = (values[:, place] for values in (estimate.mean, estimate.low, estimate.high))
    one = Estimate(mean, low, high, estimate.tokens, estimate.documents)
    both = over_both(one, per_draw)
    estimate.low[:, place], estimate.high[:, place] = both.low, both.high


def make(subject: Subject) -> Painters:
    """The painters' edits of a model."""
    return Painters(subject.model)

"""Maps: every range or pair of layers edited, and the best cells with intervals that hold although they were picked."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float32, Float64, Int64

from depthscope.data.windows import Windows
from depthscope.edit_registry import registered
from depthscope.edits import drop
from depthscope.engine.baseline import Baseline
from depthscope.engine.measure_routes import RouteMeter
from depthscope.errors import RouteError, UnsupportedError
from depthscope.experiments.document_sums import DocumentSums, Rows, Sums, estimate_columns, window_sums
from depthscope.experiments.experiment import Subject
from depthscope.models.model import Model
from depthscope.routes import Route
from depthscope.schema.layer_maps import (
    BEST,
    HIGHEST,
    INTERACTION,
    KINDS,
    MAP_BEST_TABLE,
    MEASURED,
    METRICS,
    SINGLE,
    Best,
    MapKind,
)
from depthscope.schema.measures import KL
from depthscope.schema.metric import Metric
from depthscope.schema.sweep import BASELINE_EDIT, BASELINE_LAYER
from depthscope.statistics.estimate import Estimate
from depthscope.statistics.simultaneous import GroupedSums

NAME = "map"
KEYS = {"kind": pl.String, "layer": pl.Int32, "other": pl.Int32}
BASELINE = (BASELINE_EDIT, BASELINE_LAYER, BASELINE_LAYER)
MOST_CELLS = 1 << 16
"""Of all maps of a run: 180 layers with all four kinds. Each cell is a route through the model."""


@dataclass(frozen=True, slots=True)
class MapCell:
    """A cell of a map and its route."""

    kind: str
    layer: int
    other: int
    route: Route

    @property
    def name(self) -> tuple[str, int, int]:
        """Its keys in shards and tables."""
        return self.kind, self.layer, self.other


def places(kind: MapKind, depth: int, band: int | None) -> list[tuple[int, int]]:
    """The cells of a map: (first, last) of ranges of at most `band` layers, or pairs of layers at most `band` apart."""
    nearest = 1 if kind.pair else 0
    furthest = depth if band is None else band + nearest - 1
    return [(i, j) for i in range(depth) for j in range(i + nearest, min(i + furthest, depth - 1) + 1)]


def map_cells(kinds: Sequence[str], depth: int, band: int | None = None) -> list[MapCell]:
    """The cells of these maps, the single drops first if there are pairs.

    Raises RouteError for more than MOST_CELLS.
    """
    chosen = [KINDS[name] for name in kinds]
    wanted = {kind: places(kind, depth, band) for kind in chosen}
    if (count := sum(map(len, wanted.values()))) > MOST_CELLS:
        raise RouteError(f"maps of {count:,} cells: expected at most {MOST_CELLS:,}. Use --band, or fewer kinds")
    own = Route.own(depth)
    singles = [MapCell(SINGLE, i, i, drop(i)(own)) for i in range(depth)] if any(kind.pair for kind in chosen) else []
    return singles + [
        MapCell(kind.name, i, j, _route(kind, i, j, own)) for kind, cells in wanted.items() for i, j in cells
    ]


def _route(kind: MapKind, layer: int, other: int, own: Route) -> Route:
    if kind.pair and kind.edit == "drop":
        return (drop(layer) | drop(other))(own)
    return registered(kind.edit).edit(layer, other)(own)


def _runnable(cells: Sequence[MapCell], model: Model) -> tuple[list[MapCell], dict[str, str]]:
    """The cells whose route the model can run; of each kind, how many of the others there are, and why the first is one."""
    possible: list[MapCell] = []
    refused: dict[str, list[str]] = {}
    for cell in cells:
        try:
            model.check_route(cell.route)
        except RouteError as error:
            refused.setdefault(cell.kind, []).append(f"{cell.layer}-{cell.other}: {error}")
        else:
            possible.append(cell)
    total = {kind: sum(cell.kind == kind for cell in cells) for kind in refused}
    reasons = {kind: f"{len(found)} of {total[kind]} cells, {found[0]}" for kind, found in refused.items()}
    if all(cell.kind == SINGLE for cell in possible):
        raise UnsupportedError(f"{model.name} ({model.family}): {next(iter(reasons.values()), 'no layers to map')}")
    return possible, reasons


class LayerMaps:
    """Maps of the given kinds. A reading of the shared pass."""

    name = NAME
    separate = False
    """See `experiment.Aimed`: interactions and the best cells compare cells on the same text."""

    def __init__(self, model: Model, kinds: Sequence[str], band: int | None = None) -> None:
        self.settings = {"kind": list(kinds), "band": band}
        self.cells, self.not_done = _runnable(map_cells(kinds, model.depth, band), model)
        self.meter = RouteMeter(model, [cell.route for cell in self.cells], measures=MEASURED)
        self.keep, self.readouts = self.meter.keep, len(self.cells) + 1
        self.names = [BASELINE, *(cell.name for cell in self.cells)]
        self.rows = Rows(KEYS, self.names, MEASURED)
        self._pairs, self._first, self._second = _pairs(self.names)

    @property
    def aims(self) -> dict[int, tuple[str, int, int]]:
        """See `experiment.Aimed`: every cell, and the single drops."""
        return {row: name for row, name in enumerate(self.names) if name != BASELINE}

    @property
    def metrics(self) -> Sequence[Metric]:
        """See `experiment.Aimed`."""
        return self.rows.metrics

    def documents(self, shards: Iterable[pl.DataFrame]) -> Iterator[DocumentSums]:
        """See `experiment.Aimed`."""
        return self.rows.documents(shards)

    def limited(self, rows: Collection[int]) -> "LayerMaps":
        """See `experiment.Aimed`: never fewer than all."""
        assert set(rows) == set(self.aims)
        return self

    def summed(self, shards: Iterable[pl.DataFrame]) -> Iterable[pl.DataFrame]:
        """See `experiment.Aimed`: shards are sums."""
        return shards

    @property
    def halved(self) -> int:
        """How often a piece of work did not fit into memory and was done in two halves."""
        return self.meter.halved

    def values(self, baseline: Baseline) -> Float32[np.ndarray, "metrics cells tokens"]:
        """MEASURED of every cell and token, in the order of `rows`."""
        measured = self.meter.against(baseline)
        return np.stack([measured[measure.name].flatten(1).float().numpy() for measure in MEASURED])

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a unit: per document the sums of every cell."""
        measured = self.meter.against(baseline)
        # One measure after the other: together, in float64, they would be the largest thing in memory.
        sums = [
            window_sums(measured[measure.name].flatten(1).float().numpy()[None], len(windows)) for measure in MEASURED
        ]
        return self.rows.shard(np.concatenate(sums), windows.length, windows.document)

    def joined(self, shards: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """The shard of a unit that was read in parts."""
        return self.rows.joined(shards)

    def derived(self, sums: Sums) -> Float64[np.ndarray, "derived rows"]:
        """A document's sums of METRICS; interactions are paired by document, and 0 where there is none."""
        kl, agreement, loss = sums
        interaction = np.zeros_like(kl)
        interaction[self._pairs] = kl[self._pairs] - kl[self._first] - kl[self._second]
        return np.stack([kl, agreement, loss - loss[0], interaction])

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """MAP_TABLE and MAP_BEST_TABLE, in one pass."""
        table = Rows(KEYS, self.names, METRICS)
        families = self._families()
        moments, grouped = table.moments(), GroupedSums(sum(len(rows) for rows in families.values()))
        for document in self.documents(shards):
            values = self.derived(document.sums)
            moments.add(document.tokens, values)
            picked = [values[METRICS.index(one.metric), rows] for one, rows in families.items()]
            grouped.add(int(document.tokens[0]), np.concatenate(picked))
        estimate = moments.estimate()
        exists = np.ones(estimate.mean.shape, dtype=bool)
        exists[METRICS.index(INTERACTION)] = np.isin(np.arange(len(self.names)), self._pairs)
        exists[:, 0] = False  # the baseline
        whole = table.filled(estimate).filter(pl.Series(exists.T.ravel()))
        return {NAME: whole, "map_best": self._best(families, grouped, estimate)}

    def _families(self) -> dict[Best, Int64[np.ndarray, " rows"]]:
        """For each thing to pick, the rows that are picked from; those of the same kind and metric have the same rows."""
        found, paired = {}, set(self._pairs.tolist())
        for one in BEST:
            rows = [row for row, (kind, _, _) in enumerate(self.names) if kind == one.kind]
            if one.metric is INTERACTION:
                rows = [row for row in rows if row in paired]
            if rows:
                found[one] = np.array(rows)
        return found

    def _best(
        self, families: dict[Best, Int64[np.ndarray, " rows"]], grouped: GroupedSums, estimate: Estimate
    ) -> pl.DataFrame:
        parts, start = [], 0
        for one, rows in families.items():
            stop = start + len(rows)
            found = grouped.intervals(range(start, stop), positive=one.metric is KL)
            means = estimate.mean[METRICS.index(one.metric), rows]
            start = stop
            lengths = np.array([self.names[row][2] - self.names[row][1] + 1 for row in rows])
            for layers in sorted(set(lengths.tolist())) if one.by_length else [0]:
                among = np.flatnonzero((lengths == layers) | (layers == 0))
                pick: Callable[..., int] = np.argmax if one.extreme == HIGHEST else np.argmin
                place = among[pick(means[among])]
                kind, layer, other = self.names[rows[place]]
                keys = {"kind": kind, "layers": layers, "extreme": one.extreme, "layer": layer, "other": other}
                mean, low, high = (bound[place : place + 1] for bound in (means, found.low, found.high))
                values = Estimate(mean, low, high, _counted(estimate.tokens), _counted(estimate.documents))
                parts.append(
                    pl.DataFrame(keys).hstack(estimate_columns(values, [one.metric])).with_columns(cells=len(rows))
                )
        return pl.concat(parts).cast(pl.Schema(MAP_BEST_TABLE))


def _counted(count: int | Int64[np.ndarray, "*counted"]) -> int:
    """How many tokens or documents: all cells are measured on the same ones."""
    return int(np.ravel(count)[0])


def _pairs(
    names: Sequence[tuple[str, int, int]],
) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
    """The rows of pairs with both single drops measured, and the rows of these."""
    singles = {layer: row for row, (kind, layer, _) in enumerate(names) if kind == SINGLE}
    found = [
        (row, singles[layer], singles[other])
        for row, (kind, layer, other) in enumerate(names)
        if kind in KINDS and KINDS[kind].pair and layer in singles and other in singles
    ]
    rows, first, second = np.array(found, dtype=np.int64).reshape(-1, 3).T
    return rows, first, second


def make(subject: Subject) -> LayerMaps:
    """The requested maps of a model."""
    options = subject.options
    return LayerMaps(subject.model, options["kind"] or list(KINDS), options["band"])

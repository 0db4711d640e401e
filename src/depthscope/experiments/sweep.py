"""The sweep (E1, E2, E3 of the paper): every swap and drop, layer by layer, and its effect on the predictions."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float32, Float64, Int64

from depthscope.data.windows import Windows
from depthscope.edit_registry import LayerSweep, check_edits, registered, sweeps
from depthscope.engine.baseline import Baseline, Keep
from depthscope.engine.measure_routes import RouteMeasures, RouteMeter
from depthscope.errors import RouteError, UnsupportedError
from depthscope.experiments.document_sums import DocumentSums, Rows, Sums, window_sums
from depthscope.experiments.experiment import Subject
from depthscope.models.components import Components
from depthscope.models.model import Model
from depthscope.routes import ATTN, COMPONENT_NAMES, MLP, Route
from depthscope.schema.measures import Measure, all_measures, metrics_of
from depthscope.schema.metric import Metric
from depthscope.schema.sweep import (
    BASELINE_EDIT,
    BASELINE_LAYER,
    CLUSTER,
    MEASURED,
    TOKEN_KEYS,
)

NAME = "sweep"
KEYS = {"edit": pl.String, "layer": pl.Int32}


@dataclass(frozen=True, slots=True)
class LayerEdit:
    """One row of a sweep: an edit applied at one layer of the unmodified model's route."""

    kind: str
    layer: int
    route: Route


def layer_edits(kinds: Sequence[str], depth: int, components: Components | None = None) -> list[LayerEdit]:
    """Each kind of edit at each layer where it applies; an edit of a component, where `components` has it (by default all).

    Raises RouteError for an unknown kind.
    """
    check_edits(kinds)
    own, known = Route.own(depth), sweeps()
    return [
        LayerEdit(kind, layer, registered(kind).edit(layer)(own))
        for kind in kinds
        for layer in known[kind].layers(depth)
        if components is None or _has_component(known[kind], layer, components)
    ]


def _has_component(how: LayerSweep, layer: int, components: Components) -> bool:
    return how.component is None or all(how.component in components.parts[block] for block in how.blocks(layer))


def possible_edits(kinds: Sequence[str] | None, model: Model) -> tuple[list[str], dict[str, str]]:
    """The kinds of edits that a model supports, each once, and the reasons for the others; None: all that it supports.

    Raises UnsupportedError if it supports none of them, RouteError for an unknown kind.
    """
    known = sweeps()
    asked = list(dict.fromkeys(known if kinds is None else kinds))
    check_edits(asked)
    ablated = {kind: component for kind in asked if (component := known[kind].component) is not None}
    if model.components is None:
        if list(ablated) == asked:
            model.require_components()
        reason = "the model has no separate attention and MLP that its blocks add to the residual stream"
        # A request for all edits does not expect edits of components that few models have.
        named = [kind for kind, component in ablated.items() if kinds is not None or component in (ATTN, MLP)]
        return [kind for kind in asked if kind not in ablated], dict.fromkeys(named, reason)
    reasons = {
        kind: f"no block has a {COMPONENT_NAMES[component]}"
        for kind, component in ablated.items()
        if component not in model.components.kinds
    }
    lacking = list(reasons)
    if lacking == asked:
        raise UnsupportedError(f"{model.name} ({model.family}): {reasons[lacking[0]]}")
    not_done = {} if kinds is None else reasons
    return [kind for kind in asked if kind not in lacking], not_done


def runnable(edits: Sequence[LayerEdit], model: Model) -> tuple[list[LayerEdit], dict[str, str]]:
    """The edits whose route the model can run, and the reasons for the others (a later block reads what a block stores)."""
    possible, refused = [], {}
    for edit in edits:
        try:
            model.check_route(edit.route)
        except RouteError as error:
            refused[f"{edit.kind}({edit.layer})"] = str(error)
        else:
            possible.append(edit)
    return possible, refused


def _own_routes(edits: Sequence[LayerEdit]) -> dict[str, dict[str, dict[str, str]]]:
    """The routes of user-defined edits at each layer: their definition may change between two commands on one directory."""
    routes: dict[str, dict[str, str]] = {}
    for edit in edits:
        if not registered(edit.kind).built_in:
            routes.setdefault(edit.kind, {})[str(edit.layer)] = edit.route.name
    return {"routes": routes} if routes else {}


class Sweep:
    """A sweep of given edits over given windows: a reading of the shared pass.

    `not_done` are kinds of edits that were requested and cannot be done, with the reason. `measures` are the built-in and the
    registered ones by default.
    """

    name = NAME
    separate = True
    """See `experiment.Aimed`."""

    def __init__(
        self,
        model: Model,
        length: int,
        kinds: Sequence[str],
        per_token: bool = False,
        *,
        not_done: Mapping[str, str] | None = None,
        measures: Sequence[Measure] | None = None,
    ) -> None:
        self.measures = all_measures() if measures is None else tuple(measures)
        more = [measure.described() for measure in self.measures if not measure.built_in]
        # Recorded only if there are measures besides the built-in ones, so that settings match those of earlier runs.
        named = {"measures": more} if more else {}
        self.length, self.per_token = length, per_token
        self.edits, refused = runnable(layer_edits(kinds, model.depth, model.components), model)
        self.settings: dict[str, Any] = {
            "edits": list(kinds),
            "per_token": per_token,
            **named,
            **_own_routes(self.edits),
        }
        self.not_done = {**refused, **(not_done or {})}
        """What was requested and cannot be done, and why."""
        self.model = model
        names = [(BASELINE_EDIT, BASELINE_LAYER), *((edit.kind, edit.layer) for edit in self.edits)]
        self.rows = Rows(KEYS, names, self.measures)
        self._meters: dict[tuple[int, ...], RouteMeter] = {}
        """By the rows that they measure, the baseline included."""
        self.every = self.measured = tuple(range(len(names)))
        """All rows, and those measured here, which are fewer in a limited sweep."""
        self.keep, self.readouts = self.meter.keep, len(names)

    @property
    def aims(self) -> dict[int, tuple[str, int, int]]:
        """See `experiment.Aimed`: every edit at every layer."""
        return {row: (edit, layer, layer) for row, (edit, layer) in enumerate(self.rows.names) if edit != BASELINE_EDIT}

    @property
    def metrics(self) -> Sequence[Metric]:
        """See `experiment.Aimed`."""
        return self.rows.metrics

    def documents(self, shards: Iterable[pl.DataFrame]) -> Iterator[DocumentSums]:
        """See `experiment.Aimed`."""
        return self.rows.documents(self.summed(shards))

    def summed(self, shards: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """See `experiment.Aimed`."""
        return summed(shards, self.length, self.measures, self.rows.names)

    def limited(self, rows: Collection[int]) -> "Sweep":
        """See `experiment.Aimed`. Rows left out have no tokens in shards of sums, and no rows in those with one per token."""
        other = copy(self)
        other.measured = (0, *sorted(rows))
        other.keep, other.readouts = other.meter.keep, len(other.measured)
        return other

    @property
    def meter(self) -> RouteMeter:
        """What measures the rows that are measured here."""
        if self.measured not in self._meters:
            routes = [self.edits[row - 1].route for row in self.measured[1:]]
            self._meters[self.measured] = RouteMeter(self.model, routes, measures=self.measures)
        return self._meters[self.measured]

    @property
    def halved(self) -> int:
        """How often a piece of work did not fit into memory and was done in two halves."""
        return sum(meter.halved for meter in self._meters.values())

    def values(self, baseline: Baseline) -> Float32[np.ndarray, "metrics routes tokens"]:
        """The measures of every token under every route that is measured here, in the order of `rows`."""
        if Keep.ROUTES in baseline.keep and self.measured != self.every:  # other readings measure all of them anyway
            return _values(self._meters[self.every].against(baseline), self.measures)[:, list(self.measured)]
        return _values(self.meter.against(baseline), self.measures)

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a unit: rows of TOKEN_SHARD or DOCUMENT_SHARD."""
        values = self.values(baseline)
        if self.per_token:
            return self._token_rows(windows, values)
        return _shard(self.rows, self.measured, window_sums(values, len(windows)), windows.length, windows.document)

    def joined(self, shards: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """The shard of a unit that was read in parts: with one row per token, those of a route are together."""
        if not self.per_token:
            return self.rows.joined(shards)
        each = [len(shard) // len(self.measured) for shard in shards]
        places = range(len(self.measured))
        return pl.concat(
            [shard.slice(place * rows, rows) for place in places for shard, rows in zip(shards, each, strict=True)]
        )

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """Means and intervals (SWEEP_TABLE), including changes from the baseline."""
        table = Rows(KEYS, self.rows.names, tuple(metrics_of(self.measures).values()))
        return {NAME: table.estimated(self.documents(shards), partial(with_changes, measures=self.measures))}

    def _token_rows(self, windows: Windows, values: Float32[np.ndarray, "metrics routes tokens"]) -> pl.DataFrame:
        names = [self.rows.names[row] for row in self.measured]
        document, position = windows.places
        per_route = {
            "document": document.ravel(),
            "position": position.ravel(),
            "token": windows.ids[:, :-1].ravel(),
            "next_token": windows.ids[:, 1:].ravel(),
        }
        columns = {name: np.tile(column, len(names)) for name, column in per_route.items()}
        edit = pl.Series("edit", [kind for kind, _ in names])[np.repeat(np.arange(len(names)), windows.tokens)]
        layer = np.repeat(np.array([layer for _, layer in names]), windows.tokens)
        measured = {measure.name: column.ravel() for measure, column in zip(self.measures, values, strict=True)}
        schema = pl.Schema({**TOKEN_KEYS, **dict.fromkeys(measured, pl.Float32)})
        if windows.cluster is not None:
            columns[CLUSTER] = np.tile(np.repeat(windows.document, windows.length), len(names))
            schema[CLUSTER] = pl.Int64()
        return pl.DataFrame({**columns, "edit": edit, "layer": layer, **measured}).cast(schema).select(*schema)


def make(subject: Subject) -> Sweep:
    """The sweep of the requested edits that the model supports."""
    options = subject.options
    kinds, lacking = possible_edits(options["edits"], subject.model)
    return Sweep(subject.model, subject.windows.length, kinds, options["per_token"], not_done=lacking)


def summed(
    shards: Iterable[pl.DataFrame],
    length: int,
    metrics: Sequence[Metric] = MEASURED,
    names: Sequence[tuple[Any, ...]] = (),
) -> Iterator[pl.DataFrame]:
    """Shards as sums over documents, including those with one row per token; windows are `length` tokens long.

    A window belongs to the cluster, or without clusters to the document, of its first token. `names` are the rows; by default
    those of the first shard. Later ones may lack some.
    """
    for shard in shards:
        if "position" not in shard.columns:
            yield shard
            continue
        found = shard.select("edit", "layer").unique(maintain_order=True).rows()
        names = names or found
        values = np.stack([shard[metric.name].to_numpy().reshape(len(found), -1) for metric in metrics])
        unit = CLUSTER if CLUSTER in shard.columns else "document"
        documents = shard[unit].to_numpy()[: values.shape[2] : length]
        measured = [names.index(name) for name in found]
        yield _shard(Rows(KEYS, names, metrics), measured, window_sums(values, len(documents)), length, documents)


def _shard(
    rows: Rows,
    measured: Sequence[int],
    sums: Float64[np.ndarray, "metrics measured windows"],
    length: int,
    documents: Int64[np.ndarray, " windows"],
) -> pl.DataFrame:
    """The shard of windows where only the rows `measured` were: the others have no tokens."""
    if len(measured) == len(rows.names):
        return rows.shard(sums, length, documents)
    every = np.zeros((sums.shape[0], len(rows.names), sums.shape[2]))
    every[:, list(measured)] = sums
    counts = np.zeros((len(rows.names), len(documents)), dtype=np.int64)
    counts[list(measured)] = length
    return rows.shard(every, counts, documents)


def _values(measured: RouteMeasures, measures: Sequence[Measure]) -> Float32[np.ndarray, "metrics routes tokens"]:
    return np.stack([measured[measure.name].flatten(1).float().numpy() for measure in measures])


def with_changes(sums: Sums, measures: Sequence[Measure]) -> Float64[np.ndarray, "more routes"]:
    """Sums of measures and of their changes from the baseline, the first row, in the order of `metrics_of`."""
    by_name = {measure.name: column for measure, column in zip(measures, sums, strict=True)}
    changes = {f"{name}_change": values - values[0] for name, values in by_name.items()}
    return np.stack([{**by_name, **changes}[name] for name in metrics_of(measures)])

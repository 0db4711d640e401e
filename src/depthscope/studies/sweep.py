"""The sweep (E1, E2, E3 of the paper): every swap and drop, layer by layer, and what it does to the predictions."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import polars as pl
from jaxtyping import Float32, Float64, Int64

from depthscope.data.windows import Windows
from depthscope.edits import Edit, drop, drop_attn, drop_mlp, swap
from depthscope.engine.measure_routes import RouteMeasures, RouteMeter
from depthscope.errors import RouteError
from depthscope.measure.estimate import ClusterMoments
from depthscope.models.model import Model
from depthscope.routes import Route
from depthscope.run.local import Unit
from depthscope.schema.sweep import (
    BASELINE_EDIT,
    BASELINE_LAYER,
    DOCUMENT_SHARD,
    DROP,
    DROP_ATTN,
    DROP_MLP,
    MEASURED,
    METRICS,
    SWAP,
    SWEEP_TABLE,
    TOKEN_SHARD,
)

NAME = "sweep"
EDITS: dict[str, Callable[[int], Edit]] = {
    SWAP.name: swap,
    DROP.name: drop,
    DROP_ATTN.name: drop_attn,
    DROP_MLP.name: drop_mlp,
}
COMPONENT_EDITS = (DROP_ATTN.name, DROP_MLP.name)


@dataclass(frozen=True, slots=True)
class LayerEdit:
    """One row of a sweep: an edit applied at one layer of the model's own route."""

    kind: str
    layer: int
    route: Route


def layer_edits(kinds: Sequence[str], depth: int) -> list[LayerEdit]:
    """Each kind of edit at each layer it can be applied to. Raises RouteError for an unknown kind."""
    unknown = [kind for kind in kinds if kind not in EDITS]
    if unknown or not kinds:
        raise RouteError(f"unknown edit {', '.join(unknown) or '(none given)'}: expected some of {', '.join(EDITS)}")
    own = Route.own(depth)
    layers = {kind: depth - 1 if kind == SWAP.name else depth for kind in kinds}
    return [LayerEdit(kind, layer, EDITS[kind](layer)(own)) for kind in kinds for layer in range(layers[kind])]


def possible_edits(kinds: Sequence[str], model: Model) -> tuple[list[str], dict[str, str]]:
    """The kinds that can be done on a model, each once, and for the others why not.

    Raises UnsupportedError where none of them can be.
    """
    kinds = list(dict.fromkeys(kinds))
    if model.components is None:
        if kinds and all(kind in COMPONENT_EDITS for kind in kinds):
            model.require_components()
        reason = "the model has no separate attention and MLP that its blocks add to the residual stream"
        return [k for k in kinds if k not in COMPONENT_EDITS], {k: reason for k in kinds if k in COMPONENT_EDITS}
    return kinds, {}


class Sweep:
    """A sweep of given edits over given windows, a work unit at a time."""

    def __init__(self, model: Model, windows: Windows, kinds: Sequence[str], per_token: bool = False) -> None:
        self.windows = windows
        self.per_token = per_token
        self.edits = layer_edits(kinds, model.depth)
        self.meter = RouteMeter(model, [edit.route for edit in self.edits])

    def work(self, unit: Unit) -> pl.DataFrame:
        """The shard of a unit: rows of TOKEN_SHARD or DOCUMENT_SHARD."""
        ids, targets = self.windows.batch(unit.start, unit.stop)
        measures = self.meter.measure(ids, targets)
        if self.per_token:
            return self._token_rows(unit, measures)
        documents = np.repeat(self.windows.document[unit.start : unit.stop], self.windows.length)
        return _document_rows(self._names(), _values(measures), documents)

    def _names(self) -> list[tuple[str, int]]:
        return [(BASELINE_EDIT, BASELINE_LAYER), *((edit.kind, edit.layer) for edit in self.edits)]

    def _token_rows(self, unit: Unit, measures: RouteMeasures) -> pl.DataFrame:
        rows = slice(unit.start, unit.stop)
        length = self.windows.length
        ids = self.windows.ids[rows]
        names = self._names()
        per_route = {
            "document": np.repeat(self.windows.document[rows], length),
            "position": (self.windows.start[rows, None] + np.arange(length)).ravel(),
            "token": ids[:, :-1].ravel(),
            "next_token": ids[:, 1:].ravel(),
        }
        tokens = ids[:, 1:].size
        columns = {name: np.tile(column, len(names)) for name, column in per_route.items()}
        edit = pl.Series("edit", [kind for kind, _ in names])[np.repeat(np.arange(len(names)), tokens)]
        layer = np.repeat(np.array([layer for _, layer in names]), tokens)
        values = _values(measures)
        measured = {metric.name: values[i].ravel() for i, metric in enumerate(MEASURED)}
        return (
            pl.DataFrame({**columns, "edit": edit, "layer": layer, **measured})
            .cast(pl.Schema(TOKEN_SHARD))
            .select(*TOKEN_SHARD)
        )


def _values(measures: RouteMeasures) -> Float32[np.ndarray, "metrics routes tokens"]:
    columns = (measures.kl, measures.agreement, measures.entropy, measures.loss)
    return np.stack([column.flatten(1).float().numpy() for column in columns])


def _document_rows(
    names: Sequence[tuple[str, int]],
    values: Float32[np.ndarray, "metrics routes tokens"],
    documents: Int64[np.ndarray, " tokens"],
) -> pl.DataFrame:
    """Sums over each document's tokens, which lie together; added in one order however the rows were stored."""
    starts = np.flatnonzero(np.diff(documents, prepend=documents[0] - 1))
    counts = np.diff(starts, append=len(documents))
    sums = np.add.reduceat(values.astype(np.float64), starts, axis=2)
    frames = [
        pl.DataFrame(
            {
                "document": np.full(len(names), documents[start]),
                "edit": [kind for kind, _ in names],
                "layer": [layer for _, layer in names],
                "tokens": np.full(len(names), count),
                **{metric.name: sums[i, :, place] for i, metric in enumerate(MEASURED)},
            }
        )
        for place, (start, count) in enumerate(zip(starts, counts, strict=True))
    ]
    return pl.concat(frames).cast(pl.Schema(DOCUMENT_SHARD)).select(*DOCUMENT_SHARD)


def sweep_table(shards: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Means and intervals (SWEEP_TABLE) from the shards of a sweep, in one pass and constant memory."""
    names: list[tuple[str, int]] = []
    moments: ClusterMoments | None = None
    for shard_names, tokens, sums in _whole_documents(shards):
        names = names or shard_names
        assert names == shard_names, "all shards of a run hold the same edits"
        quantities = np.concatenate([sums, sums - sums[:, :1]])
        moments = moments or ClusterMoments(quantities.size)
        moments.add(tokens, quantities.ravel())
    assert moments is not None, "a run has at least one window"
    estimate = moments.estimate()
    order = [metric.name for metric in MEASURED] + [f"{metric.name}_change" for metric in MEASURED]
    shape = (len(order), len(names))
    mean, low, high = (array.reshape(shape) for array in (estimate.mean, estimate.low, estimate.high))
    rows = []
    for place, (kind, layer) in enumerate(names):
        for metric in METRICS.values():
            at = (order.index(metric.name), place)
            bounds = [_clipped(value[at], metric.lowest, metric.highest) for value in (low, high)]
            rows.append(
                (kind, layer, metric.name, metric.unit, float(mean[at]), *bounds, estimate.tokens, estimate.documents)
            )
    return pl.DataFrame(rows, schema=SWEEP_TABLE, orient="row")


def _clipped(value: float, lowest: float | None, highest: float | None) -> float | None:
    """An interval's end, kept within what the metric can be; None where there is no interval."""
    if np.isnan(value):
        return None
    return float(np.clip(value, lowest, highest))


def _whole_documents(
    shards: Iterable[pl.DataFrame],
) -> Iterator[tuple[list[tuple[str, int]], int, Float64[np.ndarray, "metrics routes"]]]:
    """(names, tokens, sums) per document; a document that goes on in the next shard is put together."""
    for _, parts in groupby(_documents(shards), key=lambda part: part[0]):
        pieces = list(parts)
        yield pieces[0][1], sum(tokens for _, _, tokens, _ in pieces), np.sum([sums for *_, sums in pieces], axis=0)


def _documents(
    shards: Iterable[pl.DataFrame],
) -> Iterator[tuple[int, list[tuple[str, int]], int, Float64[np.ndarray, "metrics routes"]]]:
    for shard in shards:
        rows = _summed(shard) if "position" in shard.columns else shard
        for (document,), frame in rows.group_by("document", maintain_order=True):
            names = list(zip(frame["edit"], frame["layer"], strict=True))
            sums = frame.select(metric.name for metric in MEASURED).to_numpy().T
            yield int(str(document)), names, int(frame["tokens"][0]), np.ascontiguousarray(sums)


def _summed(shard: pl.DataFrame) -> pl.DataFrame:
    """A per-token shard as sums over documents."""
    names = list(shard.select("edit", "layer").unique(maintain_order=True).iter_rows())
    values = np.stack([shard[metric.name].to_numpy().reshape(len(names), -1) for metric in MEASURED])
    return _document_rows(names, values, shard["document"].to_numpy()[: values.shape[2]])

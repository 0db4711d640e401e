"""From numbers per window to shards of sums over documents, and from those to tables with intervals.

What a streamed experiment measures is a block of numbers: metrics × rows × windows, where a row is what a number is about
(an edit at a layer, a head of a layer). Shards keep their sums over each document's windows; tables have their means over
tokens with intervals over documents.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float, Float64, Int64

from depthscope.measure.estimate import ClusterMoments, Estimate
from depthscope.schema.metric import ESTIMATE, Metric

Sums = Float64[np.ndarray, "metrics rows"]
Derive = Callable[[Sums], Float64[np.ndarray, "derived derived_rows"]]


@dataclass(frozen=True, slots=True)
class DocumentSums:
    """One document: how many tokens were measured, and the sums over them."""

    document: int
    tokens: int
    sums: Sums


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a streamed experiment: key columns with their types, the keys of each row, and what is measured."""

    keys: Mapping[str, Any]
    names: Sequence[tuple[Any, ...]]
    metrics: Sequence[Metric]

    @property
    def shard_schema(self) -> dict[str, Any]:
        """Columns of a shard: a row per document and row, the metrics summed over that document's tokens there."""
        metrics = {metric.name: pl.Float64 for metric in self.metrics}
        return {"document": pl.Int64, **self.keys, "tokens": pl.Int64, **metrics}

    @property
    def table_schema(self) -> dict[str, Any]:
        """Columns of the table."""
        return {**self.keys, **ESTIMATE}

    def shard(
        self,
        sums: Float64[np.ndarray, "metrics rows windows"],
        tokens: int,
        documents: Int64[np.ndarray, " windows"],
    ) -> pl.DataFrame:
        """The shard of windows of `tokens` measured tokens each; a document's windows lie together."""
        starts = np.flatnonzero(np.diff(documents, prepend=documents[0] - 1))
        windows = np.diff(starts, append=len(documents))
        added = np.add.reduceat(np.ascontiguousarray(sums), starts, axis=2)
        per_document = len(self.names)
        keys = {key: [name[i] for name in self.names] * len(starts) for i, key in enumerate(self.keys)}
        return pl.DataFrame(
            {
                "document": np.repeat(documents[starts], per_document),
                **keys,
                "tokens": np.repeat(windows * tokens, per_document),
                **{metric.name: added[i].T.ravel() for i, metric in enumerate(self.metrics)},
            },
            schema=self.shard_schema,
        )

    def documents(self, shards: Iterable[pl.DataFrame]) -> Iterator[DocumentSums]:
        """Document after document; one that goes on in the next shard is put together."""
        for document, parts in groupby(self._parts(shards), key=lambda part: part.document):
            pieces = list(parts)
            tokens = sum(piece.tokens for piece in pieces)
            yield DocumentSums(document, tokens, np.sum([piece.sums for piece in pieces], axis=0))

    def _parts(self, shards: Iterable[pl.DataFrame]) -> Iterator[DocumentSums]:
        rows, names = len(self.names), [metric.name for metric in self.metrics]
        for shard in shards:
            assert shard.height % rows == 0, "every document of a shard has all rows"
            for part in shard.iter_slices(rows):
                sums = part.select(names).to_numpy().T
                yield DocumentSums(part["document"][0], part["tokens"][0], np.ascontiguousarray(sums))

    def table(self, shards: Iterable[pl.DataFrame], derive: Derive | None = None) -> pl.DataFrame:
        """Means and 95 % intervals; `derive` turns a document's sums into those of these metrics and rows."""
        return self.estimated(self.documents(shards), derive or _as_they_are)

    def estimated(self, documents: Iterable[DocumentSums], derive: Derive) -> pl.DataFrame:
        """The table from documents, in one pass and constant memory."""
        moments = self.moments()
        for one in documents:
            moments.add(one.tokens, derive(one.sums).ravel())
        return self.filled(moments.estimate())

    def moments(self) -> ClusterMoments:
        """Moments for a document's sums laid end to end."""
        return ClusterMoments(len(self.metrics) * len(self.names))

    def filled(self, estimate: Estimate) -> pl.DataFrame:
        """The table of an estimate from such moments."""
        shape = (len(self.metrics), len(self.names))
        mean, low, high = (array.reshape(shape) for array in (estimate.mean, estimate.low, estimate.high))
        rows = [
            (
                *name,
                metric.name,
                metric.unit,
                *(_number(array[i, place], metric) for array in (mean, low, high)),
                estimate.tokens,
                estimate.documents,
            )
            for place, name in enumerate(self.names)
            for i, metric in enumerate(self.metrics)
        ]
        return pl.DataFrame(rows, schema=self.table_schema, orient="row")


def window_sums(
    values: Float[np.ndarray, "metrics rows tokens"], windows: int
) -> Float64[np.ndarray, "metrics rows windows"]:
    """Per-token numbers added up per window; in one order, however the numbers were stored."""
    per_window = np.ascontiguousarray(values, dtype=np.float64).reshape(*values.shape[:2], windows, -1)
    return per_window.sum(-1)


def _as_they_are(sums: Sums) -> Sums:
    return sums


def _number(value: float, metric: Metric) -> float | None:
    """A number kept within what the metric can be; None where there is none (no interval, a ratio without a base)."""
    if not np.isfinite(value):
        return None
    return float(np.clip(value, metric.lowest, metric.highest))

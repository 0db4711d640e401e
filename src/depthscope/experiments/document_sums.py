"""From values per token to shards of sums over documents, and from those to tables with intervals.

A streamed experiment measures an array of values: metrics × rows × tokens, where a row is what a value describes
(an edit at a layer, a head of a layer, either on a class of tokens). `window_sums` and `class_sums` sum them per window,
shards keep their sums and counts over each document's windows, tables have their means over tokens with intervals over
documents. All tables of estimates, including those of experiments without `Rows`, get their columns from `estimate_columns`.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Float64, Int64

from depthscope.errors import NumericError, RunError
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.metric import Metric
from depthscope.statistics.estimate import ClusterMoments, Estimate, runs

Sums = Float64[np.ndarray, "metrics rows"]
Derive = Callable[[Sums], Float64[np.ndarray, "derived rows"]]
TOKEN_CLASS = "token_class"


@dataclass(frozen=True, slots=True)
class DocumentSums:
    """One document: for each row, how many tokens were measured, and the sums over them."""

    document: int
    tokens: Int64[np.ndarray, " rows"]
    sums: Sums


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of a streamed experiment: key columns with their types, the keys of each row, and what is measured.

    All metrics of a row are over the same tokens. Metrics over different tokens are in separate rows, distinguished by a key.
    """

    keys: Mapping[str, Any]
    names: Sequence[tuple[Any, ...]]
    metrics: Sequence[Metric]
    undefined: Collection[str] = ()
    """Names of metrics that some tokens do not have, such as a ratio to zero: these may be NaN or infinite."""

    @property
    def shard_schema(self) -> dict[str, Any]:
        """Columns of a shard: one row per document and row, metrics summed over that document's tokens in the shard."""
        metrics = {metric.name: pl.Float64 for metric in self.metrics}
        return {"document": pl.Int64, **self.keys, "tokens": pl.Int64, **metrics}

    def by_class(self, classes: Sequence[str]) -> "Rows":
        """These rows on each class of tokens, in the order of `class_sums`: a row's classes are contiguous."""
        names = [(*name, one) for name, one in product(self.names, classes)]
        return Rows({**self.keys, TOKEN_CLASS: pl.String}, names, self.metrics, self.undefined)

    def shard(
        self,
        sums: Float64[np.ndarray, "metrics rows windows"],
        tokens: int | Int64[np.ndarray, "rows windows"],
        documents: Int64[np.ndarray, " windows"],
    ) -> pl.DataFrame:
        """The shard of windows; a document's windows are contiguous.

        `tokens`: the number of tokens in the sums, a single number if every row is measured on all tokens of every window.
        Raises NumericError, with row and document, for NaN or infinity in a metric that every token has: a mean over the other
        tokens would be of other text.
        """
        self._require_finite(sums, documents)
        starts, _ = runs(documents)
        counts = np.ascontiguousarray(np.broadcast_to(tokens, sums.shape[1:]), dtype=np.int64)
        added = np.add.reduceat(np.ascontiguousarray(sums), starts, axis=2)
        keys = {key: [name[i] for name in self.names] * len(starts) for i, key in enumerate(self.keys)}
        return pl.DataFrame(
            {
                "document": np.repeat(documents[starts], len(self.names)),
                **keys,
                "tokens": np.add.reduceat(counts, starts, axis=1).T.ravel(),
                **{metric.name: added[i].T.ravel() for i, metric in enumerate(self.metrics)},
            },
            schema=self.shard_schema,
        )

    def joined(self, shards: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """The shard of windows that were read in several parts: a document in two of them has one row per row again."""
        keys = ["document", *self.keys]
        return pl.concat(shards).group_by(keys, maintain_order=True).sum().select(*self.shard_schema)

    def _require_finite(
        self, sums: Float[np.ndarray, "metrics rows windows"], documents: Int64[np.ndarray, " windows"]
    ) -> None:
        for metric, of_metric in zip(self.metrics, sums, strict=True):
            if metric.name not in self.undefined and not np.isfinite(of_metric).all():
                row, window = np.argwhere(~np.isfinite(of_metric))[0]
                where = " ".join(f"{key} {value}" for key, value in zip(self.keys, self.names[row], strict=True))
                raise NumericError(
                    f"NaN or infinity in {metric.name} at {where}, in window {window} of the work unit, of document "
                    f"{documents[window]}: expected finite numbers, as the residual streams are. The quantity overflows "
                    "float32: use another --dtype or leave the document out"
                )

    def documents(self, shards: Iterable[pl.DataFrame]) -> Iterator[DocumentSums]:
        """One document after the other; parts of a document in several shards are joined.

        Parts must be joined before anything is squared: two halves of a document are not two independent documents.
        """
        for document, parts in groupby(self._parts(shards), key=lambda part: part.document):
            pieces = list(parts)
            tokens = np.sum([piece.tokens for piece in pieces], axis=0)
            yield DocumentSums(document, tokens, np.sum([piece.sums for piece in pieces], axis=0))

    def _parts(self, shards: Iterable[pl.DataFrame]) -> Iterator[DocumentSums]:
        rows, names = len(self.names), [metric.name for metric in self.metrics]
        for shard in shards:
            if shard.height % rows:
                raise RunError(
                    f"a shard has {shard.height} rows, expected {rows} for each document (by "
                    f"{', '.join(self.keys) or 'document'}): it was changed, or made by another version. Measure again with "
                    "another --out"
                )
            for part in shard.iter_slices(rows):
                sums = part.select(names).to_numpy().T
                yield DocumentSums(part["document"][0], part["tokens"].to_numpy(), np.ascontiguousarray(sums))

    def table(self, shards: Iterable[pl.DataFrame], derive: Derive | None = None) -> pl.DataFrame:
        """Means and 95 % intervals; `derive` turns a document's sums into those of these metrics."""
        return self.estimated(self.documents(shards), derive or _as_they_are)

    def estimated(self, documents: Iterable[DocumentSums], derive: Derive) -> pl.DataFrame:
        """The table from documents, in one pass and constant memory."""
        moments = self.moments()
        for one in documents:
            # A difference from a row that was measured says nothing where this one was not.
            moments.add(one.tokens, np.where(one.tokens > 0, derive(one.sums), 0.0))
        return self.filled(moments.estimate())

    def moments(self) -> ClusterMoments:
        """Moments for documents' sums, metrics × rows."""
        return ClusterMoments((len(self.metrics), len(self.names)))

    def filled(self, estimate: Estimate) -> pl.DataFrame:
        """The table of an estimate, metrics × rows: a row's metrics are contiguous."""
        names = [name for name in self.names for _ in self.metrics]
        keys = {key: [name[i] for name in names] for i, key in enumerate(self.keys)}
        by_row = estimate.columns(np.arange(estimate.mean.size).reshape(estimate.mean.shape).T.ravel())
        columns = estimate_columns(by_row, [*self.metrics] * len(self.names))
        return pl.DataFrame(keys, schema=self.keys).hstack(columns)


def estimate_columns(estimate: Estimate, metrics: Sequence[Metric]) -> pl.DataFrame:
    """The columns of ESTIMATE, one row per column of `estimate`, each for the metric at the same position.

    Values are clipped to the metric's bounds: an interval that is symmetric about a mean near a bound crosses it, and
    rounding takes a KL of 0 below 0. Null where no value exists (no interval from one document, a ratio with denominator 0).
    """
    lowest = np.array([-np.inf if metric.lowest is None else metric.lowest for metric in metrics])
    highest = np.array([np.inf if metric.highest is None else metric.highest for metric in metrics])
    numbers = {
        name: np.where(np.isfinite(values), values, np.nan)  # an infinite ratio must not be clipped to a bound
        for name, values in (("mean", estimate.mean), ("ci_low", estimate.low), ("ci_high", estimate.high))
    }
    columns = {
        "metric": [metric.name for metric in metrics],
        "unit": [metric.unit for metric in metrics],
        **{name: np.clip(known, lowest, highest) for name, known in numbers.items()},
        "tokens": np.broadcast_to(estimate.tokens, estimate.mean.shape),
        "documents": np.broadcast_to(estimate.documents, estimate.mean.shape),
    }
    return pl.DataFrame(columns, schema=ESTIMATE).with_columns(pl.col([*numbers]).fill_nan(None))


def window_sums(
    values: Float[np.ndarray, "metrics rows tokens"], windows: int
) -> Float64[np.ndarray, "metrics rows windows"]:
    """Per-token values summed per window, in a fixed order that does not depend on their memory layout."""
    per_window = np.ascontiguousarray(values, dtype=np.float64).reshape(*values.shape[:2], windows, -1)
    return per_window.sum(-1)


def class_sums(
    values: Float[np.ndarray, "metrics rows tokens"], member: Bool[np.ndarray, "classes tokens"], windows: int
) -> tuple[Float64[np.ndarray, "metrics class_rows windows"], Int64[np.ndarray, "class_rows windows"]]:
    """Per-token values summed per window over the tokens of each class, and the number of these tokens.

    `member` states which tokens are in which class: classes may overlap and omit tokens. The result has the form that
    `Rows.by_class(…).shard` takes: for each row its classes in order. A class without tokens in a document has sum 0
    and count 0 there, so the document does not count for that class.
    """
    # Tokens outside are replaced, not multiplied by 0, so that NaN or infinity does not spread to other classes.
    sums = np.stack([window_sums(np.where(inside, values, 0.0), windows) for inside in member], 2)
    counts = member.reshape(len(member), windows, -1).sum(-1)
    return sums.reshape(len(values), -1, windows), np.tile(counts, (values.shape[1], 1))


def _as_they_are(sums: Sums) -> Sums:
    return sums

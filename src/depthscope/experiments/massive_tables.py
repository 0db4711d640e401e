"""The tables of massive activations, from shards of sums over documents (experiments/massive.py)."""

from collections.abc import Iterable, Iterator, Sequence

import polars as pl

from depthscope.data.token_classes import vocabulary_of
from depthscope.experiments.document_sums import estimate_columns
from depthscope.models.model import Model
from depthscope.schema.estimates import ESTIMATE, MOMENTS
from depthscope.schema.massive import (
    BLOCK_METRICS,
    DIMENSION_METRICS,
    LARGEST,
    MASSIVE_BLOCKS_TABLE,
    MASSIVE_DIMENSIONS_TABLE,
    MASSIVE_EXTREMES_TABLE,
    MASSIVE_SHARD,
    MASSIVE_TABLE,
    MASSIVE_TOKENS_TABLE,
    METRICS,
    MOST_TOKENS,
    POSITIONS,
    SHARE,
    VALUE,
)
from depthscope.schema.metric import Metric
from depthscope.statistics.estimate import ClusterMoments

CARRIER, EXTREME = "carrier", "extreme"
"""Quantities of a shard that are no metrics: positions with massive activations by token; a document's largest magnitude."""
NOWHERE = -1
"""A key that a row has no value of."""
KEYS = ("quantity", "layer", "position", "dimension", "token")


def tables_of(shards: Iterable[pl.DataFrame], model: Model, length: int) -> dict[str, pl.DataFrame]:
    """All tables, in one pass over the shards; `length` is that of a window in tokens."""
    sums, extremes = DocumentMoments(), None
    for frame in whole_documents(shards):
        sums.add(frame.filter(pl.col("quantity") != EXTREME))
        largest = frame if extremes is None else pl.concat([extremes, frame])
        extremes = _by_magnitude(largest).unique("layer", keep="first", maintain_order=True)
    assert extremes is not None, "a text has at least one window"
    depths = range(model.depth + 1)
    by_depth = [(layer, "", NOWHERE) for layer in depths]
    by_block = [(layer, position, NOWHERE) for layer in range(model.depth) for position in POSITIONS]
    there = sums.keys_of(SHARE).sort("layer", "dimension", pl.col("position").cast(pl.Enum(POSITIONS)))
    texts = _Texts(model)
    return {
        "massive": sums.table(by_depth, METRICS).select(*MASSIVE_TABLE),
        "massive_blocks": sums.table(by_block, BLOCK_METRICS).select(*MASSIVE_BLOCKS_TABLE),
        "massive_dimensions": sums.table(
            there.select("layer", "position", "dimension").rows(), DIMENSION_METRICS
        ).select(*MASSIVE_DIMENSIONS_TABLE),
        "massive_extremes": _extremes(extremes, sums.windows, length, texts),
        "massive_tokens": _tokens(sums.keys_of(CARRIER), texts),
    }


def whole_documents(shards: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Rows of whole documents: those of a document that goes on in the next shard are held back until it ends."""
    rest: pl.DataFrame | None = None
    for shard in shards:
        frame = shard if rest is None else pl.concat([rest, shard])
        goes_on = pl.col("document") == frame["document"][-1]
        ended, rest = frame.filter(~goes_on), summed(frame.filter(goes_on))
        if not ended.is_empty():
            yield ended
    if rest is not None:
        yield rest


def summed(rows: pl.DataFrame) -> pl.DataFrame:
    """Parts of documents joined: sums over all their windows, and the largest magnitude among them."""
    sums = (
        rows.filter(pl.col("quantity") != EXTREME)
        .group_by("document", *KEYS, maintain_order=True)
        .agg(pl.col("count", "sum").sum(), pl.col("place", "median").first())
    )
    extremes = _by_magnitude(rows).unique(["document", "layer"], keep="first", maintain_order=True)
    return pl.concat([sums.select(*MASSIVE_SHARD), extremes])


class DocumentMoments:
    """Sums over documents of every key, from which estimates are computed. Its size depends on the model alone.

    Keys without a row in a document have the sum 0 there.
    """

    def __init__(self) -> None:
        self._moments: pl.DataFrame | None = None

    def add(self, rows: pl.DataFrame) -> None:
        """Add whole documents."""
        sums = rows.group_by("document", *KEYS, maintain_order=True).agg(pl.col("count", "sum").sum())
        windows = sums.filter(pl.col("quantity") == LARGEST.name, pl.col("layer") == 0)
        known = sums.join(windows.select("document", windows="count"), on="document", how="left", maintain_order="left")
        own = pl.col("quantity").is_in([VALUE.name, CARRIER])  # counts of their own, the others are over all windows
        n = pl.when(own).then("count").otherwise("windows").cast(pl.Float64)
        added = known.group_by(KEYS, maintain_order=True).agg(
            documents=pl.len().cast(pl.Int64),
            tokens=n.sum(),
            tokens_squared=(n**2).sum(),
            sum=pl.col("sum").sum(),
            square=(pl.col("sum") ** 2).sum(),
            product=(pl.col("sum") * n).sum(),
        )
        whole = added if self._moments is None else pl.concat([self._moments, added])
        self._moments = whole.group_by(KEYS, maintain_order=True).sum()

    @property
    def windows(self) -> int:
        """Of all documents."""
        return int(self._whole.row(0, named=True)["tokens"])

    def keys_of(self, metric: Metric | str) -> pl.DataFrame:
        """The keys that a quantity has rows of, with their moments."""
        assert self._moments is not None
        return self._moments.filter(quantity=metric if isinstance(metric, str) else metric.name)

    def table(self, names: Sequence[tuple[int, str, int]], metrics: Sequence[Metric]) -> pl.DataFrame:
        """Estimates of metrics at each (layer, position, dimension): a row's metrics are contiguous."""
        assert self._moments is not None
        keys = {"layer": pl.Int32, "position": pl.String, "dimension": pl.Int32}
        wanted = pl.DataFrame([name for name in names for _ in metrics], schema=keys, orient="row")
        repeated = [*metrics] * len(names)
        wanted = wanted.with_columns(pl.Series("quantity", [m.name for m in repeated], dtype=pl.String))
        wanted = wanted.with_columns(token=pl.lit(NOWHERE, dtype=pl.Int32))
        found = wanted.join(self._moments, on=KEYS, how="left", maintain_order="left")
        columns = {}
        for name in ("documents", "tokens", "tokens_squared"):
            all_windows = pl.lit(self._whole[name][0])
            own = pl.col("quantity") == VALUE.name
            columns[name] = pl.when(own).then(name).otherwise(all_windows)
        found = found.with_columns(**columns).with_columns(pl.col("sum", "square", "product").fill_null(0.0))
        if found.is_empty():
            return wanted.hstack(pl.DataFrame(schema=ESTIMATE))
        stored = {name: found[name].to_numpy() for name in MOMENTS}
        stored["tokens"] = stored["tokens"].astype("int64")
        return wanted.hstack(estimate_columns(ClusterMoments.read(stored).estimate(), repeated))

    @property
    def _whole(self) -> pl.DataFrame:
        """The row of a quantity that every document has."""
        return self.keys_of(LARGEST).filter(layer=0)


class _Texts:
    """Tokens as text, decoded when first needed."""

    def __init__(self, model: Model) -> None:
        self.vocabulary = vocabulary_of(model)

    def of(self, token: int) -> str:
        """The token as it is shown everywhere."""
        return self.vocabulary.shown(token) if token < len(self.vocabulary.texts) else f"#{token}"


def _by_magnitude(rows: pl.DataFrame) -> pl.DataFrame:
    """The rows of largest magnitudes, the largest first; of equal ones the first that was read."""
    largest = rows.filter(pl.col("quantity") == EXTREME)
    return largest.sort(pl.col("sum").abs(), descending=True, maintain_order=True)


def _extremes(best: pl.DataFrame, windows: int, length: int, texts: _Texts) -> pl.DataFrame:
    median, best = pl.col("median"), best.sort("layer")
    return best.select(
        "layer",
        "median",
        "dimension",
        "place",
        "token",
        "document",
        value="sum",
        ratio=pl.when(median > 0).then(pl.col("sum").abs() / median),
        text=pl.Series([texts.of(token) for token in best["token"]], dtype=pl.String),
        windows=pl.lit(windows, dtype=pl.Int64),
        tokens=pl.lit(windows * length, dtype=pl.Int64),
    ).select(*MASSIVE_EXTREMES_TABLE)


def _tokens(carriers: pl.DataFrame, texts: _Texts) -> pl.DataFrame:
    """The most frequent tokens of each position, ties by number."""
    rows = []
    for position in POSITIONS:
        most = carriers.filter(position=position).sort("tokens", "token", descending=[True, False]).head(MOST_TOKENS)
        for rank, row in enumerate(most.iter_rows(named=True), 1):
            rows.append((position, rank, row["token"], texts.of(row["token"]), int(row["tokens"]), row["documents"]))
    return pl.DataFrame(rows, schema=MASSIVE_TOKENS_TABLE, orient="row")

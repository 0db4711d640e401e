"""The tables of linearity from sums over documents: scores by block, their means over blocks, and the extreme blocks."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import polars as pl
from jaxtyping import Float64

from depthscope.experiments.document_sums import DocumentSums, Rows, estimate_columns
from depthscope.experiments.linear_maps import ERROR, ON_ALL, ON_LATER, STREAM_SPREAD, WRITE_SPREAD, LinearMaps
from depthscope.schema.linearity import (
    ALL,
    DROP_KL,
    EXTREMES,
    IN_SAMPLE,
    LINEAR_AGREEMENT,
    LINEAR_KL,
    LINEAR_LOSS_CHANGE,
    LINEARITY_EXTREMES_TABLE,
    LINEARITY_MEAN_TABLE,
    LOWEST,
    MEASURED,
    METRICS,
    NOT_FIRST,
    POSITIONS,
    SCORES,
)
from depthscope.schema.metric import Metric
from depthscope.statistics.estimate import LEVEL, ClusterMoments, Estimate
from depthscope.statistics.mean_ratios import RatioTotals

KEYS = {"layer": pl.Int32, "positions": pl.String}
VARIANT = {ALL: ON_ALL, NOT_FIRST: ON_LATER}
SQUARES = (
    Metric("squared_error", "squared norm", "Squared error", "‖x_{l+1} − x̂_{l+1}‖²", 0.0),
    Metric("stream_spread", "squared norm", "Spread of the stream", "‖x_{l+1} − its mean in the fit‖²", 0.0),
    Metric("write_spread", "squared norm", "Spread of the write", "‖x_{l+1} − x_l − its mean in the fit‖²", 0.0),
)
OF_EDITS = (LINEAR_KL, DROP_KL, LINEAR_AGREEMENT, LINEAR_LOSS_CHANGE)
SUMMED = (*SQUARES, *OF_EDITS)
"""Columns of shards: sums over a document's positions."""


def names_of(depth: int) -> list[tuple[int, str]]:
    """The rows: each block with each choice of positions."""
    return list(product(range(depth), POSITIONS))


@dataclass(slots=True)
class LinearityTables:
    """Sums over documents, of a size that does not depend on their number; then the tables."""

    depth: int
    maps: LinearMaps
    fitted_documents: int
    moments: ClusterMoments = field(init=False)
    """Of MEASURED: metrics × rows."""
    ratios: list[RatioTotals] = field(init=False)
    """For each choice of positions, the share that is not explained: of x_{l+1} for every block, then of the write."""

    def __post_init__(self) -> None:
        self.moments = ClusterMoments((len(MEASURED), self.depth * len(POSITIONS)))
        self.ratios = [RatioTotals(len(SCORES) * self.depth) for _ in POSITIONS]

    def add(self, document: DocumentSums) -> None:
        """Add a document."""
        error, of_stream, of_write, linear_kl, drop_kl, agreement, loss = document.sums
        self.moments.add(document.tokens, np.stack([linear_kl, drop_kl, drop_kl - linear_kl, agreement, loss]))
        for place, ratios in enumerate(self.ratios):
            rows = slice(place, None, len(POSITIONS))
            ratios.add(np.tile(error[rows], len(SCORES)), np.concatenate([of_stream[rows], of_write[rows]]))

    def by_layer(self) -> pl.DataFrame:
        """LINEARITY_TABLE."""
        return Rows(KEYS, names_of(self.depth), METRICS).filled(self._estimate())

    def means(self) -> pl.DataFrame:
        """LINEARITY_MEAN_TABLE."""
        tables = []
        for place, positions in enumerate(POSITIONS):
            defined = self.ratios[place].defined.reshape(len(SCORES), -1)
            weights = np.zeros((len(SCORES), len(SCORES), self.depth))
            for score, known in enumerate(defined):
                weights[score, score] = known / max(1, known.sum())
            score = self._explained(place, weights.reshape(len(SCORES), -1), LEVEL)
            score.mean[~defined.any(1)] = np.nan
            fitted = self._in_sample(place)
            known = np.isfinite(fitted)
            averaged = np.divide(
                np.where(known, fitted, 0).sum(1), known.sum(1), out=np.full(len(SCORES), np.nan), where=known.any(1)
            )
            columns = estimate_columns(self._joined(place, score, averaged), (*SCORES, *IN_SAMPLE))
            tables.append(columns.with_columns(positions=pl.lit(positions)))
        return pl.concat(tables).cast(pl.Schema(LINEARITY_MEAN_TABLE)).select(*LINEARITY_MEAN_TABLE)

    def extremes(self) -> pl.DataFrame:
        """LINEARITY_EXTREMES_TABLE."""
        found = list(self._extremes())
        if not found:
            return pl.DataFrame(schema=LINEARITY_EXTREMES_TABLE)
        return pl.concat(found).cast(pl.Schema(LINEARITY_EXTREMES_TABLE)).select(*LINEARITY_EXTREMES_TABLE)

    def _extremes(self) -> Iterator[pl.DataFrame]:
        usual = self._estimate()
        for (place, positions), (metric, extreme) in product(enumerate(POSITIONS), EXTREMES):
            which = METRICS.index(metric)
            means = usual.mean[which, place :: len(POSITIONS)]
            blocks = int(np.isfinite(means).sum())
            if blocks == 0:
                continue
            layer = int(np.nanargmin(means) if extreme == LOWEST else np.nanargmax(means))
            wider = self._estimate(1 - (1 - LEVEL) / blocks)
            cell = np.array([which * means.size * len(POSITIONS) + layer * len(POSITIONS) + place])
            keys = pl.DataFrame({"positions": positions, "extreme": extreme, "layer": layer})
            yield keys.hstack(estimate_columns(wider.columns(cell), [metric])).with_columns(blocks=pl.lit(blocks))

    def _estimate(self, level: float = LEVEL) -> Estimate:
        """Of METRICS: metrics × rows, with intervals of this level."""
        of_edits = self.moments.estimate(level)
        each = np.eye(len(SCORES) * self.depth)
        parts = [
            self._joined(place, self._explained(place, each, level), self._in_sample(place).ravel())
            for place in range(len(POSITIONS))
        ]

        def column(name: str) -> np.ndarray:
            """A field of the estimates, metrics × rows: a block's positions are contiguous."""
            scores = np.stack([getattr(part, name) for part in parts], -1).reshape(len(SCORES) + len(IN_SAMPLE), -1)
            return np.concatenate([scores, np.broadcast_to(getattr(of_edits, name), of_edits.mean.shape)])

        return Estimate(*(column(name) for name in Estimate.__slots__))

    def _explained(self, place: int, weights: Float64[np.ndarray, "functions cells"], level: float) -> Estimate:
        """1 minus weighted sums of the shares that are not explained."""
        rest = self.ratios[place].estimate(weights, level)
        return Estimate(1 - rest.mean, 1 - rest.high, 1 - rest.low, rest.tokens, rest.documents)

    def _in_sample(self, place: int) -> Float64[np.ndarray, "scores blocks"]:
        """SCORES on the text that the maps were fitted on; NaN where nothing varies."""
        fitted = self.maps.fitted[list(VARIANT.values())[place]].numpy()
        error, spreads = fitted[:, ERROR], fitted[:, [STREAM_SPREAD, WRITE_SPREAD]].T
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(spreads > 0, 1 - error / spreads, np.nan)

    def _joined(self, place: int, score: Estimate, fitted: Float64[np.ndarray, " values"]) -> Estimate:
        """Scores on the measured text, then those of the fit, which have no interval."""
        none, same = np.full_like(fitted, np.nan), np.ones(len(fitted), dtype=np.int64)
        measured = int(np.asarray(self.moments.tokens).ravel()[place])
        tokens = int(self.maps.tokens[list(VARIANT.values())[place]])
        return Estimate(
            np.concatenate([score.mean, fitted]),
            np.concatenate([score.low, none]),
            np.concatenate([score.high, none]),
            np.concatenate([same * measured, same * tokens]),
            np.concatenate([same * score.documents, same * self.fitted_documents]),
        )

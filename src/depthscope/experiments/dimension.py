"""Intrinsic dimension, anisotropy and effective rank of the last tokens' residual streams, at every depth.

The points of a depth are one per window, the last token's: in one window, neighbouring positions would be each other's
nearest neighbours. Windows of the same document may still be. Intervals are from a jackknife that leaves out one group of
documents at a time: a bootstrap would put copies of a point at distance 0.
"""

from collections.abc import Iterable

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64
from scipy import stats

from depthscope.data.windows import Windows
from depthscope.errors import DataError
from depthscope.experiments.document_sums import Rows
from depthscope.experiments.experiment import Subject
from depthscope.experiments.geometry import LastTokens
from depthscope.models.model import Model
from depthscope.schema.dimension import (
    ANISOTROPY,
    EFFECTIVE_RANK,
    GRIDE,
    NEIGHBOURS,
    POINT_METRICS,
    POINTS,
    TWO_NN,
)
from depthscope.statistics import intrinsic_dimension as shape
from depthscope.statistics.estimate import Estimate
from depthscope.statistics.jackknife import Scale, effective_number, jackknife_interval

NAME = "dimension"
GROUPS = 20
LEAST = 16
"""Points: below, neighbours are too far apart to say anything."""


class Dimension(LastTokens):
    """POINT_METRICS and GRIDE of x_0 … x_L. A reading of the shared pass; `windows` are all windows of the text.

    Raises DataError for a text of fewer than LEAST windows.
    """

    name = NAME

    def __init__(self, model: Model, windows: Windows) -> None:
        if len(windows) < LEAST:
            raise DataError(
                f"{len(windows)} windows are too few points for an intrinsic dimension: expected at least {LEAST}, so more "
                "--tokens or a shorter --window"
            )
        super().__init__(model, windows, POINTS)
        self.settings = {"windows": min(POINTS, len(windows)), "neighbours": list(NEIGHBOURS), "groups": GROUPS}

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """DIMENSION_TABLE and DIMENSION_SCALES_TABLE."""
        residuals, documents = self.gathered(shards)
        scales = [n for n in NEIGHBOURS if 4 * n <= len(documents)]
        names = [*POINT_METRICS, *(GRIDE for _ in scales)]
        columns = [of_points(residuals[:, depth].astype(np.float64), documents, scales) for depth in range(self.depths)]
        values, low, high, points, counted = (np.stack(part, 1) for part in zip(*columns, strict=True))
        of_metric = [Estimate(values[i], low[i], high[i], points[i], counted[i]) for i in range(len(names))]
        depths = [(depth,) for depth in range(self.depths)]
        whole = [
            Rows({"layer": pl.Int32}, depths, [metric]).filled(_as_row(found))
            for metric, found in zip(POINT_METRICS, of_metric, strict=False)
        ]
        scaled = [
            Rows({"layer": pl.Int32, "neighbours": pl.Int32}, [(*depth, n) for depth in depths], [GRIDE]).filled(
                _as_row(found)
            )
            for n, found in zip(scales, of_metric[len(POINT_METRICS) :], strict=True)
        ]
        return {NAME: pl.concat(whole), "dimension_scales": pl.concat(scaled)}


def make(subject: Subject) -> Dimension:
    """The geometry of the last tokens of the first windows of the text."""
    return Dimension(subject.model, subject.windows)


Column = Float64[np.ndarray, " metrics"]


def of_points(
    points: Float64[np.ndarray, "points d_model"], documents: Int64[np.ndarray, " points"], scales: list[int]
) -> tuple[Column, Column, Column, Int64[np.ndarray, " metrics"], Int64[np.ndarray, " metrics"]]:
    """POINT_METRICS and GRIDE at each scale: values, ends of intervals, numbers of points and of documents.

    Copies of a point are left out of the dimensions; anisotropy and rank are of all points.
    """
    first = shape.distinct(points)
    apart = shape.distances(points[first])
    groups = _groups(documents)
    values = _values(points, apart, scales)
    without = np.array(
        [
            _values(points[groups != group], apart[np.ix_(*2 * [groups[first] != group])], scales)
            for group in np.unique(groups)
        ]
    ).T
    number = effective_number(np.bincount(groups).astype(np.float64))
    bounds = [_interval(value, left, number, i) for i, (value, left) in enumerate(zip(values, without, strict=True))]
    low, high = np.array(bounds).T
    ranks = [metric in (ANISOTROPY, EFFECTIVE_RANK) for metric in POINT_METRICS] + [False] * len(scales)
    counts, of_documents = (
        np.where(ranks, whole, part)
        for whole, part in (
            (len(points), int(first.sum())),
            (len(np.unique(documents)), len(np.unique(documents[first]))),
        )
    )
    return values, low, high, counts, of_documents


def _values(
    points: Float64[np.ndarray, "points d_model"], apart: Float64[np.ndarray, "distinct distinct"], scales: list[int]
) -> Column:
    shares = shape.spectrum(points)
    most = min(2 * max(scales, default=1), len(apart) - 1)
    nearest = shape.neighbours(apart, most) if most > 1 else np.empty((len(apart), 0))
    found = {
        TWO_NN: shape.two_nn(nearest),
        ANISOTROPY: shares[0] if len(shares) else np.nan,
        EFFECTIVE_RANK: np.exp(stats.entropy(shares)) if len(shares) else np.nan,
    }
    return np.array([*(found[metric] for metric in POINT_METRICS), *(shape.gride(nearest, n) for n in scales)])


def _interval(value: float, without: Float64[np.ndarray, " groups"], number: float, place: int) -> tuple[float, float]:
    """On a logarithmic scale, a share on the logit's; NaN without two groups, or where a value is missing or at its bound."""
    metric = POINT_METRICS[place] if place < len(POINT_METRICS) else GRIDE
    scale = Scale(metric.lowest or 0.0, np.inf if metric.highest is None else metric.highest)
    if len(without) < 2 or not np.isfinite(scale.free(np.append(without, value))).all():
        return np.nan, np.nan
    return jackknife_interval(value, without, without, number, scale)


def _groups(documents: Int64[np.ndarray, " points"]) -> Int64[np.ndarray, " points"]:
    """At most GROUPS groups of whole documents, of equal numbers of documents."""
    _, place = np.unique(documents, return_inverse=True)
    return place.ravel() % GROUPS


def _as_row(estimate: Estimate) -> Estimate:
    parts = (estimate.mean, estimate.low, estimate.high, estimate.tokens, estimate.documents)
    return Estimate(*(np.asarray(part)[None] for part in parts))

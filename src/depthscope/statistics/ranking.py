"""Comparing many estimates at once: their order, and which of them exceed a value, corrected for multiple testing."""

import numpy as np
from jaxtyping import Float64, Int64
from scipy import stats

from depthscope.statistics.estimate import LEVEL, Count, Estimate

PerColumn = Float64[np.ndarray, " columns"]


def ranks(mean: PerColumn) -> Int64[np.ndarray, " columns"]:
    """The rank of each mean, 1 for the largest; among equal means the first has the lower rank."""
    places = np.empty(len(mean), dtype=np.int64)
    places[np.argsort(-mean, kind="stable")] = np.arange(1, len(mean) + 1)
    return places


def standard_error(estimate: Estimate, level: float = LEVEL) -> PerColumn:
    """The standard error behind an estimate's interval, of `level`; NaN without an interval."""
    return (estimate.high - estimate.mean) / stats.t.ppf((1 + level) / 2, np.maximum(estimate.documents - 1, 1))


def p_above(floor: PerColumn, mean: PerColumn, error: PerColumn, documents: Count) -> PerColumn:
    """One-sided p values of mean > floor by Student's t over documents, like the intervals; NaN where the error is NaN.

    For an error of 0, p is 0 or 1: certainly above, or not.
    """
    certain = np.where(mean > floor, np.inf, -np.inf)
    t = np.divide(mean - floor, error, out=certain, where=error != 0)
    return stats.t.sf(t, np.maximum(documents - 1, 1))


def adjusted(p: PerColumn) -> PerColumn:
    """p values adjusted after Benjamini and Hochberg (1995): selecting those below q keeps the false discovery rate at q.

    This holds if the tests are independent or positively dependent, which is assumed for heads of one model on the same text.
    All are returned unchanged if any is NaN.
    """
    return p if np.isnan(p).any() else stats.false_discovery_control(p, method="bh")

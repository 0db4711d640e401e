"""Many estimates compared at once: their order, and which of them stand above zero when all are asked together."""

import numpy as np
from jaxtyping import Float64, Int64
from scipy import stats

from depthscope.measure.estimate import LEVEL, Estimate


def ranks(mean: Float64[np.ndarray, " columns"]) -> Int64[np.ndarray, " columns"]:
    """The place of each mean, 1 for the largest; of equal ones the first comes first."""
    places = np.empty(len(mean), dtype=np.int64)
    places[np.argsort(-mean, kind="stable")] = np.arange(1, len(mean) + 1)
    return places


def p_above_zero(estimate: Estimate, level: float = LEVEL) -> Float64[np.ndarray, " columns"]:
    """One-sided p values of mean > 0 by Student's t over documents, as the estimate's interval; NaN without an interval.

    `level` is the interval's. A mean without spread is 0 or 1: certainly above zero, or not.
    """
    if estimate.documents < 2:
        return np.full_like(estimate.mean, np.nan)
    freedom = estimate.documents - 1
    error = (estimate.high - estimate.mean) / stats.t.ppf((1 + level) / 2, freedom)
    certain = np.where(estimate.mean > 0, np.inf, -np.inf)
    t = np.divide(estimate.mean, error, out=certain, where=error > 0)
    return stats.t.sf(t, freedom)


def adjusted(p: Float64[np.ndarray, " columns"]) -> Float64[np.ndarray, " columns"]:
    """p values adjusted after Benjamini and Hochberg (1995): taking those below q keeps the false discovery rate at q.

    That holds where the tests are independent or depend positively on each other, which heads of one model read on the
    same text are taken to do. NaN where there is none.
    """
    return p if np.isnan(p).any() else stats.false_discovery_control(p, method="bh")

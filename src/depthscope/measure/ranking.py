"""Many estimates compared at once: their order, and which of them stand above a number when all are asked together."""

import numpy as np
from jaxtyping import Float64, Int64
from scipy import stats

from depthscope.measure.estimate import LEVEL, Estimate

PerColumn = Float64[np.ndarray, " columns"]


def ranks(mean: PerColumn) -> Int64[np.ndarray, " columns"]:
    """The place of each mean, 1 for the largest; of equal ones the first comes first."""
    places = np.empty(len(mean), dtype=np.int64)
    places[np.argsort(-mean, kind="stable")] = np.arange(1, len(mean) + 1)
    return places


def standard_error(estimate: Estimate, level: float = LEVEL) -> PerColumn:
    """The standard error that an estimate's interval, of `level`, was made from; NaN without an interval."""
    if estimate.documents < 2:
        return np.full_like(estimate.mean, np.nan)
    return (estimate.high - estimate.mean) / stats.t.ppf((1 + level) / 2, estimate.documents - 1)


def p_above(floor: PerColumn, mean: PerColumn, error: PerColumn, documents: int) -> PerColumn:
    """One-sided p values of mean > floor by Student's t over documents, as the intervals; NaN where the error is.

    A mean without error is 0 or 1: certainly above, or not.
    """
    certain = np.where(mean > floor, np.inf, -np.inf)
    t = np.divide(mean - floor, error, out=certain, where=error != 0)
    return stats.t.sf(t, max(documents - 1, 1))


def adjusted(p: PerColumn) -> PerColumn:
    """p values adjusted after Benjamini and Hochberg (1995): taking those below q keeps the false discovery rate at q.

    That holds where the tests are independent or depend positively on each other, which heads of one model read on the
    same text are taken to do. NaN where there is none.
    """
    return p if np.isnan(p).any() else stats.false_discovery_control(p, method="bh")

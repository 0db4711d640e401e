"""Paired comparisons: the same examples with and without a change, and how two rankings of changes agree.

Two systems that answer the same examples mostly agree, so the standard error of each alone says little about their difference.
What decides is the difference by example (Miller 2024, *Adding Error Bars to Evals*, section 4.2). Examples that belong
together, such as those made from one passage, are one cluster.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from scipy import stats

from depthscope.statistics.estimate import LEVEL, estimate_of

REPLICATES = 1000
LEAST_CLUSTERS = 10
"""Fewer give no bootstrap interval: resamples of a few clusters are mostly the same few."""
Triple = tuple[float, float, float]
"""An estimate and the bounds of its 95 % interval, NaN where there is none."""
PerExample = Float64[np.ndarray, " examples"]
Clusters = Int64[np.ndarray, " examples"]


def paired_mean(edited: PerExample, unmodified: PerExample, clusters: Clusters) -> Triple:
    """The mean difference by example, with its t interval over clusters."""
    order = np.argsort(clusters, kind="stable")
    found = estimate_of((edited - unmodified)[None, order], clusters[order])
    return float(found.mean[0]), float(found.low[0]), float(found.high[0])


def paired_ratio(
    numerators: Float64[np.ndarray, "2 examples"],
    denominators: PerExample,
    clusters: Clusters,
    transform: Callable[[Any], Any],
    seed: int = 0,
) -> Triple:
    """The difference of transform(Σ numerator / Σ denominator), first row minus second, with a percentile bootstrap interval
    from LEAST_CLUSTERS clusters on.

    Clusters are drawn with replacement, the same ones for both rows: a perplexity is exp(−Σ log p / Σ 1).
    """
    _, place = np.unique(clusters, return_inverse=True)
    units = int(place.max()) + 1
    of_unit = np.stack([np.bincount(place, row, units) for row in (*numerators, denominators)])

    def difference(sums: np.ndarray) -> Any:  # an array, or one number for one row of sums
        with np.errstate(all="ignore"):
            return transform(sums[..., 0] / sums[..., 2]) - transform(sums[..., 1] / sums[..., 2])

    whole = float(difference(of_unit.sum(1)))
    if units < LEAST_CLUSTERS:
        return whole, np.nan, np.nan
    drawn = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), REPLICATES)
    return whole, *_percentiles(difference(drawn @ of_unit.T))


def paired_bootstrap(
    edited: Sequence[Any],
    unmodified: Sequence[Any],
    clusters: Clusters,
    aggregate: Callable[[list[Any]], float],
    seed: int = 0,
    replicates: int = REPLICATES,
) -> Triple:
    """The same for any function of a list of per-example results, such as a task's own aggregation."""
    _, place = np.unique(clusters, return_inverse=True)
    units = int(place.max()) + 1
    members = [np.flatnonzero(place == unit) for unit in range(units)]

    def difference(rows: Sequence[int]) -> float:
        return float(aggregate([edited[row] for row in rows])) - float(aggregate([unmodified[row] for row in rows]))

    whole = difference(range(len(edited)))
    if units < LEAST_CLUSTERS:
        return whole, np.nan, np.nan
    chance = np.random.default_rng(seed)
    drawn = [
        difference(np.concatenate([members[unit] for unit in chance.integers(units, size=units)]).tolist())
        for _ in range(replicates)
    ]
    return whole, *_percentiles(np.array(drawn))


def _percentiles(replicates: np.ndarray) -> tuple[float, float]:
    if not np.isfinite(replicates).all():
        return np.nan, np.nan
    low, high = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def spearman(first: PerExample, second: PerExample) -> Triple:
    """Spearman's rank correlation with an approximate 95 % interval; NaN for a constant input, or fewer than 4 pairs.

    The interval is Fisher's z with the variance (1 + ρ²/2) / (n − 3) of Bonett and Wright (2000, Psychometrika 65), who
    recommend it for |ρ| < 0.95; it takes the pairs for independent.
    """
    if len(first) < 4 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return np.nan, np.nan, np.nan
    rho = float(np.clip(np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1], -1, 1))
    if abs(rho) > 1 - 1e-12:
        return rho, np.nan, np.nan
    half = stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt((1 + rho**2 / 2) / (len(first) - 3))
    return rho, float(np.tanh(np.arctanh(rho) - half)), float(np.tanh(np.arctanh(rho) + half))

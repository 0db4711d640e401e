"""Intervals for many means at once, so that the best of them, picked after looking, is covered too.

The interval of one mean has its level for a mean named in advance. The lowest of hundreds of estimates is lowest partly by
chance, and its own interval misses far more often than 1 in 20 (`python -m benchmarks.best_cell`). The intervals here cover
all means together with 95 % probability, hence also whichever is picked, by whatever rule.

They are studentised bootstrap intervals of the maximum (Beran 1988; Romano and Wolf 2005). An observation is a document: the
estimate of cell c is the ratio μ_c = Σ_d S_dc / Σ_d n_d with the linearised standard error s_c of statistics/estimate.py. In
each replicate the documents are drawn with replacement, the same ones for all cells, which keeps the cells' correlation, and

    t*_c = (g(μ*_c) − g(μ_c)) / (g'(μ*_c) s*_c)

is computed for every cell, with g the logarithm for quantities above 0, such as KL, and else the identity. With h the 97.5 %
quantile over replicates of max_c t*_c and l the 2.5 % quantile of min_c t*_c, the interval of every cell is, on the scale of g,

    g(μ_c) − h g'(μ_c) s_c  to  g(μ_c) − l g'(μ_c) s_c.

Why not a multiplier bootstrap or a multivariate t distribution: documents' KL is skewed, so that a cell whose estimate is low
also has a low standard error, and both assume that it has not; here each replicate is studentised anew, which shows the skew.
docs/experiments/map.md has the simulated coverage of both. Why not splitting the documents, one half to pick and one to
estimate: the reported cell would be the best of half of the text, and a reader could look up no other cell of the map.

More than GROUPS documents are joined into that many groups, in turn, so memory does not grow with the text.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

from depthscope.statistics.estimate import LEVEL

REPLICATES = 2000
GROUPS = 512
"""The d-th document belongs to group d modulo GROUPS: up to this number, each is a group of its own."""
FEWEST = 10
"""With fewer groups there are no intervals: a replicate would often draw nearly the same document throughout."""
AT_ONCE = 1 << 22
"""Numbers of replicates × cells in memory at once."""

PerCell = Float64[np.ndarray, " cells"]


@dataclass(frozen=True, slots=True)
class Together:
    """Estimates of many cells with simultaneous intervals; NaN where there is none."""

    mean: PerCell
    low: PerCell
    high: PerCell


class GroupedSums:
    """Sums over documents of several quantities, kept by group of documents: constant size, one document at a time."""

    def __init__(self, columns: int) -> None:
        self.documents = 0
        self.tokens = np.zeros(GROUPS)
        self.sums = np.zeros((GROUPS, columns))

    def add(self, tokens: int, sums: Float64[np.ndarray, " columns"]) -> None:
        """Add one whole document of `tokens` tokens over which the quantities sum to `sums`."""
        self.tokens[self.documents % GROUPS] += tokens
        self.sums[self.documents % GROUPS] += sums
        self.documents += 1

    def intervals(
        self, columns: Iterable[int], positive: bool, replicates: int = REPLICATES, seed: int = 0
    ) -> Together:
        """Simultaneous intervals of these columns; `positive`: whether the quantity cannot be negative, as KL."""
        there = self.tokens > 0
        return together(self.sums[there][:, list(columns)], self.tokens[there], positive, replicates, seed)


def together(
    sums: Float64[np.ndarray, "groups cells"],
    tokens: Float64[np.ndarray, " groups"],
    positive: bool,
    replicates: int = REPLICATES,
    seed: int = 0,
    level: float = LEVEL,
) -> Together:
    """Means over tokens with intervals that cover all of them at once with probability `level`.

    `sums` and `tokens` of independent groups of documents. A cell without spread over groups has its mean as interval, and one
    that has no logarithm, although `positive`, none; neither takes part in the maximum.
    """
    groups = len(tokens)
    (mean,), (error,) = _moments(np.ones((1, groups)), sums, tokens)
    none = np.full_like(mean, np.nan)
    if groups < FEWEST:
        return Together(mean, none, none)
    spread = error > 1e-12 * np.abs(mean)
    used = spread & (mean > 0) if positive else spread
    lowest, highest = _extremes(sums[:, used], tokens, mean[used], positive, replicates, seed) if used.any() else (0, 0)
    tail = (1 - level) / 2
    below, above = np.quantile(highest, 1 - tail), np.quantile(lowest, tail)
    low, high = np.where(spread, np.nan, mean), np.where(spread, np.nan, mean)
    if positive:
        share = error[used] / mean[used]
        with np.errstate(over="ignore"):
            low[used], high[used] = mean[used] * np.exp(-below * share), mean[used] * np.exp(-above * share)
    else:
        low[used], high[used] = mean[used] - below * error[used], mean[used] - above * error[used]
    return Together(mean, low, high)


def _extremes(
    sums: Float64[np.ndarray, "groups cells"],
    tokens: Float64[np.ndarray, " groups"],
    mean: PerCell,
    positive: bool,
    replicates: int,
    seed: int,
) -> tuple[Float64[np.ndarray, " replicates"], Float64[np.ndarray, " replicates"]]:
    """The lowest and the highest studentised deviation over cells, in each replicate."""
    groups, generator = len(tokens), np.random.default_rng(seed)
    at_once = max(1, AT_ONCE // sums.shape[1])
    lowest, highest = [], []
    for start in range(0, replicates, at_once):
        drawn = generator.multinomial(groups, np.full(groups, 1 / groups), min(at_once, replicates - start))
        means, errors = _moments(drawn.astype(np.float64), sums, tokens)
        with np.errstate(divide="ignore", invalid="ignore"):
            deviations = (np.log(means) - np.log(mean)) * means if positive else means - mean
            t = deviations / errors
        known: Bool[np.ndarray, "replicates cells"] = np.isfinite(t)
        lowest.append(np.where(known, t, np.inf).min(1))
        highest.append(np.where(known, t, -np.inf).max(1))
    return np.concatenate(lowest), np.concatenate(highest)


def _moments(
    weights: Float64[np.ndarray, "replicates groups"],
    sums: Float64[np.ndarray, "groups cells"],
    tokens: Float64[np.ndarray, " groups"],
) -> tuple[Float64[np.ndarray, "replicates cells"], Float64[np.ndarray, "replicates cells"]]:
    """Means and their linearised standard errors (statistics/estimate.py) with each group counted `weights` times."""
    groups, total = len(tokens), (weights @ tokens)[:, None]
    mean = weights @ sums / total
    residual = weights @ sums**2 - 2 * mean * (weights @ (sums * tokens[:, None]))
    residual += mean**2 * (weights @ tokens**2)[:, None]
    # Rounding can take a residual of equal groups below zero.
    factor = groups / (groups - 1) if groups > 1 else np.nan
    return mean, np.sqrt(np.maximum(residual, 0) * factor) / total

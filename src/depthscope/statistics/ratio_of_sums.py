"""Ratios of sums over documents, and where along a sequence of places such a ratio crosses a level.

With A_d and B_d the sums of two quantities over document d, the ratio ρ = Σ A_d / Σ B_d has the linearised variance

    var(ρ) = D / (D − 1) · Σ_d (A_d − ρ B_d)² / (Σ_d B_d)²

as the mean over tokens has, where B_d is a number of tokens (estimate.py). A ratio of sums, not a mean of ratios: where the
denominator is small, a ratio is mostly noise, and here such pairs weigh little. Memory grows with the number of documents, so
the caller bounds it.
"""

import numpy as np
from jaxtyping import Float64
from scipy import stats

from depthscope.statistics.estimate import LEVEL, Estimate
from depthscope.statistics.simultaneous import FEWEST

REPLICATES = 2_000

Sums = Float64[np.ndarray, "documents places"]
PerDocument = Float64[np.ndarray, " documents"]


def ratio_estimate(sums: Sums, denominators: PerDocument, tokens: int) -> Estimate:
    """Σ sums / Σ denominators of each column with its 95 % interval; NaN where all denominators are 0."""
    documents, total = len(denominators), denominators.sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = sums.sum(0) / total
        squares = ((sums - ratio * denominators[:, None]) ** 2).sum(0)
        error = np.sqrt(squares * (documents / (documents - 1) if documents > 1 else np.nan)) / total
        half = error * stats.t.ppf((1 + LEVEL) / 2, max(documents - 1, 1))
    return Estimate(ratio, ratio - half, ratio + half, tokens, documents)


def crossing(ratios: Float64[np.ndarray, "rows places"], level: float, rising: bool) -> Float64[np.ndarray, " rows"]:
    """The first place where each row crosses the level, linearly interpolated between places; NaN where it never does.

    Rising: from at most the level to above it; falling: from at least the level to below it. A row that begins beyond the level
    crosses it at 0.
    """
    beyond = ratios > level if rising else ratios < level
    first = beyond.argmax(1)
    rows, before = np.arange(len(ratios)), np.maximum(first - 1, 0)
    step = ratios[rows, first] - ratios[rows, before]
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = before + (level - ratios[rows, before]) / step
    found = np.where(first > 0, inside, 0.0)
    return np.where(beyond.any(1), found, np.nan)


def crossing_estimate(
    sums: Sums, denominators: PerDocument, level: float, rising: bool, tokens: int, seed: int = 0
) -> Estimate:
    """The place of the crossing with a 95 % percentile interval over bootstrap replicates of the documents.

    No interval from fewer than FEWEST documents, or where more than the tail's share of replicates never crosses.
    """
    documents = len(denominators)
    with np.errstate(divide="ignore", invalid="ignore"):
        place = crossing((sums.sum(0) / denominators.sum())[None], level, rising)
        low, high = np.array([np.nan]), np.array([np.nan])
        if documents >= FEWEST:
            drawn = np.random.default_rng(seed).multinomial(documents, np.full(documents, 1 / documents), REPLICATES)
            places = crossing(drawn @ sums / (drawn @ denominators)[:, None], level, rising)
            if np.isnan(places).mean() < (1 - LEVEL) / 2:
                low, high = np.nanquantile(places, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])[:, None]
    return Estimate(place, low, high, tokens, documents)

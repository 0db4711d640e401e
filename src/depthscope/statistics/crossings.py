"""Where curves over depth cross a threshold, for resampled curves at once: a depth with an interval of depths.

A crossing is found on the mean curve, so its uncertainty is not that of a mean: it is found again on the mean curve of every
bootstrap replicate of the documents. A curve may have no crossing; then no depth is named, and the share of replicates that
have one says how close it came. For curves that are ratios of sums over documents, `crossing_estimate` finds the place between
two depths, linearly interpolated; memory grows with the number of documents, so the caller bounds it.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from depthscope.statistics.estimate import LEVEL, Estimate
from depthscope.statistics.simultaneous import FEWEST

REPLICATES = 2_000
NONE = -1
"""The depth of a curve without a crossing."""
Curves = Float64[np.ndarray, "curves depths"]
Depths = Int64[np.ndarray, " curves"]


@dataclass(frozen=True, slots=True)
class Crossing:
    """A depth, its interval, and the share of replicates with a crossing (NaN without replicates).

    `depth` is None where the curve has no crossing; `low` and `high` are then None too, and if there are fewer than two
    documents. The interval holds 95 % of the replicates that have a crossing.
    """

    depth: int | None
    low: int | None
    high: int | None
    exists: float


def last_turn(curves: Curves) -> Depths:
    """The last depth at which a curve is negative and at the next depth is not; NONE if there is none."""
    with np.errstate(invalid="ignore"):
        turns = (curves[:, :-1] < 0) & (curves[:, 1:] >= 0)
    return np.where(turns.any(1), turns.shape[1] - 1 - turns[:, ::-1].argmax(1), NONE) if turns.size else _none(curves)


def first_below(curves: Curves, share: float) -> Depths:
    """The first depth at which a curve is below this share of its maximum; NONE if there is none."""
    with np.errstate(invalid="ignore"):
        return _first(curves < share * curves.max(1, keepdims=True))


def first_above(curves: Curves, threshold: float) -> Depths:
    """The first depth at which a curve is above a threshold; NONE if there is none."""
    with np.errstate(invalid="ignore"):
        return _first(curves > threshold)


def crossing(found: Depths, drawn: Bool[np.ndarray, " curves"], documents: int) -> Crossing:
    """From the depth on the mean curve (row 0) and on those of replicates; `drawn`: which rows are of any document."""
    replicates = found[1:][drawn[1:]]
    there = replicates[replicates != NONE]
    exists = len(there) / len(replicates) if len(replicates) and documents > 1 else np.nan
    if found[0] == NONE:
        return Crossing(None, None, None, exists)
    if documents < 2 or not len(there):
        return Crossing(int(found[0]), None, None, exists)
    # Outwards to depths that occur: an interval of depths is not narrower than its level.
    low = np.quantile(there, (1 - LEVEL) / 2, method="lower")
    high = np.quantile(there, (1 + LEVEL) / 2, method="higher")
    return Crossing(int(found[0]), int(low), int(high), exists)


def _first(crossed: Bool[np.ndarray, "curves depths"]) -> Depths:
    return np.where(crossed.any(1), crossed.argmax(1), NONE)


def _none(curves: Curves) -> Depths:
    return np.full(len(curves), NONE)


def interpolated(
    ratios: Float64[np.ndarray, "rows places"], level: float, rising: bool
) -> Float64[np.ndarray, " rows"]:
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
    sums: Float64[np.ndarray, "documents places"],
    denominators: Float64[np.ndarray, " documents"],
    level: float,
    rising: bool,
    tokens: int,
    seed: int = 0,
) -> Estimate:
    """The place of the crossing with a 95 % percentile interval over bootstrap replicates of the documents.

    No interval from fewer than FEWEST documents, or where more than the tail's share of replicates never crosses.
    """
    documents = len(denominators)
    with np.errstate(divide="ignore", invalid="ignore"):
        place = interpolated((sums.sum(0) / denominators.sum())[None], level, rising)
        low, high = np.array([np.nan]), np.array([np.nan])
        if documents >= FEWEST:
            drawn = np.random.default_rng(seed).multinomial(documents, np.full(documents, 1 / documents), REPLICATES)
            places = interpolated(drawn @ sums / (drawn @ denominators)[:, None], level, rising)
            if np.isnan(places).mean() < (1 - LEVEL) / 2:
                low, high = np.nanquantile(places, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])[:, None]
    return Estimate(place, low, high, tokens, documents)

"""Where along an ordered list of samples a mean has done half of its change, with bootstrap intervals over documents."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from depthscope.statistics.estimate import LEVEL
from depthscope.statistics.simultaneous import FEWEST

REPLICATES = 2_000
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
Columns = Float64[np.ndarray, " columns"]


@dataclass(frozen=True, slots=True)
class HalfChange:
    """The change from the first place to the last of each column and the place of its half, with 95 % intervals.

    Bounds are NaN with fewer than ten documents; the place is NaN where the change's interval contains 0 or there is none.
    """

    change: Columns
    change_low: Columns
    change_high: Columns
    place: Columns
    low: Columns
    high: Columns


def half_change(
    sums: Float64[np.ndarray, "documents places columns"],
    tokens: Int64[np.ndarray, " documents"],
    places: Float64[np.ndarray, " places"],
    seed: int = 0,
) -> HalfChange:
    """From each document's sums at every place, all over the same `tokens`, and the places' increasing coordinates.

    A mean μ(place) crosses the middle (μ(first) + μ(last)) / 2 first where it is on the last mean's side of it, interpolated
    linearly between places. A replicate draws documents with replacement, the same ones at every place.
    """
    documents, counts = len(tokens), tokens.astype(np.float64)
    ratio = np.einsum("dpc->pc", sums) / counts.sum()
    change, place = ratio[-1] - ratio[0], _crossings(ratio[None], places)[0]
    nothing = np.full(len(change), np.nan)
    if documents < FEWEST:
        return HalfChange(change, nothing, nothing, nothing, nothing, nothing)
    drawn = np.random.default_rng(seed).multinomial(documents, np.full(documents, 1 / documents), REPLICATES)
    drawn = drawn.astype(np.float64)
    ratios = np.tensordot(drawn, sums, 1) / (drawn @ counts)[:, None, None]
    change_low, change_high = np.quantile(ratios[:, -1] - ratios[:, 0], TAILS, axis=0)
    changed = (change_low > 0) | (change_high < 0)
    low, high = np.full_like(nothing, np.nan), np.full_like(nothing, np.nan)
    if changed.any():
        low[changed], high[changed] = np.quantile(_crossings(ratios[..., changed], places), TAILS, axis=0)
    return HalfChange(change, change_low, change_high, np.where(changed, place, np.nan), low, high)


def _crossings(
    ratios: Float64[np.ndarray, "rows places columns"], places: Float64[np.ndarray, " places"]
) -> Float64[np.ndarray, "rows columns"]:
    """The first crossing of the middle by each curve; a curve that does not change crosses at the first place."""
    middle = (ratios[:, :1] + ratios[:, -1:]) / 2
    above = np.sign(ratios[:, -1:] - ratios[:, :1]) * (ratios - middle)
    first = np.maximum((above > 0).argmax(1), 1)
    before = np.take_along_axis(above, first[:, None] - 1, 1)[:, 0]
    after = np.take_along_axis(above, first[:, None], 1)[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(after > before, -before / (after - before), 0.0)
    return places[first - 1] + np.clip(share, 0, 1) * (places[first] - places[first - 1])

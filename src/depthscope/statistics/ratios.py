"""Ratios of two sums over documents, streaming, with intervals over documents.

With a_d and b_d the two quantities' sums over a document, the ratio is R = Σ a_d / Σ b_d, and its variance, linearised,

    var(R) = D / (D − 1) · Σ_d (a_d − R b_d)² / (Σ_d b_d)²

for D documents (Cochran, Sampling Techniques, 3rd ed. 1977, section 6.3). The means of `statistics.estimate` are the case in
which b_d is the number of tokens. The 95 % interval uses Student's t with D − 1 degrees of freedom.
"""

import numpy as np
from jaxtyping import Float64
from scipy import stats

from depthscope.statistics.estimate import LEVEL, Estimate

PerColumn = Float64[np.ndarray, " columns"]


class RatioMoments:
    """Sums over documents from which ratios are estimated. Constant size, whatever the number of documents."""

    def __init__(self, columns: int) -> None:
        self.documents = self.tokens = 0
        self.above, self.below = np.zeros(columns), np.zeros(columns)
        self.squares, self.products, self.below_squares = np.zeros(columns), np.zeros(columns), np.zeros(columns)

    def add(self, tokens: int, above: PerColumn, below: PerColumn) -> None:
        """Add one document of `tokens` tokens with its sums of the quantities above and below the line."""
        self.documents += 1
        self.tokens += tokens
        self.above += above
        self.below += below
        self.squares += above**2
        self.products += above * below
        self.below_squares += below**2

    def estimate(self) -> Estimate:
        """The ratios with their intervals; NaN where the quantity below the line is 0, no bounds from one document."""
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = self.above / self.below
            residual = self.squares - 2 * ratio * self.products + ratio**2 * self.below_squares
            # Rounding can take a residual of equal documents below zero.
            factor = self.documents / (self.documents - 1) if self.documents > 1 else np.nan
            error = np.sqrt(np.maximum(residual, 0) * factor) / np.abs(self.below)
        half = error * (stats.t.ppf((1 + LEVEL) / 2, self.documents - 1) if self.documents > 1 else np.nan)
        return Estimate(ratio, ratio - half, ratio + half, self.tokens, self.documents)


def ratio_estimate(
    above: Float64[np.ndarray, "documents columns"], below: Float64[np.ndarray, " documents"], tokens: int
) -> Estimate:
    """Σ above / Σ below of each column, from documents that are all in memory, over `tokens` tokens in total."""
    moments = RatioMoments(above.shape[1])
    for one, denominator in zip(above, below, strict=True):
        moments.add(0, one, np.full(above.shape[1], denominator))
    moments.tokens = tokens
    return moments.estimate()

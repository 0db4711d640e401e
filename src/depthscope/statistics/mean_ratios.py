"""Ratios of totals over documents, such as an error to a variance, and means of several, with intervals over documents.

A cell c is a ratio u_c = Σ_d N_dc / Σ_d D_dc of numerators to denominators of documents, and a function is a weighted sum
u = Σ_c w_c u_c. Documents are the unit of sampling. With the gradient g of u in all totals, its standard error, linearised, is

    se² = D / (D − 1) · Σ_d (g · z_d)²,    z_d = (N_d1, …, D_d1, …),    g = (w_c / ΣD_c, …, −w_c u_c / ΣD_c, …)

for D documents: for one ratio that of statistics/estimate.py, with the denominator in place of the number of tokens. u does not
change where all totals are multiplied by a number, so g · Σ z_d = 0 and no mean has to be subtracted. Since u is positive, the
interval is that of log u, u · exp(± t · se / u), with Student's t with D − 1 degrees of freedom: it cannot cross 0.

Sums of z and of z zᵀ are kept, whatever the number of documents.
"""

import numpy as np
from jaxtyping import Float64
from scipy import stats

from depthscope.statistics.estimate import LEVEL, Estimate

Cells = Float64[np.ndarray, " cells"]


class RatioTotals:
    """Sums over documents for ratios that are not negative."""

    def __init__(self, cells: int) -> None:
        self.documents = 0
        self.totals = np.zeros(2 * cells)
        self.products = np.zeros((2 * cells, 2 * cells))

    def add(self, numerators: Cells, denominators: Cells) -> None:
        """Add one document."""
        both = np.concatenate([numerators, denominators])
        self.documents += 1
        self.totals += both
        self.products += np.outer(both, both)

    @property
    def defined(self) -> np.ndarray:
        """Which cells have a ratio: their denominators do not all vanish."""
        return self.totals[len(self.totals) // 2 :] > 0

    def estimate(
        self, weights: Float64[np.ndarray, "functions cells"], level: float = LEVEL, positive: bool = True
    ) -> Estimate:
        """Weighted sums of the ratios; NaN where a cell with a weight has no ratio. One document gives no interval.

        `positive`: whether they cannot be negative, so that the interval is that of their logarithm; else it is symmetric.
        """
        above, below = np.split(self.totals, 2)
        known = self.defined
        scale = np.divide(1.0, below, out=np.zeros_like(below), where=known)
        ratios = above * scale
        value = weights @ ratios
        value[((weights != 0) & ~known).any(1)] = np.nan
        gradient = np.concatenate([weights * scale, -weights * ratios * scale], 1)
        # Rounding can take a variance of 0 below it.
        spread = np.maximum(np.einsum("fi,ij,fj->f", gradient, self.products, gradient), 0)
        half = np.full_like(value, np.nan)
        if self.documents > 1:
            error = np.sqrt(spread * self.documents / (self.documents - 1))
            if not positive:
                half = error * stats.t.ppf((1 + level) / 2, self.documents - 1)
                return Estimate(value, value - half, value + half, self.documents, self.documents)
            relative = np.divide(
                error, value, out=np.zeros_like(value), where=value > 0
            )  # a ratio of 0 is 0 everywhere
            half = relative * stats.t.ppf((1 + level) / 2, self.documents - 1)
        with np.errstate(over="ignore"):
            low, high = value * np.exp(-half), value * np.exp(half)
        return Estimate(value, low, high, self.documents, self.documents)

"""Intervals that are valid together at several planned looks, for a run that stops when they are narrow enough.

An ordinary 95 % interval is valid at one look, fixed in advance; with many looks, one of them eventually misses. Repeated
confidence intervals (Jennison and Turnbull, J. R. Stat. Soc. B 51, 1989) cover the mean at all planned looks at once with 95 %
probability, hence also at the look at which one stops, for whatever reason:

    mean ± c · s,    P(max over looks of |Z_k| ≤ c) = 0.95

where s is the standard error at the look and c one constant for all looks (Pocock 1977). What is read between two looks may be
in any order and is not looked at.

**Windows are read in random order**, drawn without regard to what they contain. A document is an independent observation, and
so are the windows of it that have been read after a share p of all windows: their tokens n_d(p) and sum S_d(p). The mean
μ(p) = Σ S_d(p) / Σ n_d(p) is a ratio estimator at every p, of the same quantity as that of the whole text, and its standard
error is that over documents (statistics/estimate.py). For its linearised residuals e = S − μ n and p < q, each window being
read by p with probability p,

    Cov(μ(p), μ(q)) ∝ (1/q) Σ_i e_i² + Σ_{i≠j} e_i e_j = Var(μ(q))      (windows i, j of a document)

so the means have the independent increments of a sequence of sample means, with information 1 / Var in place of the number of
observations: corr(Z_k, Z_m) = √(I_k / I_m), as in Jennison and Turnbull (*Group Sequential Methods*, 2000, section 3.1). If all
windows were independent, information would grow as the number of windows. Windows of a document are alike, so it grows more
slowly, the Z_k are correlated more strongly, and c, which is computed for independent windows, is a little too large.

Looks are at numbers of windows that grow by GROWTH from one to the next, the first once FEWEST documents have been begun, the
last at the end of the text. The schedule does not depend on the goal, so a finer goal may follow a coarser one. Like an
ordinary interval, this one corrects for the estimation of s with Student's t with D − 1 degrees of freedom for D documents, at
the tail probability that c has under the normal distribution.

The level is per column: each mean is covered at all looks with 95 % probability, not all means together.

Coverage on recorded KL of real models, at the look at which one stops: `benchmarks/precision/coverage.py`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64
from scipy import optimize, stats

from depthscope.statistics.estimate import LEVEL, ClusterMoments, Estimate

FEWEST = 40
"""With fewer documents there is no interval: the standard error of skewed values would be too imprecise."""
GROWTH = 1.2
"""Windows at a look as a multiple of those at the look before."""
NODES = 96
"""Of the Gauss-Legendre rule with which the distribution of the largest |Z| is integrated."""


def look_schedule(documents: Int64[np.ndarray, " windows"]) -> list[int]:
    """After how many windows to look; `documents` are the documents of the windows in reading order.

    The first look is the first at which FEWEST documents have been begun, the last is after all windows, alone if there are
    fewer documents.
    """
    begun = np.sort(np.unique(documents, return_index=True)[1])
    last = len(documents)
    looks = [] if len(begun) < FEWEST else [int(begun[FEWEST - 1]) + 1]
    while looks and looks[-1] < last:
        looks.append(min(last, int(np.ceil(looks[-1] * GROWTH))))
    return looks or [last]


def critical_value(looks: Sequence[int], level: float = LEVEL) -> float:
    """c: the quantile of the largest |Z| over looks after these numbers of independent observations."""
    keep = np.sqrt(np.array(looks[:-1]) / np.array(looks[1:]))
    nodes, weights = np.polynomial.legendre.leggauss(NODES)

    def missed(bound: float) -> float:
        """P(any |Z| > bound) − (1 − level), by the recursion of Armitage, McPherson and Rowe (1969)."""
        places = bound * nodes
        inside = stats.norm.pdf(places)
        for share in keep:
            spread = np.sqrt(1 - share**2)
            inside = stats.norm.pdf((places[:, None] - share * places) / spread) / spread @ (bound * weights * inside)
        return level - float((bound * weights * inside).sum())

    root: Any = optimize.brentq(missed, stats.norm.ppf((1 + level) / 2) - 1e-6, 6.0, xtol=1e-6)
    return float(root)


class RepeatedIntervals:
    """Means with such intervals for many columns at once, from sums over parts of documents.

    A document's parts may come apart, and a column may be measured on some of them only. Memory: documents × columns.
    """

    def __init__(self, columns: int, critical: float) -> None:
        self.columns, self.critical = columns, critical
        self._tokens: dict[int, Int64[np.ndarray, " columns"]] = {}
        self._sums: dict[int, Float64[np.ndarray, " columns"]] = {}

    @property
    def documents(self) -> int:
        """Documents begun."""
        return len(self._tokens)

    def add(self, document: int, tokens: Int64[np.ndarray, " columns"], sums: Float64[np.ndarray, " columns"]) -> None:
        """Add a part of a document: of each column, the number of tokens and the sum over them, both 0 if not measured."""
        self._tokens[document] = self._tokens.get(document, 0) + tokens
        self._sums[document] = self._sums.get(document, 0.0) + sums

    def estimate(self) -> Estimate:
        """The means and intervals at this look; NaN for bounds of a column with fewer than FEWEST documents.

        Raises ValueError if nothing was added.
        """
        moments = ClusterMoments(self.columns)
        for document, tokens in self._tokens.items():
            moments.add(tokens, self._sums[document])
        found = moments.estimate(1 - 2 * float(stats.norm.sf(self.critical)))
        few = np.asarray(found.documents) < FEWEST
        low, high = (np.where(few, np.nan, bound) for bound in (found.low, found.high))
        return Estimate(found.mean, low, high, found.tokens, found.documents)

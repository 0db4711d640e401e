"""Intervals that stay valid although they are checked after every document and measuring stops when they are narrow enough.

An ordinary 95 % interval is valid for one number of documents, fixed in advance; with many checks, one of them eventually
misses. A confidence sequence covers the mean at all checks simultaneously with 95 % probability, hence also at the check at
which one stops, for whatever reason. Here it is the asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and
Ramdas ("Time-uniform central limit theory and asymptotic confidence sequences", Annals of Statistics 2024), in its variant for
independent and identically distributed observations, which is derived from Robbins' mixture over normal distributions: after D
documents

    mean ± s · √( (Dρ² + 1) / (Dρ²) · log( (Dρ² + 1) / α² ) ),   ρ² = (−2 log α + log(1 − 2 log α)) / TIGHTEST

where s is the standard error. An observation is a document: s is that of the ratio estimator (statistics/estimate.py), whose
linearised residuals are the independent observations, and documents must arrive in an order that is independent of them. ρ
makes the interval tightest, relative to an ordinary one, around TIGHTEST documents, about where goals of 5 to 10 % are met:
there it is 1.55 times as wide, after 100 documents 1.7 times, after 10,000 documents 1.7 times. It is fixed, so the sequence
is the same whatever precision is requested, and a finer goal may follow a coarser one on the same documents.

The formula assumes a known standard error. Like the ordinary interval, this one corrects for its estimation with Student's t
with D − 1 degrees of freedom, at the tail probability that the factor has under the normal distribution. For many documents
the correction vanishes. Before FEWEST documents there is no interval.

The level is per column: each mean is covered at all checks with 95 % probability, not all means together. For all together
`level` would have to be 1 − α / rows (Bonferroni): wider intervals, and about twice as much text for a goal.

Simulated coverage (`benchmarks/coverage.py`, 8,000 simulations each, checks after every document from FEWEST to 1,500, tokens
skewed as KL is, documents of equal or unequal length that differ by a log-normal factor): at all checks simultaneously 96.4 %
if the factor's spread is 0.3 and 93.8 to 95.1 % if it is 0.6; at the check at which the interval is first within ±5, 10 or
20 % of its mean, 97.7 % and more. (An ordinary interval covers at all checks in 56 to 57 % of cases.) If documents differ
as much as with a spread of 1.0, it is 87.0 % at all checks: heavier tails need more documents than FEWEST.
"""

import numpy as np
from jaxtyping import Float64
from scipy import stats

from depthscope.statistics.estimate import LEVEL, ClusterMoments, Estimate

FEWEST = 40
"""With fewer documents there is no interval: the standard error of skewed values would be too imprecise."""
TIGHTEST = 400
"""The number of documents around which the sequence is tightest."""


def boundary(documents: int, level: float = LEVEL) -> float:
    """Half the width of the sequence after this many documents, in standard errors of a known variance."""
    miss = 1 - level
    scaled = documents * (-2 * np.log(miss) + np.log(1 - 2 * np.log(miss))) / TIGHTEST
    return float(np.sqrt((scaled + 1) / scaled * np.log((scaled + 1) / miss**2)))


class ConfidenceSequence:
    """The sequence for many means at once, from sums over documents: constant size, one document at a time, mergeable."""

    def __init__(self, columns: int, level: float = LEVEL) -> None:
        self.level = level
        self.moments = ClusterMoments(columns)

    def add(self, tokens: int, sums: Float64[np.ndarray, " columns"]) -> None:
        """Add one whole document of `tokens` tokens over which the quantities sum to `sums`."""
        self.moments.add(tokens, sums)

    def merge(self, other: "ConfidenceSequence") -> None:
        """Add the other's documents, which must be different ones."""
        self.moments.merge(other.moments)

    def estimate(self) -> Estimate:
        """The current means and intervals, which are NaN before FEWEST documents. Raises ValueError if nothing was added."""
        documents = int(self.moments.documents)  # one number: every document is seen by all columns
        if documents < FEWEST:
            mean = self.moments.estimate().mean
            unknown = np.full_like(mean, np.nan)
            return Estimate(mean, unknown, unknown, self.moments.tokens, documents)
        return self.moments.estimate(1 - 2 * float(stats.norm.sf(boundary(documents, self.level))))

"""The mean over random draws of a set, on a sample of documents: an interval over both.

Draws and documents are crossed: every draw is measured on the same documents. The variance of the mean over draws is
estimated as

    var = var_documents(mean over draws) + s² / R

with the ratio estimator's variance over documents of the sums averaged over draws (see estimate.py), and the variance s² of
the R draws' means. The interaction of draws and documents is in both parts, so their sum is too large by one such term: the
interval is conservative. Student's t has the lower of both numbers minus one as degrees of freedom.
"""

import numpy as np
from jaxtyping import Float64, Int64
from scipy import stats

from depthscope.statistics.estimate import LEVEL, ClusterMoments, Estimate


def mean_over_draws(
    tokens: Int64[np.ndarray, " documents"], sums: Float64[np.ndarray, "draws columns documents"]
) -> Estimate:
    """Means over draws and tokens with 95 % intervals, of sums over documents. NaN bounds for one draw or one document."""
    draws, columns, documents = sums.shape
    moments = ClusterMoments(columns)
    for place, count in enumerate(tokens.tolist()):
        moments.add(count, sums[:, :, place].mean(0))
    found = moments.estimate()
    degrees = min(draws, documents) - 1
    if degrees < 1:
        nothing = np.full(columns, np.nan)
        return Estimate(found.mean, nothing, nothing, found.tokens, found.documents)
    of_documents = (found.high - found.low) / 2 / stats.t.ppf((1 + LEVEL) / 2, documents - 1)
    of_draws = sums.sum(2).std(0, ddof=1) / tokens.sum() / np.sqrt(draws)
    half = np.hypot(of_documents, of_draws) * stats.t.ppf((1 + LEVEL) / 2, degrees)
    return Estimate(found.mean, found.mean - half, found.mean + half, found.tokens, found.documents)

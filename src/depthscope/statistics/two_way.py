"""Means over documents and over random draws (seeds), with an interval over both.

K draws are all measured on the same D documents, so a value varies with its draw, with its document, and with the pair:
variance σ²_K / K + σ²_D / D + σ²_KD / (K D) for the mean over both. The interval uses

    V = V_D + V_K

with V_D the cluster-robust variance over documents of the mean over draws (statistics/estimate.py), which estimates σ²_D / D
+ σ²_KD / (K D), and V_K = Σ_k (m_k − m)² / (K (K − 1)) over the draws' means m_k, which estimates σ²_K / K + σ²_KD / (K D).
The last term is counted twice, which makes the interval a little too wide and the variance never negative; Cameron, Gelbach
and Miller (2011) subtract it, Owen (2007) keeps it. Degrees of freedom after Satterthwaite (1946) from D − 1 and K − 1.
"""

import numpy as np
from jaxtyping import Float64
from scipy import stats

from depthscope.statistics.estimate import LEVEL, Estimate
from depthscope.statistics.ranking import standard_error

PerColumn = Float64[np.ndarray, " columns"]


def over_both(
    over_documents: Estimate, per_draw: Float64[np.ndarray, "draws columns"], level: float = LEVEL
) -> Estimate:
    """The estimate with its interval over documents and draws.

    `over_documents`: the mean over draws with its 95 % interval over documents. `per_draw`: the mean of each draw over
    documents, whose mean it is. Without an interval over documents, or with a single draw, there is none.
    """
    draws = len(per_draw)
    error = standard_error(over_documents)
    if draws < 2:
        unknown = np.full_like(over_documents.mean, np.nan)
        return Estimate(over_documents.mean, unknown, unknown, over_documents.tokens, over_documents.documents)
    documents_part, draws_part = error**2, per_draw.var(0, ddof=1) / draws
    total = documents_part + draws_part
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = total**2 / (
            documents_part**2 / np.maximum(np.asarray(over_documents.documents) - 1, 1) + draws_part**2 / (draws - 1)
        )
        half = np.where(total > 0, np.sqrt(total) * stats.t.ppf((1 + level) / 2, freedom), error)
    mean = over_documents.mean
    return Estimate(mean, mean - half, mean + half, over_documents.tokens, over_documents.documents)

"""Which lens can be read: the logit lens where its KL falls with depth, otherwise the first fitted lens whose KL does (the
tuned lens, then the Jacobian lens), otherwise none.

The KL divergence of the logit lens to the final distribution rises to mid-depth in some models, whose residual streams are
not yet in the basis of the unembedding. "Share of the progress made" has no meaning on such a curve.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64

from depthscope.schema.lens import FITTED

MOST_RISE = 0.1
"""A curve is monotone enough if it rises, in total, by at most this share of what it falls."""


def monotone_enough(kl: Float64[np.ndarray, " depths"]) -> bool:
    """Whether lens KL at x_0 to x_L falls steadily from x_1: the sum of its rises is at most MOST_RISE of that of its falls.

    x_0, the embedding, is left out: a lens can read it only because of tied weights. A curve that never falls, or is not
    finite, cannot be read.
    """
    steps = np.diff(kl[1:])
    falls = -steps[steps < 0].sum()
    return bool(np.isfinite(steps).all() and falls > 0 and steps[steps > 0].sum() <= MOST_RISE * falls)


def lens_to_read(values: Mapping[str, Float64[np.ndarray, "_ _"]]) -> str | None:
    """The lens whose values can be read, by the first row of its KL: "lens" (the run's), the first of FITTED that can, or None.

    The first row, of the original documents, decides for all replicates.
    """
    for lens in ("lens", *FITTED):
        if f"{lens}.kl" in values and monotone_enough(values[f"{lens}.kl"][0]):
            return lens
    return None

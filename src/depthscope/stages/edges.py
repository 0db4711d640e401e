"""Whether the first or the last layer is exceptional: further from a smooth continuation of the others than they scatter.

A layer at an end is no run of layers, so this gives no boundary and no name. The p-value is the posterior probability that the
layer lies on the other side, with the trend, the autocorrelation and the noise of all other layers unknown (`smooth_steps`).
"""

import numpy as np

from depthscope.schema.found_stages import Edge
from depthscope.schema.stages import LEVEL
from depthscope.stages.signals import Rows
from depthscope.stages.transitions import holm
from depthscope.statistics.smooth_steps import smooth_steps

TESTED = ("drop", "swap")
FEWEST = 8


def edges(rows: Rows, values: Rows) -> list[Edge]:
    """Both ends, for each of TESTED that was measured; `values` has the KL divergences whose logarithm `rows` holds."""
    tried = []
    for name in TESTED:
        if name not in rows or rows[name].shape[1] < FEWEST:
            continue
        own, kl = rows[name][0], values[f"{name}.kl"][0]
        middle = float(np.median(kl[1:-1]))
        for end, part, layer in (("first", own[:-1], 0), ("last", own[1:], len(own) - 1)):
            evidence = smooth_steps(len(part), 1).evidence(part[:, None])
            rises = float(evidence.rises[0 if end == "first" else -1, 0])
            tried.append(
                (name, end, layer, float(kl[layer]) / max(middle, 1e-12), rises if end == "first" else 1 - rises)
            )
    corrected = holm(np.array([p for *_, p in tried]).reshape(-1, 1))[:, 0].tolist()
    return [
        Edge(end=end, layer=layer, signal=name, ratio=ratio, p=corrected[i], exceptional=corrected[i] <= LEVEL)
        for i, (name, end, layer, ratio, _) in enumerate(tried)
    ]

"""In how many of several independent models a finding holds: partial conjunction tests (Benjamini and Heller 2008).

The hypothesis "it holds in fewer than k of n models" is tested by the n − k + 1 largest of the models' p-values. Combined by
Bonferroni's inequality, as here, the p-value is valid however the models depend on each other (they may share training text):
(n − k + 1) times the k-th smallest.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64


def at_least(p_values: Sequence[float]) -> Float64[np.ndarray, " models"]:
    """p-values of "it holds in at least k models" for k = 1 … n; they never fall with k.

    >>> at_least([0.01, 0.04, 0.3]).tolist()
    [0.03, 0.08, 0.3]
    """
    ordered = np.sort(np.asarray(p_values, dtype=np.float64))
    count = len(ordered)
    return np.maximum.accumulate(np.minimum(ordered * (count - np.arange(count)), 1.0))


def most(p_values: Sequence[float], level: float) -> int:
    """The largest k such that the finding holds in at least k models at this level; 0 if in none.

    The tests for k = 1, 2, … are nested, so no correction for trying several is needed.
    """
    return int((at_least(p_values) <= level).sum()) if len(p_values) else 0

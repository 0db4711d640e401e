"""Streaming resampling of documents: the Poisson bootstrap.

Each replicate weights each document by an independent Poisson(1) draw. For many documents this is equivalent to drawing
documents with replacement (Hanley and MacGibbon 2006), and needs neither their number in advance nor a second pass. The draws
depend only on the document's number and the seed, so that separately measured experiments are resampled identically, and a
resumed run is resampled like an uninterrupted one. For the jackknife (`jackknife.py`) documents are grouped by their number,
and each group is left out in turn. Memory: (replicates + groups) × columns.
"""

import numpy as np
from jaxtyping import Float64

from depthscope.statistics.estimate import Count

REPLICATES = 1000
GROUPS = 64
"""Document d belongs to jackknife group d modulo GROUPS."""


class PoissonBootstrap:
    """Ratio estimates of column means over tokens, for the original documents and for each replicate."""

    def __init__(self, columns: int, replicates: int = REPLICATES, seed: int = 0) -> None:
        self.seed, self.replicates = seed, replicates
        self.documents = 0
        self._tokens = np.zeros((1 + replicates, 1))
        self._sums = np.zeros((1 + replicates, columns))
        self._group_tokens = np.zeros((GROUPS, 1))
        self._group_sums = np.zeros((GROUPS, columns))

    def add(self, document: int, tokens: Count, sums: Float64[np.ndarray, " columns"]) -> None:
        """Add one document, given by its number, with `tokens` tokens over which the quantities sum to `sums`.

        `tokens` is an array where columns are over different tokens; it is 0 for a column that was not measured.
        """
        # A separate generator for each document: the weights must not depend on which documents came before.
        drawn = np.random.default_rng([self.seed, document]).poisson(1.0, self.replicates)
        counts = np.concatenate([[1.0], drawn])
        self.documents += 1
        self._tokens = self._tokens + counts[:, None] * tokens
        self._sums += counts[:, None] * sums
        added = np.zeros((GROUPS, 1))
        added[document % GROUPS] = 1.0
        self._group_tokens = self._group_tokens + added * tokens
        self._group_sums[document % GROUPS] += sums

    def means(self) -> Float64[np.ndarray, "rows columns"]:
        """Row 0 from the original documents, then one row per replicate; NaN if a replicate drew no document."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._sums / self._tokens

    def without_groups(self) -> Float64[np.ndarray, "groups columns"]:
        """The means without each jackknife group in turn; NaN for groups without documents, and if there is only one group."""
        tokens = self._tokens[0] - self._group_tokens
        with np.errstate(invalid="ignore", divide="ignore"):
            means = (self._sums[0] - self._group_sums) / tokens
        # A group that one column lacks changes that column's mean by nothing.
        some = np.any(self._group_tokens > 0, axis=1, keepdims=True)
        return np.where(some & (tokens > 0), means, np.nan)

    @property
    def group_tokens(self) -> Float64[np.ndarray, " groups"]:
        """Tokens of each jackknife group, of the column that has the fewest in all."""
        return self._group_tokens[:, np.argmin(self._group_tokens.sum(0))]

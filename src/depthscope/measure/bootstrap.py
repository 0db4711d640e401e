"""Resampling documents, streamed: the Poisson bootstrap.

Each replicate counts each document as often as an independent Poisson(1) number says, which for many documents is what
drawing documents with replacement amounts to (Hanley and MacGibbon 2006), and needs neither their number in advance nor the
documents twice. The numbers come from the document's own number and the seed, so that experiments read apart resample
alike, and an interrupted run resamples as an uninterrupted one. Memory: replicates × columns.
"""

import numpy as np
from jaxtyping import Float64

REPLICATES = 1000


class PoissonBootstrap:
    """Ratio estimates of column means over tokens, for the documents as they are and for each replicate."""

    def __init__(self, columns: int, replicates: int = REPLICATES, seed: int = 0) -> None:
        self.seed, self.replicates = seed, replicates
        self.documents = 0
        self._tokens = np.zeros(1 + replicates)
        self._sums = np.zeros((1 + replicates, columns))

    def add(self, document: int, tokens: int, sums: Float64[np.ndarray, " columns"]) -> None:
        """Count one document, by its number, with `tokens` tokens over which the quantities add up to `sums`."""
        drawn = np.random.default_rng([self.seed, document]).poisson(1.0, self.replicates)
        counts = np.concatenate([[1.0], drawn])
        self.documents += 1
        self._tokens += counts * tokens
        self._sums += counts[:, None] * sums

    def means(self) -> Float64[np.ndarray, "rows columns"]:
        """Row 0 from the documents as they are, then a row per replicate; NaN where a replicate drew no document."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self._sums / self._tokens[:, None]

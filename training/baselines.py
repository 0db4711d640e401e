"""Unigram and bigram models of the token stream: what a language model must beat to have learnt anything.

Both are fitted on the training tokens and smoothed so that no token has probability 0.

    unigram   p(b)     = (n(b) + 1) / (N + V)                    one occurrence added to each token
    bigram    p(b | a) = (n(a, b) + s p(b)) / (n(a) + s)         a Dirichlet prior of strength s about the unigram
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.corpus import TokenMap

PRIOR_STRENGTH = 10.0
PAIRS_AT_ONCE = 1 << 24

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Baselines:
    """Counts of training tokens, [vocabulary], and of adjacent pairs, [vocabulary, vocabulary] (first, second)."""

    tokens: Counts
    pairs: Counts

    def unigram(self) -> npt.NDArray[np.float64]:
        """Probability of each token, [vocabulary]."""
        return (self.tokens + 1) / (self.tokens.sum() + len(self.tokens))

    def unigram_loss(self, targets: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Loss of each target in nats, the shape of `targets`."""
        return -np.log(self.unigram()[targets])

    def bigram_loss(self, inputs: npt.NDArray[np.int64], targets: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Loss in nats of each target after its input, both of one shape, which is the result's."""
        followed = self.pairs.sum(axis=1)[inputs]
        smoothed = self.pairs[inputs, targets] + PRIOR_STRENGTH * self.unigram()[targets]
        return -np.log(smoothed / (followed + PRIOR_STRENGTH))


def fit(tokens: TokenMap, vocabulary: int) -> Baselines:
    """Count the tokens and pairs of a training stream, a piece at a time.

    Raises ValueError where a token lies outside the vocabulary.
    """
    pairs = np.zeros(vocabulary * vocabulary, dtype=np.int64)
    counts = np.zeros(vocabulary, dtype=np.int64)
    for first in range(0, len(tokens), PAIRS_AT_ONCE):
        piece = np.asarray(tokens[first : first + PAIRS_AT_ONCE + 1], dtype=np.int64)
        if piece.max() >= vocabulary:
            raise ValueError(f"token {piece.max()} lies outside the vocabulary of {vocabulary:,}")
        counts += np.bincount(piece[:PAIRS_AT_ONCE], minlength=vocabulary)
        pairs += np.bincount(piece[:-1] * vocabulary + piece[1:], minlength=len(pairs))
    return Baselines(counts, pairs.reshape(vocabulary, vocabulary))

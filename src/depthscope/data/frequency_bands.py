"""Bands of tokens by how frequent they are in a text: ranks 1 to 10, 11 to 100, 101 to 1,000, and the rest.

They are counted in the source that is measured: all next tokens of the first COUNTED_TOKENS of it, each position once, or of
the measured windows where these are more. So the bands depend neither on how much is measured, up to that, nor on how it is
cut into work units, nor on the model beyond its tokenizer.
"""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int64

from depthscope.data.corpus import Corpus
from depthscope.data.windows import Windows, make_windows
from depthscope.errors import DataError
from depthscope.models.model import Model
from depthscope.schema.guess_refine import BANDS, RANKS

COUNTED_TOKENS = 131_072
"""Few enough to read in a second or two; the 1,000th of the ranks occurs some ten times among as many."""


@dataclass(frozen=True, slots=True)
class FrequencyBands:
    """The band of every vocabulary entry, as a place in BANDS."""

    of: Int64[np.ndarray, " vocab"]
    tokens: int
    """Tokens that were counted."""
    distinct: int

    def record(self) -> dict[str, Any]:
        """What determines the bands, as JSON values."""
        digest = hashlib.sha256(np.ascontiguousarray(self.of, dtype="<i8").tobytes()).hexdigest()
        return {
            "ranks": list(RANKS),
            "counted_tokens": self.tokens,
            "distinct_tokens": self.distinct,
            "bands_sha256": digest,
        }


def counted_text(corpus: Corpus, model: Model, measured: Windows, bos: str) -> Windows:
    """The windows whose tokens are counted: of the source's first COUNTED_TOKENS, or the measured ones if these are more."""
    if measured.tokens >= COUNTED_TOKENS:
        return measured
    return make_windows(replace(corpus, tokens=COUNTED_TOKENS), model, length=measured.length, bos=bos)


def frequency_bands(windows: Windows, vocabulary: int) -> FrequencyBands:
    """The bands by the next tokens of `windows`. Equally frequent tokens are ranked by id; tokens that do not occur are in
    the last band.

    Raises DataError if all tokens that occur would be in the first band.
    """
    counts = np.bincount(windows.ids[:, 1:].ravel(), minlength=vocabulary)
    distinct = int((counts > 0).sum())
    if distinct <= RANKS[0]:
        raise DataError(
            f"the text has {distinct} different tokens: expected more than {RANKS[0]}, to tell frequent tokens from others. "
            "Use more --tokens or other text"
        )
    order = np.argsort(-counts, kind="stable")[:distinct]
    of = np.full(vocabulary, len(BANDS) - 1)
    of[order] = np.searchsorted(RANKS, np.arange(distinct), side="right")
    return FrequencyBands(of, int(counts.sum()), distinct)

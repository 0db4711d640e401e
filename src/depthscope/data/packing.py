"""Packing: short documents joined until they fill a window, a separator after each.

Documents that fill a window are left as they are. Shorter ones are joined in the order they come, whole but for the last,
whose rest is not used; each window of joined documents is a *pack*. No document lies in two packs. In a pack attention
reaches across documents, so what is measured in one depends on those before it: the pack, not the document, is the independent
unit, and takes the document's place in intervals. It has the number of its first document. Only documents of one cluster are
joined.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64

from depthscope.errors import DataError
from depthscope.models.model import Model


@dataclass(frozen=True, slots=True)
class Pack:
    """Joined documents that fill one window: token ids, and the number of the document each belongs to."""

    ids: Int32[np.ndarray, " tokens"]
    owner: Int64[np.ndarray, " tokens"]
    """A separator belongs to the document it ends."""


def separator(model: Model) -> int:
    """The token that goes between two documents: EOS, or else BOS. Raises DataError for a tokenizer that has neither."""
    tokenizer: Any = model.require_tokenizer()
    for token in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        if token is not None:
            return int(token)
    raise DataError(
        f"the tokenizer of {model.name} has neither an EOS nor a BOS token to separate documents with, so --pack cannot be "
        "done: give a shorter --window, or documents that are joined already"
    )


@dataclass(slots=True)
class Packer:
    """Joins documents into packs of `tokens` tokens."""

    separator: int
    tokens: int
    waiting: int = 0
    """Documents of the pack that is not full yet."""
    _ids: list[int] = field(default_factory=list)
    _owner: list[int] = field(default_factory=list)

    def add(self, number: int, ids: Int32[np.ndarray, " n"]) -> Pack | None:
        """Join document `number`; the pack, where that fills it."""
        own = ids.tolist()
        # A template or a tokenizer may have written one already.
        own += [] if own[-1:] == [self.separator] else [self.separator]
        self._ids += own
        self._owner += [number] * len(own)
        self.waiting += 1
        if len(self._ids) < self.tokens:
            return None
        full = Pack(np.array(self._ids[: self.tokens], np.int32), np.array(self._owner[: self.tokens], np.int64))
        self._ids, self._owner, self.waiting = [], [], 0
        return full

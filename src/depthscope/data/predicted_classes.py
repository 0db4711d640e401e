"""Which class each predicted token of some windows is in: schema/token_classes.py has the classes and their definitions.

A prediction at position t of a window is of the token at t + 1, the last column of `Windows.ids` included. All classes follow
from the window alone, from the whole text's frequencies, counted once, and from the unmodified model's entropy, so that a
token's classes are the same in work units of any size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float, Int, Int32, Int64

from depthscope.data.token_classes import PATTERNS, token_texts
from depthscope.data.windows import Windows
from depthscope.models.model import Model
from depthscope.schema.token_classes import (
    CLASSINGS,
    CONTEXT_EDGES,
    ENTROPY,
    ENTROPY_EDGES,
    FREQUENCY,
    KIND,
    LONGEST_REPEATED,
    POSITION,
    RANK_EDGES,
    REPEATED,
    WORD_PLACE,
    Classing,
)

Labels = Int[np.ndarray, "windows length"]
"""The number of the class, in its classing, of the token predicted at each position."""

KINDS = {
    "whitespace": r"^$",
    "digits": PATTERNS["digits"],
    "punctuation": PATTERNS["punctuation"],
    "capital": r"^['’]?\p{Lu}",
    "lower_case": r"^['’]?\p{L}",
}
"""Patterns on a token's text without white space at its ends, the first that fits; the rest are `other`."""
BEGINS, FOLLOWS, ENDS = r"^\s*['’]?[\p{L}\p{M}\p{N}]", r"^['’]?[\p{L}\p{M}\p{N}]", r"[\p{L}\p{M}\p{N}]$"
"""A token's text begins with (part of) a word; with one that goes on, if one came before; ends in a word."""


@dataclass(frozen=True, slots=True)
class PredictedClasses:
    """The classes of predicted tokens that a model and a text have. Created by `predicted_classes`.

    Arrays are by token id: `rank` from 0, `kind` the number of a class of KIND, the others as the patterns above.
    """

    rank: Int64[np.ndarray, " vocab"]
    kind: Int32[np.ndarray, " vocab"] | None
    begins: Bool[np.ndarray, " vocab"] | None
    follows: Bool[np.ndarray, " vocab"] | None
    ends: Bool[np.ndarray, " vocab"] | None
    not_done: Mapping[str, str]
    """Classings that there are not, and why."""

    @property
    def classings(self) -> list[Classing]:
        """Those that there are, in order."""
        return [one for one in CLASSINGS.values() if one.name not in self.not_done]

    @property
    def names(self) -> list[tuple[str, str]]:
        """(classing, class) in the order of `member`."""
        return [(classing.name, one.name) for classing in self.classings for one in classing.classes]

    @property
    def settings(self) -> dict[str, Any]:
        """What a run records of them: names, which have the edges. The text's hash stands for its frequencies."""
        return {classing.name: [one.name for one in classing.classes] for classing in self.classings}

    def labels(self, windows: Windows, entropy: Float[np.ndarray, "windows length"]) -> dict[str, Labels]:
        """The classes of the predicted tokens by classing; `entropy` in nats is that of the unmodified model."""
        ids, predicted = windows.ids, windows.ids[:, 1:]
        context = np.broadcast_to(np.arange(1, ids.shape[1]), predicted.shape)
        found = {
            FREQUENCY.name: np.searchsorted(RANK_EDGES, self.rank[predicted], side="right"),
            REPEATED.name: repeated(ids),
            POSITION.name: np.searchsorted(CONTEXT_EDGES, context, side="left"),
            ENTROPY.name: np.searchsorted(ENTROPY_EDGES, entropy, side="right"),
        }
        if self.kind is not None and self.begins is not None and self.follows is not None and self.ends is not None:
            continues = self.follows[predicted] & self.ends[ids[:, :-1]]
            found[KIND.name] = self.kind[predicted]
            found[WORD_PLACE.name] = np.where(continues, 1, np.where(self.begins[predicted], 0, 2))
        return found

    def member(
        self, windows: Windows, entropy: Float[np.ndarray, "windows length"]
    ) -> Bool[np.ndarray, "classes tokens"]:
        """Whether each predicted token is in each class, in the order of `names`; tokens as `Windows.batch` flattened."""
        labels = self.labels(windows, entropy)
        return np.stack(
            [
                labels[classing.name].ravel() == number
                for classing in self.classings
                for number in range(len(classing.classes))
            ]
        )


def predicted_classes(model: Model, windows: Windows) -> PredictedClasses:
    """The classes for a model and the whole text of a run.

    Classings by text are left out for a model without its tokenizer.
    """
    size = max(model.unembedding.vocabulary, int(windows.ids.max()) + 1)
    rank = np.empty(size, dtype=np.int64)
    counts = np.bincount(windows.ids[:, 1:].ravel(), minlength=size)
    rank[np.argsort(-counts, kind="stable")] = np.arange(size)
    tokenizer: Any = model.tokenizer
    if tokenizer is None:
        reason = f"{model.name} has no tokenizer: this class depends on the text of tokens"
        return PredictedClasses(rank, None, None, None, None, dict.fromkeys(_by_text(), reason))
    used = np.unique(windows.ids)
    used = used[(used < len(tokenizer)) & ~np.isin(used, tokenizer.all_special_ids)]
    texts = pl.Series("text", token_texts(tokenizer, used.tolist()), dtype=pl.String)
    numbers = {one.name: number for number, one in enumerate(KIND.classes)}
    kind = np.full(size, numbers["other"], dtype=np.int32)
    stripped = texts.str.strip_chars()
    for name, pattern in reversed(KINDS.items()):  # the first that fits is written last
        kind[used[stripped.str.contains(pattern).to_numpy()]] = numbers[name]
    flags = np.zeros((3, size), dtype=bool)
    flags[:, used] = [texts.str.contains(pattern).to_numpy() for pattern in (BEGINS, FOLLOWS, ENDS)]
    begins, follows, ends = flags
    return PredictedClasses(rank, kind, begins, follows, ends, {})


def _by_text() -> list[str]:
    return [one.name for one in CLASSINGS.values() if one.needs_text]


def repeated(ids: Int32[np.ndarray, "windows width"], longest: int = LONGEST_REPEATED) -> Labels:
    """For each predicted token, the length of the longest n-gram, up to `longest`, that ends with it and stands in its window
    before; the two may overlap. 0: the token itself is new."""
    windows, width = ids.shape
    size = int(ids.max()) + 1
    found = np.zeros((windows, width), dtype=np.int64)
    number = np.broadcast_to(np.arange(windows)[:, None], (windows, width + 1))
    for n in range(1, min(longest, width) + 1):
        # The n-gram that ends at each token from the n-th on, as the (n-1)-gram before it, numbered by window, and the token.
        gram = number[:, : width - n + 1].astype(np.int64) * size + ids[:, n - 1 :]
        _, first, number = np.unique(gram, return_index=True, return_inverse=True)
        number = number.reshape(gram.shape)
        earlier = first[number] != np.arange(gram.size).reshape(gram.shape)
        found[:, n - 1 :][earlier] = n
    return found[:, 1:]

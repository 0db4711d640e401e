"""Pairs of prompts that differ in one word, from any text: a content word is exchanged for another of its kind.

A *content word* is a token that is a whole word: a space and three or more letters, followed by something other than a letter,
no function word, and not among the most frequent tokens of the text. Its *kind* is whether it begins with a capital, and which
of a few endings it has, so that the exchanged word mostly fits the sentence. The other word is drawn from those of the same
kind in the same text. Both prompts have the same number of tokens, and the word is at the same place in all of them.

Symmetric token replacement, as this is called, keeps both prompts within what the model was trained on, which noise on
embeddings does not (Zhang and Nanda 2023).
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int32, Int64
from torch import Tensor

from depthscope.data.bos import NONE as WITHOUT_BOS
from depthscope.data.token_classes import Vocabulary, vocabulary_of
from depthscope.data.token_properties import FUNCTION_WORDS, NONE, spelling, suffix_class
from depthscope.data.windows import Windows
from depthscope.errors import DataError
from depthscope.models.model import Model

SPAN = 131_072
"""Tokens of the first windows, which words are taken from."""
LENGTH = 32
"""Tokens of a prompt, at most."""
CONTEXT = 8
"""Tokens before the word that a prompt has at least, where windows are that long."""
MOST_PAIRS, PAIRS_PER_DOCUMENT, FEWEST_PAIRS = 256, 4, 8
MOST_FREQUENT = 100
"""So many of the most frequent tokens of the text are no content words."""
SHORTEST_WORD = 3
ENDINGS = ("ing", "ed", "ly", "s")
"""Endings that distinguish kinds of words."""


@dataclass(frozen=True, slots=True)
class WordPairs:
    """Pairs of prompts, in ascending order of their documents."""

    clean: Int32[np.ndarray, "pairs length"]
    corrupted: Int32[np.ndarray, "pairs length"]
    document: Int64[np.ndarray, " pairs"]
    """The independent unit: document, pack or cluster."""
    word: int
    """Place of the exchanged word in every prompt."""

    def __len__(self) -> int:
        return len(self.clean)

    def batch(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Token ids of some clean and corrupted prompts, each shaped [pairs, length]."""
        clean, corrupted = (torch.from_numpy(ids[rows].astype(np.int64)) for ids in (self.clean, self.corrupted))
        return clean, corrupted

    def token_hash(self) -> str:
        """SHA-256 over token ids and documents."""
        digest = hashlib.sha256(f"{self.clean.shape} {self.word}".encode())
        for array in (self.clean, self.corrupted, self.document):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def word_pairs(windows: Windows, model: Model, distance: int, seed: int = 0) -> WordPairs:
    """At most MOST_PAIRS pairs whose last token is `distance` tokens after the word, from as many documents as possible.

    Raises DataError without a tokenizer, for windows too short, or where fewer than FEWEST_PAIRS pairs are found.
    """
    model.require_tokenizer()
    windows = windows.part(0, max(1, SPAN // windows.length))
    length = min(LENGTH, max(windows.length // 2, distance + 1 + CONTEXT), windows.length)
    length = max(length, distance + 2)
    lead = 0 if windows.bos == WITHOUT_BOS else 1
    place = length - 1 - distance
    if place <= lead or length > windows.length:
        raise DataError(
            f"windows of {windows.length} tokens are too short to exchange a word {distance} tokens before their end: expected "
            f"at least {distance + 2 + lead}. Use a longer --window"
        )
    vocabulary = vocabulary_of(model)
    kind = word_kinds(vocabulary, windows.ids[:, 1:])
    window, position = np.nonzero(_eligible(windows, vocabulary, kind, place, distance))
    generator = np.random.default_rng(seed)
    token = windows.ids[window, position]
    other = _others(token, kind, generator)
    chosen = _chosen(windows.document[window], other != NONE, generator)
    if len(chosen) < FEWEST_PAIRS:
        raise DataError(
            f"{len(chosen)} words to exchange were found in {windows.tokens:,} tokens: expected at least {FEWEST_PAIRS} words "
            f"of one token, with a space before {SHORTEST_WORD} letters or more, not among the {MOST_FREQUENT} most frequent "
            "tokens. Use more --tokens, or text with spaces between words"
        )
    window, position, other = window[chosen], position[chosen], other[chosen]
    columns = position[:, None] + np.arange(lead - place, distance + 1)
    clean = windows.ids[window[:, None], columns]
    if lead:
        clean = np.concatenate([windows.ids[window, :1], clean], 1)
    corrupted = clean.copy()
    corrupted[:, place] = other
    return WordPairs(clean, corrupted, windows.document[window], place)


def word_kinds(vocabulary: Vocabulary, ids: Int32[np.ndarray, "windows length"]) -> Int64[np.ndarray, " vocab"]:
    """The kind of each vocabulary entry that is a content word, NONE for others; frequencies are those in `ids`."""
    counts = np.bincount(ids.ravel(), minlength=len(vocabulary.texts))
    frequent = np.argsort(-counts, kind="stable")[:MOST_FREQUENT]
    endings = suffix_class(vocabulary, ENDINGS)
    kinds = np.full(len(vocabulary.texts), NONE)
    for token, text in enumerate(vocabulary.texts):
        if text is None or text[:1] != " " or token in vocabulary.special:
            continue
        word = text[1:]
        whole = word.isalpha() and len(word) >= SHORTEST_WORD and word[1:] == word[1:].lower()
        if whole and word.casefold() not in FUNCTION_WORDS:
            kinds[token] = 2 * endings[token] + word[0].isupper()
    kinds[frequent] = NONE
    return kinds


def _eligible(
    windows: Windows, vocabulary: Vocabulary, kind: Int64[np.ndarray, " vocab"], place: int, distance: int
) -> Bool[np.ndarray, "windows width"]:
    """Where a content word has enough text of its own document around it."""
    spelled = spelling(vocabulary)
    ids = windows.ids
    there = kind[ids] != NONE
    goes_on = spelled.letter_first[ids] & ~spelled.spaced[ids]
    there[:, :-1] &= ~goes_on[:, 1:]
    before = place  # with a BOS token this leaves it out of the text, and it is put in front again
    there[:, :before] = False
    there[:, windows.length - distance :] = False
    if windows.owner is not None:
        owner = windows.owner
        rows, columns = np.nonzero(there)
        apart = owner[rows, columns - before] != owner[rows, columns + distance]
        there[rows[apart], columns[apart]] = False
    return there


def _others(
    token: Int32[np.ndarray, " words"], kind: Int64[np.ndarray, " vocab"], generator: np.random.Generator
) -> Int64[np.ndarray, " words"]:
    """For each word another one of its kind among them, each distinct one equally likely; NONE where there is none."""
    found = np.full(len(token), NONE)
    for one in np.unique(kind[token]):
        rows = np.flatnonzero(kind[token] == one)
        words, number = np.unique(token[rows], return_inverse=True)
        if len(words) > 1:
            shift = generator.integers(1, len(words), len(rows))
            found[rows] = words[(number.ravel() + shift) % len(words)]
    return found


def _chosen(
    document: Int64[np.ndarray, " words"], possible: Bool[np.ndarray, " words"], generator: np.random.Generator
) -> Int64[np.ndarray, " pairs"]:
    """Which words are exchanged: at random, the first of each document, then the second of each, and so on."""
    order = generator.permutation(np.flatnonzero(possible))
    seen: dict[int, int] = {}
    turns = []
    for row, number in zip(order.tolist(), document[order].tolist(), strict=True):
        turn = seen[number] = seen.get(number, -1) + 1
        if turn < PAIRS_PER_DOCUMENT:
            turns.append((turn, row))
    turns.sort(key=lambda one: one[0])  # stable: within a turn still in random order
    return np.sort(np.array([row for _, row in turns[:MOST_PAIRS]], dtype=np.int64))

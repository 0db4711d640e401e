"""Token windows: fixed length, no padding, none across two documents, the token after each position known.

One policy for everything. A document's tokens are cut into windows of `length`; what is left at its end is not used. Each
window also keeps the token after its last one, so every position has a next token and all measures are over the same
positions. Windows are taken from as many documents as possible, because documents, not tokens, are what intervals rest
on: the first window of each document, then the second of each, until there are enough.
"""

import hashlib
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from depthscope.data.corpus import Corpus
from depthscope.errors import DataError
from depthscope.models.model import Model

DEFAULT_TOKENS = 16_384
LONGEST_DEFAULT = 512
READ_AHEAD, READ_FREELY = 4, 1_000_000
"""In search of more documents, at most so many times the wanted tokens are read; so many tokens always may be."""
CHARACTERS_PER_TOKEN = 8
"""More than a token has on average, so that text cut at this many characters a token mostly holds enough tokens."""
MARGIN = 16
"""Tokens at the end of a part that may be others once the text goes on."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Token windows and where they come from.

    `ids` holds inputs and, in the last column, the token after them: a window of `length` tokens is a row of width
    `length + 1`. `document` numbers the documents of the corpus from 0, `start` is the window's place among the tokens
    (BOS included) of its document's windows.
    """

    ids: Int32[np.ndarray, "windows width"]
    document: Int64[np.ndarray, " windows"]
    start: Int64[np.ndarray, " windows"]
    bos: str
    """`none`, or `window` where each window begins with the BOS token."""
    too_short: int = field(default=0)
    """Documents that were shorter than one window and left out."""
    special_tokens: int = field(default=0)
    """How often the documents write the name of a special token."""

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def length(self) -> int:
        """Tokens of a window."""
        return self.ids.shape[1] - 1

    @property
    def tokens(self) -> int:
        """Tokens of all windows: every one is measured."""
        return len(self) * self.length

    @property
    def documents(self) -> int:
        """How many documents the windows come from."""
        return len(np.unique(self.document))

    @property
    def token_entropy(self) -> float:
        """Entropy, in nats, of the next tokens' frequencies in these windows: the loss of guessing by frequency alone,
        in hindsight, so that no guess by frequency can do better.
        """
        counts = np.unique(self.ids[:, 1:], return_counts=True)[1]
        frequencies = counts / counts.sum()
        return float(-(frequencies * np.log(frequencies)).sum())

    def part(self, start: int, stop: int) -> "Windows":
        """Windows `start … stop-1` of these."""
        rows = slice(start, stop)
        return replace(self, ids=self.ids[rows], document=self.document[rows], start=self.start[rows])

    def in_random_order(self, seed: int) -> "Windows":
        """The documents in an order drawn from `seed`, which says nothing of them; each one's windows stay together."""
        numbers, place = np.unique(self.document, return_inverse=True)
        turn = np.random.default_rng(seed).permutation(len(numbers))
        rows = np.argsort(turn[place], kind="stable")
        return replace(self, ids=self.ids[rows], document=self.document[rows], start=self.start[rows])

    def per_document(self) -> list[tuple[int, int]]:
        """(document, how many windows it has) for each document, in the order they lie here."""
        starts = np.flatnonzero(np.diff(self.document, prepend=self.document[0] - 1))
        counts = np.diff(starts, append=len(self))
        return list(zip(self.document[starts].tolist(), counts.tolist(), strict=True))

    def batch(self) -> tuple[Tensor, Tensor]:
        """Inputs and next tokens of all windows, each shaped [windows, length]."""
        rows = torch.from_numpy(self.ids.astype(np.int64))
        return rows[:, :-1], rows[:, 1:]

    def token_hash(self) -> str:
        """SHA-256 over token ids, documents and places."""
        digest = hashlib.sha256(f"{self.ids.shape} {self.bos}".encode())
        for array in (self.ids, self.document, self.start):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def make_windows(corpus: Corpus, model: Model, *, length: int | None = None, bos: str = "auto") -> Windows:
    """Cut a corpus into windows for a model.

    `length` is the model's context or 512, whichever is less, by default. `bos`: `window` puts the tokenizer's BOS token
    before each window, `none` does not, `auto` does what the tokenizer does by itself. Raises DataError when a window is
    longer than the context, the text does not fill one window, or a window would begin with two BOS tokens.
    """
    length = length or min(model.context or LONGEST_DEFAULT, LONGEST_DEFAULT)
    if length < 2:
        raise DataError(f"a window of {length} tokens is too short: expected at least 2")
    if model.context is not None and length > model.context:
        raise DataError(f"a window of {length} tokens is longer than the context of {model.name}, {model.context}")
    prefix = bos_prefix(model, bos)
    stride = length - len(prefix)
    wanted = -(-(corpus.tokens or DEFAULT_TOKENS) // length)
    documents, too_short, special = _read(corpus, model, stride, wanted)
    chosen = _spread([(len(ids) - 1) // stride for ids in documents.values()], wanted)
    if not chosen:
        raise DataError(
            f"{corpus.source} has fewer tokens than one window: expected a document of at least {stride + 1} tokens, none "
            f"of its {too_short} has so many. Give more text or a shorter --window"
        )
    numbers = list(documents)
    ids = np.empty((len(chosen), length + 1), dtype=np.int32)
    for row, (which, place) in enumerate(chosen):
        text = documents[numbers[which]][place * stride : (place + 1) * stride + 1]
        ids[row] = np.concatenate([np.array(prefix, dtype=np.int32), text])
    _refuse_double_bos(ids, prefix, model)
    document = np.array([numbers[which] for which, _ in chosen], dtype=np.int64)
    start = np.array([place * length for _, place in chosen], dtype=np.int64)
    return Windows(ids, document, start, "window" if prefix else "none", too_short, special)


def bos_prefix(model: Model, policy: str) -> tuple[int, ...]:
    """The tokens that a BOS policy (auto, none, window) puts before each window: one or none.

    Raises DataError for an unknown policy, or `window` with a tokenizer that has no BOS token.
    """
    tokenizer = model.tokenizer
    if policy not in ("auto", "none", "window"):
        raise DataError(f"unknown BOS policy {policy!r}: expected auto, none or window")
    if policy == "none" or tokenizer is None:
        return ()
    bos: Any = tokenizer.bos_token_id  # an int, though transformers types every special token loosely
    if bos is None:
        if policy == "window":
            raise DataError(f"the tokenizer of {model.name} has no BOS token, so --bos window cannot be done")
        return ()
    adds_itself = list(tokenizer("a")["input_ids"][:1]) == [bos]
    return (int(bos),) if policy == "window" or adds_itself else ()


def _read(corpus: Corpus, model: Model, stride: int, wanted: int) -> tuple[dict[int, np.ndarray], int, int]:
    """Token ids of documents that fill a window, by number: until there are enough documents. How many documents were too
    short, and how often special tokens are named in the others."""
    kept: dict[int, np.ndarray] = {}
    too_short = tokens = special = 0
    names = [] if model.tokenizer is None else list(model.tokenizer.all_special_tokens)
    most = max(READ_AHEAD * wanted * stride, READ_FREELY)
    needed = wanted * stride + 1
    numbered = enumerate(corpus.documents(passage=8 * stride * CHARACTERS_PER_TOKEN // 2))
    while batch := list(islice(numbered, 32)):
        for number, text in batch:
            ids = _first_tokens(model, text, needed, corpus.special_tokens)
            if len(ids) <= stride:
                too_short += 1
                continue
            kept[number] = ids[:needed]
            special += sum(text.count(name) for name in names)
            tokens += len(kept[number])
            if len(kept) >= wanted or tokens >= most:
                return kept, too_short, special
    return kept, too_short, special


def _first_tokens(model: Model, text: str, needed: int, special_tokens: str) -> np.ndarray:
    """Token ids of a document, `needed` of them at least if it has so many.

    A long document is read as far as it takes: where its tokens are longer than expected, further. The last tokens of a part
    may change with what follows the cut, so MARGIN more are asked for than are used.
    """
    length = needed * CHARACTERS_PER_TOKEN
    while True:
        ids = model.tokenize(text[:length], special_tokens)
        if length >= len(text) or len(ids) >= needed + MARGIN:
            return np.array(ids, dtype=np.int32)
        length *= 2


def _spread(available: list[int], wanted: int) -> list[tuple[int, int]]:
    """(document, window) pairs, ordered: the first window of each document, then the second of each, up to `wanted`."""
    turns = (
        (which, turn) for turn in range(max(available, default=0)) for which, n in enumerate(available) if turn < n
    )
    return sorted(islice(turns, wanted))


def _refuse_double_bos(ids: Int32[np.ndarray, "windows width"], prefix: tuple[int, ...], model: Model) -> None:
    if prefix and bool((ids[:, 1] == prefix[0]).any()):
        window = int((ids[:, 1] == prefix[0]).argmax())
        raise DataError(
            f"window {window} would begin with two BOS tokens (id {prefix[0]}): the text has one already. Use --bos none, or "
            f"take it out of the text; {model.name} is not used to two"
        )

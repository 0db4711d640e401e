"""Prompts that end with a word of several tokens, and prompts that end with a word of one, from any text and tokenizer.

The two classes of the paper's subjoiner heads. Which words take n tokens is read off the tokenized text itself, so a word
stands in its prompt as the tokenizer cuts it there. The paper's text has 16 tokens of which the last 4 are a word, later
descriptions 16 words of context and a word. Here a prompt of the class `word` is 16 tokens of context and a word of n tokens;
one of the class `plain` is 16 + n − 1 tokens of context and a word of one token. So all prompts are 16 + n tokens long, the
final token of each ends a word and is at the same position, and the only difference is whether the n − 1 tokens before it
belong to its word.

Prompts come in pairs, one of each class, both from the same document, so that documents can be compared with themselves.
No word ends two prompts of a class (capitals apart). A word here is a run of letters after white space, and not before a
letter, digit, underscore, apostrophe or combining mark: text without spaces between words has few or none.
"""

import hashlib
import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from depthscope.data.corpus import Corpus
from depthscope.data.tokens import rendered
from depthscope.data.windows import bos_prefix  # one policy for all text
from depthscope.errors import DataError
from depthscope.models.model import Model

CONTEXT_TOKENS = 16
WORD_TOKENS = (4, 3, 2)
"""Lengths of a word in tokens, in order of preference."""
MOST_PAIRS, FEWEST_PAIRS, FEWEST_DOCUMENTS, PAIRS_PER_DOCUMENT = 256, 32, 8, 4
MOST_TOKENS = 1_000_000
"""Tokens of a corpus that are read at most in search of words."""
MOST_CHARACTERS = 20_000
"""Characters read of each document: more documents are worth more than more of one."""
WORD = re.compile(r"(?<!\S)[^\W\d_]+(?![\w'’])")

Spans = list[tuple[int, int]]
"""For each token the characters it stands for: first, and one past the last."""


@dataclass(frozen=True, slots=True)
class WordPrompts:
    """Pairs of prompts. Row i of `word` and row i of `plain` come from one document of `document[i]`, in ascending order."""

    word: Int32[np.ndarray, "pairs width"]
    plain: Int32[np.ndarray, "pairs width"]
    document: Int64[np.ndarray, " pairs"]
    """The independent unit: the document, or with a cluster field (see corpus) its cluster."""
    word_tokens: int
    """n: tokens of the word that ends each row of `word`."""
    bos: bool
    """Whether each prompt begins with the BOS token, which is none of the 16 + n."""
    tokens_read: int
    """Tokens of the corpus looked at."""

    def __len__(self) -> int:
        return self.word.shape[0]

    @property
    def documents(self) -> int:
        """How many documents, or clusters of them, the pairs come from."""
        return len(np.unique(self.document))

    def batch(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Token ids of some pairs, class `word` and class `plain`, each shaped [pairs, width]."""
        word, plain = (torch.from_numpy(ids[rows].astype(np.int64)) for ids in (self.word, self.plain))
        return word, plain

    def token_hash(self) -> str:
        """SHA-256 over token ids and documents of both classes."""
        digest = hashlib.sha256(f"{self.word.shape} {self.word_tokens} {self.bos}".encode())
        for array in (self.word, self.plain, self.document):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


@dataclass(slots=True)
class _Search:
    """The pairs found so far for words of one length."""

    word_tokens: int
    pairs: list[tuple[int, int, list[int], list[int]]] = field(default_factory=list)
    """(turn within the document, document, ids of the class `word`, ids of the class `plain`)."""
    used: dict[str, set[str]] = field(default_factory=lambda: {"word": set(), "plain": set()})
    documents: int = 0

    def enough(self) -> bool:
        return len(self.pairs) >= FEWEST_PAIRS and self.documents >= FEWEST_DOCUMENTS


def word_prompts(corpus: Corpus, model: Model, *, bos: str = "auto", seed: int = 0) -> WordPrompts:
    """Pairs of prompts for a model from a corpus: at most 256, from as many documents as possible.

    Words of 4 tokens; of 3, or else 2, where fewer than 32 pairs from 8 documents are found. Which words of a document are
    taken is drawn at random with `seed`; `bos` is as for make_windows. Reads at most a million tokens, whatever number of
    tokens the corpus is limited to, and stops when 256 documents have given a pair. Raises DataError when too few pairs of
    every length are found, when the model has no tokenizer, or when its context is shorter than a prompt.
    """
    prefix = list(bos_prefix(model, bos))
    searches = {n: _Search(n) for n in WORD_TOKENS}
    read = 0
    special_tokens = "keep" if corpus.chat else "text"  # those of a chat's template are tokens
    clusters: dict[int, int] = {}
    for number, cluster, document in corpus.numbered():
        clusters[number] = cluster
        text = rendered(model, document)[:MOST_CHARACTERS] if document else ""
        ids, spans = token_spans(model, text, special_tokens)
        read += len(ids)
        _search_document(searches, model, number, text, (ids, spans), seed)
        if read >= MOST_TOKENS or searches[WORD_TOKENS[0]].documents >= MOST_PAIRS:
            break
    found = next((search for search in searches.values() if search.enough()), None)
    if found is None:
        counts = ", ".join(f"{len(s.pairs)} of {n} tokens ({s.documents} documents)" for n, s in searches.items())
        raise DataError(
            f"{corpus.source} has too few words of several tokens for {model.name}'s tokenizer: expected at least "
            f"{FEWEST_PAIRS} from {FEWEST_DOCUMENTS} documents, each paired with a word of one token, found in {read} tokens "
            f"{counts}"
        )
    chosen = sorted(sorted(found.pairs)[:MOST_PAIRS], key=lambda pair: (clusters[pair[1]], pair[1], pair[0]))
    prompts = WordPrompts(
        np.array([prefix + word for _, _, word, _ in chosen], dtype=np.int32),
        np.array([prefix + plain for *_, plain in chosen], dtype=np.int32),
        np.array([clusters[number] for _, number, _, _ in chosen], dtype=np.int64),
        found.word_tokens,
        bool(prefix),
        read,
    )
    for ids in prompts.batch(slice(None)):
        model.check_ids(ids)
    return prompts


def token_spans(model: Model, text: str, special_tokens: str = "text") -> tuple[list[int], Spans]:
    """Token ids of a text and the characters each stands for, no special tokens added.

    From the tokenizer's own offsets, or by decoding where it keeps none; then a text that decoding does not give back
    has no spans and both lists are empty. Raises DataError without a tokenizer.
    """
    tokenizer = model.tokenizer
    if tokenizer is None or not tokenizer.is_fast:
        ids = model.tokenize(text, special_tokens)
        spans = spans_by_decoding(tokenizer, ids, text)
        return (ids, spans) if spans else ([], [])
    settings: dict[str, Any] = {"split_special_tokens": special_tokens == "text", "verbose": False}
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, **settings)
    return list(encoded["input_ids"]), [(int(start), int(end)) for start, end in encoded["offset_mapping"]]


def spans_by_decoding(tokenizer: Any, ids: Sequence[int], text: str, window: int = 8) -> Spans:
    """The characters each token stands for, found by decoding a sliding window of tokens; empty where that fails.

    Bytes of one character may lie in several tokens: each of these stands for the whole character.
    """
    spans: Spans = []
    place = 0
    begun = 0
    for i in range(len(ids)):
        first = max(0, begun - window)
        before = _decoded(tokenizer, ids[first:begun]) if begun > first else ""
        grown = _decoded(tokenizer, ids[first : i + 1])
        piece = grown[len(before) :]
        if piece and text.startswith(piece, place):
            spans += [(place, place + len(piece))] * (i + 1 - begun)
            place, begun = place + len(piece), i + 1
        elif i - begun >= window:
            return []
    return spans if begun == len(ids) and place == len(text) else []


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))


def _search_document(
    searches: dict[int, _Search], model: Model, number: int, text: str, tokens: tuple[list[int], Spans], seed: int
) -> None:
    """Add what pairs a document has, at most PAIRS_PER_DOCUMENT for each length of word, in random order."""
    ids, spans = tokens
    special = set(model.tokenizer.all_special_ids) if model.tokenizer is not None else set()
    words = list(_words(text, spans))
    order = np.random.default_rng([seed, number]).permutation(len(words))
    by_length: dict[int, list[tuple[str, int]]] = {}
    for i in order:
        word, first, stop = words[i]
        by_length.setdefault(stop - first, []).append((word, stop))

    def prompts(length: int, kind: str, search: _Search) -> Iterator[list[int]]:
        for word, stop in by_length.get(length, ()):
            prompt = ids[max(0, stop - CONTEXT_TOKENS - search.word_tokens) : stop]
            key = word.casefold()
            if key in search.used[kind] or len(prompt) < CONTEXT_TOKENS + search.word_tokens:
                continue
            if special.isdisjoint(prompt) and _decoded(model.tokenizer, prompt[-length:]).strip() == word:
                search.used[kind].add(key)
                yield prompt

    for n, search in searches.items():
        wanted = PAIRS_PER_DOCUMENT if 1 in by_length else 0
        of_words = list(islice(prompts(n, "word", search), wanted))
        plain = list(islice(prompts(1, "plain", search), len(of_words)))
        pairs = [(turn, number, *pair) for turn, pair in enumerate(zip(of_words, plain, strict=False))]
        search.pairs += pairs
        search.documents += bool(pairs)


def _words(text: str, spans: Spans) -> Iterator[tuple[str, int, int]]:
    """(word, its first token, one past its last) for the words whose tokens hold nothing else but white space before."""
    starts, ends = [start for start, _ in spans], [end for _, end in spans]
    for found in WORD.finditer(text):
        begin, end = found.span()
        if end == len(text) or unicodedata.category(text[end]).startswith("M"):
            continue  # cut off by the end of what was read, or not a whole word
        first, stop = bisect_right(ends, begin), bisect_left(starts, end)
        if stop > first and ends[stop - 1] == end and not text[starts[first] : begin].strip():
            yield found.group(), first, stop

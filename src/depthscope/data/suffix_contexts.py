"""Two balanced classes of contexts: the next token ends in a suffix, or it does not (E11 of the paper).

A vocabulary entry *ends in the suffix* if its text, with spaces at its end taken off and without regard to case, does:
of "ing" these are the last piece of a word ("ing", "ting") as well as whole words (" going", " thing"). What comes after
the token does not matter. Special tokens do not count.

Contexts are the `length` tokens before such a next token, never across two documents. Positives are drawn at random from
all that was read; each document then gives as many negatives as positives, drawn at random from its other positions. No
context is taken twice, and no next token more often than a tenth of a class, so that no single word makes up a class. Whole
documents go to training or to test, so that no probe is tested on a document it was trained on; with a cluster field (see
corpus) whole clusters do.
"""

import hashlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int32, Int64
from torch import Tensor

from depthscope.data.corpus import Corpus
from depthscope.data.tokens import CHARACTERS_PER_TOKEN, document_tokens
from depthscope.data.windows import bos_prefix
from depthscope.errors import DataError
from depthscope.models.model import Model

LENGTH = 24
PER_CLASS = 1_000
LARGEST_SHARE = 10
"""Each next token makes up at most one in this many of the examples wanted of its class."""
TEST_SHARE = 0.3
FEWEST_TRAINING, FEWEST_TEST = 50, 30
"""Positives, in as many documents as they come from; negatives are as many."""
READ_AT_MOST = 1_000_000
LONGEST_DOCUMENT = 8_192
"""Tokens used of each document: intervals rest on documents, so many short ones are better than a few long ones."""


@dataclass(frozen=True, slots=True)
class SuffixContexts:
    """Contexts and what they are labelled with, ordered by document (or cluster and document) and place."""

    ids: Int32[np.ndarray, "examples length"]
    """The context's tokens, BOS in front where the tokenizer puts it there by itself."""
    target: Int32[np.ndarray, " examples"]
    """The token after the context."""
    label: Bool[np.ndarray, " examples"]
    """Whether the token after the context ends in the suffix."""
    document: Int64[np.ndarray, " examples"]
    """The independent unit: the document, numbered from 0 as the corpus gives them, or its cluster."""
    training: Bool[np.ndarray, " examples"]
    ending: Bool[np.ndarray, " vocab"]
    """Which entries of the vocabulary end in the suffix."""
    tokens_read: int

    def __len__(self) -> int:
        return len(self.target)

    def batch(self, start: int, stop: int) -> Tensor:
        """Contexts `start … stop-1`, shaped [stop − start, length]."""
        return torch.from_numpy(self.ids[start:stop].astype(np.int64))

    def token_hash(self) -> str:
        """SHA-256 over contexts, next tokens, documents and the split."""
        digest = hashlib.sha256(f"{self.ids.shape}".encode())
        for array in (self.ids, self.target, self.document, self.training, self.ending):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def ends_in(model: Model, suffix: str) -> Bool[np.ndarray, " vocab"]:
    """For each entry of the vocabulary whether it ends in the suffix.

    Raises DataError for an empty suffix, a model without a tokenizer, or a suffix that no entry, or every one, ends in.
    """
    wanted = suffix.strip().casefold()
    if not wanted:
        raise DataError(f"the suffix {suffix!r} is empty: expected letters, such as ing")
    if model.tokenizer is None:
        raise DataError(f"{model.name} came without a tokenizer, so it is not known which tokens end in {suffix!r}")
    special = set(model.tokenizer.all_special_ids)
    ending = np.zeros(model.unembedding.vocabulary, dtype=bool)
    for token in range(min(len(model.tokenizer), model.unembedding.vocabulary)):
        text = str(model.tokenizer.decode([token]))
        ending[token] = token not in special and text.rstrip().casefold().endswith(wanted)
    if not ending.any() or ending.all():
        raise DataError(
            f"{int(ending.sum())} of the {len(ending)} tokens of {model.name} end in {suffix!r}: expected some, not all"
        )
    return ending


def suffix_contexts(
    corpus: Corpus,
    model: Model,
    suffix: str = "ing",
    *,
    length: int = LENGTH,
    per_class: int = PER_CLASS,
    read_at_most: int = READ_AT_MOST,
    seed: int = 0,
) -> SuffixContexts:
    """At most `per_class` contexts of each class, drawn with `seed`.

    The corpus is read to its end or for `read_at_most` tokens, however many tokens of it other experiments use: a suffix is
    rare. Raises DataError where suffix or text give no balanced set, with the counts.
    """
    prefix = bos_prefix(model, "auto")
    if model.context is not None and length + len(prefix) > model.context:
        raise DataError(
            f"contexts of {length + len(prefix)} tokens are longer than the context of {model.name}, {model.context}"
        )
    ending = ends_in(model, suffix)
    most = max(1, per_class // LARGEST_SHARE)
    documents, cluster, read = _read(corpus, model, length, read_at_most)
    generator = np.random.default_rng(seed)
    chosen = _balanced(documents, ending, length, (per_class, most), generator)
    chosen.sort(key=lambda one: (cluster[one[0]], one))  # a unit's examples are contiguous
    numbers = np.array([cluster[document] for document, _ in chosen], dtype=np.int64)
    training = _split(numbers, generator)
    target = np.array([documents[document][place] for document, place in chosen], dtype=np.int32)
    label = ending[target]
    _require_enough(label, training, numbers, corpus, read, suffix)
    ids = np.empty((len(chosen), length + len(prefix)), dtype=np.int32)
    for row, (document, place) in enumerate(chosen):
        ids[row] = [*prefix, *documents[document][place - length : place]]
    return SuffixContexts(ids, target, label, numbers, training, ending, read)


def _read(
    corpus: Corpus, model: Model, length: int, read_at_most: int
) -> tuple[dict[int, np.ndarray], dict[int, int], int]:
    """Token ids and cluster, by number, of documents longer than a context, and how many tokens were read."""
    kept: dict[int, np.ndarray] = {}
    clusters: dict[int, int] = {}
    read = 0
    most_characters = LONGEST_DOCUMENT * CHARACTERS_PER_TOKEN
    for number, cluster, document in corpus.numbered():
        tokens = document_tokens(model, document, corpus.special_tokens, most_characters)[:LONGEST_DOCUMENT]
        read += len(tokens)
        if len(tokens) > length:
            kept[number], clusters[number] = np.array(tokens, dtype=np.int32), cluster
        if read >= read_at_most:
            break
    return kept, clusters, read


def _balanced(
    documents: dict[int, np.ndarray],
    ending: Bool[np.ndarray, " vocab"],
    length: int,
    limits: tuple[int, int],
    generator: np.random.Generator,
) -> list[tuple[int, int]]:
    """(document, place of the next token) of as many positives as negatives in each document, in order."""
    per_class, most = limits
    seen: set[bytes] = set()
    taken: Counter[int] = Counter()

    def take(document: int, place: int) -> bool:
        ids = documents[document]
        # By the tokens themselves: boilerplate that many documents share would be in training and test.
        context, token = ids[place - length : place].tobytes(), int(ids[place])
        if context in seen or taken[token] >= most:
            return False
        seen.add(context)
        taken[token] += 1
        return True

    positives = [
        (n, int(place) + length) for n, ids in documents.items() for place in np.flatnonzero(ending[ids[length:]])
    ]
    by_document: dict[int, list[int]] = {}
    wanted = per_class
    for which in generator.permutation(len(positives)):
        document, place = positives[which]
        if wanted and take(document, place):
            by_document.setdefault(document, []).append(place)
            wanted -= 1
    chosen: list[tuple[int, int]] = []
    for document in sorted(by_document):
        others = np.flatnonzero(~ending[documents[document][length:]]) + length
        negatives: list[int] = []
        for place in generator.permutation(others).tolist():
            if len(negatives) == len(by_document[document]):
                break
            if take(document, place):
                negatives.append(place)
        places = by_document[document][: len(negatives)] + negatives
        chosen += [(document, place) for place in sorted(places)]
    return chosen


def _split(document: Int64[np.ndarray, " examples"], generator: np.random.Generator) -> Bool[np.ndarray, " examples"]:
    """Whether each example is for training: about 70 % of the documents (or clusters), drawn at random."""
    numbers = generator.permutation(np.unique(document))
    return ~np.isin(document, numbers[: round(TEST_SHARE * len(numbers))])


def _require_enough(
    label: Bool[np.ndarray, " examples"],
    training: Bool[np.ndarray, " examples"],
    document: Int64[np.ndarray, " examples"],
    corpus: Corpus,
    read: int,
    suffix: str,
) -> None:
    units = f"{len(np.unique(document))} {f'clusters by {corpus.cluster}' if corpus.cluster else 'documents'}"
    counts = int((label & training).sum()), int((label & ~training).sum())
    if counts[0] < FEWEST_TRAINING or counts[1] < FEWEST_TEST:
        raise DataError(
            f"too few next tokens end in {suffix!r} for a probe: {counts[0]} for training and {counts[1]} for test, in "
            f"{units} ({corpus.source}, {read} tokens read); expected at least {FEWEST_TRAINING} and {FEWEST_TEST}"
        )

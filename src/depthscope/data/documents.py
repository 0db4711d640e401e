"""Documents read from a corpus as token ids, until there are enough of them that fill a window."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import numpy as np
from jaxtyping import Int32, Int64

from depthscope.data.corpus import Corpus
from depthscope.data.fields import Document
from depthscope.data.packing import Packer, separator
from depthscope.data.tokens import CHARACTERS_PER_TOKEN, document_tokens, require_template
from depthscope.errors import DataError
from depthscope.models.model import Model

READ_AHEAD, READ_FREELY = 4, 1_000_000
"""In search of more documents, at most READ_AHEAD times the wanted tokens are read, but always up to READ_FREELY tokens. As
many tokens of documents too short for a window, one after the other, end the reading too: a stream may have no end."""
MARGIN = 16
"""Tokens at the end of a part that may change when more of the text is tokenized."""
SHORTEST_ADVISED = 16
"""Shorter windows than this are not proposed: too little comes before most of their tokens."""
SHOWN_EVERY = 32
READING = "reading documents"

Tell = Callable[[str, int, int], None]
"""Reports progress: (what is being done, how much is done, of how much at least)."""


@dataclass(slots=True)
class Found:
    """Token ids of what fills a window, by the number of its (first) document, and counts of what was read."""

    ids: dict[int, Int32[np.ndarray, " tokens"]] = field(default_factory=dict)
    cluster: dict[int, int] = field(default_factory=dict)
    """The number of the cluster that the document belongs to."""
    owner: dict[int, Int64[np.ndarray, " tokens"]] = field(default_factory=dict)
    """Of packs: the document each token belongs to."""
    read: int = 0
    """Documents read; those without text are skipped and not counted."""
    skipped: int = 0
    too_short: int = 0
    special_tokens: int = 0
    """How often the names of special tokens stand in the documents that are used."""
    given_up: bool = False
    """Whether reading ended because documents were too short for too long."""
    short: dict[int, int] = field(default_factory=dict)
    """How many short documents there were of each length in tokens."""

    @property
    def median(self) -> int:
        """Median length in tokens of the short documents."""
        lengths = sorted(self.short)
        passed = np.cumsum([self.short[length] for length in lengths])
        return lengths[int(np.searchsorted(passed, passed[-1] / 2))]


def read_documents(
    corpus: Corpus, model: Model, prefix: tuple[int, ...], stride: int, wanted: int, tell: Tell
) -> Found:
    """Read until `wanted` documents (or packs) have more than `stride` tokens, or enough was read in search of them.

    `prefix` is what goes before each window. Raises what reading raises, and DataError where nothing fills a window.
    """
    if corpus.chat:
        require_template(model)
    search = _Search(model, stride, wanted, partial(Packer, separator(model), stride + 1) if corpus.pack else None)
    found = search.found
    for number, cluster, document in corpus.numbered(passage=8 * stride * CHARACTERS_PER_TOKEN // 2):
        if not document:
            found.skipped += 1
            continue
        ids = _first_tokens(model, document, search.needed, corpus.special_tokens, prefix)
        search.add(number, document, ids, cluster if corpus.cluster else None)
        if found.read % SHOWN_EVERY == 0:
            tell(READING, found.read, found.read + wanted - len(found.ids))
        if search.ended:
            break
    else:
        found.too_short += search.waiting
    tell(READING, found.read, found.read)
    if not found.ids:
        raise DataError(_none(corpus, found, stride, len(prefix)))
    found.ids = dict(sorted(found.ids.items()))
    return found


class _Search:
    """The search for what fills a window, document after document."""

    def __init__(self, model: Model, stride: int, wanted: int, packer: Callable[[], Packer] | None) -> None:
        self.stride, self.wanted, self.packer = stride, wanted, packer
        self._packers: dict[int | None, Packer] = {}
        self.needed = wanted * stride + 1
        self.most = max(READ_AHEAD * wanted * stride, READ_FREELY)
        self.names = [] if model.tokenizer is None else list(model.tokenizer.all_special_tokens)
        self.found = Found()
        self.tokens = self.fruitless = 0

    def add(
        self, number: int, document: Document, ids: Int32[np.ndarray, " tokens"], cluster: int | None = None
    ) -> None:
        """Count a document and keep it if it fills a window, alone or with those before it (of its cluster, if it has one)."""
        found = self.found
        found.read += 1
        if len(ids) > self.stride:
            self._keep(number, ids[: self.needed], cluster)
        else:
            found.short[len(ids)] = found.short.get(len(ids), 0) + 1
            if self.packer is None or not len(ids):
                found.too_short += 1
                self.fruitless += max(1, len(ids))
                found.given_up = self.fruitless >= self.most
                return
            packer = self._packers.setdefault(cluster, self.packer())
            if (pack := packer.add(number, ids)) is not None:
                first = int(pack.owner[0])
                self._keep(first, pack.ids, cluster)
                found.owner[first] = pack.owner
            elif cluster is not None:  # a stream may have no end, and no cluster that fills a window
                self.fruitless += len(ids)
                found.given_up = self.fruitless >= self.most
        found.special_tokens += sum(_written(document).count(name) for name in self.names)

    def _keep(self, number: int, ids: Int32[np.ndarray, " tokens"], cluster: int | None) -> None:
        self.found.ids[number] = ids
        self.found.cluster[number] = number if cluster is None else cluster
        self.tokens += len(ids)
        self.fruitless = 0

    @property
    def waiting(self) -> int:
        """Documents of packs that are not full."""
        return sum(packer.waiting for packer in self._packers.values())

    @property
    def ended(self) -> bool:
        """Whether there is enough, or no use in reading on."""
        return len(self.found.ids) >= self.wanted or self.tokens >= self.most or self.found.given_up


def _none(corpus: Corpus, found: Found, stride: int, prefix: int) -> str:
    """Why no window could be filled, and what would fill one."""
    if not found.read:
        return f"{corpus.source} has no text: {found.skipped:,} rows were read and all are empty. Name another #FIELD"
    giving_up = " before giving up" if found.given_up else ""
    counted = f"{found.read:,} document{'s were' if found.read != 1 else ' was'} read{giving_up}"
    if corpus.pack:
        total = sum(length * count for length, count in found.short.items())
        named = f"has no {corpus.cluster} with as many tokens as one window" if corpus.cluster else None
        return (
            f"{corpus.source} {named or 'has fewer tokens than one window'}: expected at least {stride + 1}; {counted}, of "
            f"{total:,} tokens in all. Give more text or a shorter --window"
        )
    window = found.median - 1 + prefix
    half = f" --window {window}, which half of them fill, or" if window >= SHORTEST_ADVISED else ""
    return (
        f"{corpus.source} has no document as long as one window: expected a document of at least {stride + 1} tokens; "
        f"{counted}, with a median of {found.median} tokens and the longest of {max(found.short)}. Give longer documents "
        f"or{half} join them with --pack (pack=True)"
    )


def _written(document: Document) -> str:
    """What a document's author wrote."""
    return document if isinstance(document, str) else "\n".join(str(message["content"]) for message in document)


def _first_tokens(
    model: Model, document: Document, needed: int, special_tokens: str, prefix: tuple[int, ...]
) -> Int32[np.ndarray, " tokens"]:
    """Token ids of a document, at least `needed` of them if it has that many.

    A long text is read only as far as needed: where its tokens are longer than expected, further. The last tokens of a part
    may change with what follows the cut, so MARGIN more are asked for than are used. A chat is read whole, without the BOS
    token its template writes where `prefix` puts one before each window.
    """
    if not isinstance(document, str):
        ids = document_tokens(model, document, special_tokens)
        own = len(prefix) if prefix and tuple(ids[: len(prefix)]) == prefix else 0
        return np.array(ids[own:], dtype=np.int32)
    length = needed * CHARACTERS_PER_TOKEN
    while True:
        ids = document_tokens(model, document, special_tokens, length)
        if length >= len(document) or len(ids) >= needed + MARGIN:
            return np.array(ids, dtype=np.int32)
        length *= 2


def spread(available: list[int], wanted: int) -> list[tuple[int, int]]:
    """(document, window) pairs, ordered: the first window of each document, then the second of each, up to `wanted`."""
    turns = (
        (which, turn) for turn in range(max(available, default=0)) for which, n in enumerate(available) if turn < n
    )
    return sorted(islice(turns, wanted))

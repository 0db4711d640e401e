"""Token windows: fixed length, no padding, none across two documents, the token after each position known.

One policy for everything. A document's tokens are cut into windows of `length`; what is left at its end is not used. Each
window also keeps the token after its last one, so every position has a next token and all measures are over the same
positions. Windows are taken from as many documents as possible, because the intervals' width depends on the number of
documents, not of tokens: the first window of each document, then the second of each, until there are enough. On request, short
documents are joined into windows of several (see packing): then such a window counts as one document.

Everything that sums, resamples or splits takes `Windows.document` as the independent unit, and relies on a unit's windows
being contiguous. With a cluster field (see corpus) the unit is the cluster, so windows are ordered by cluster here, once,
wherever the documents of a cluster are in the source; nothing that streams over windows needs to know.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int32, Int64
from torch import Tensor

from depthscope.data.bos import NONE, WINDOW, check_bos
from depthscope.data.corpus import Corpus
from depthscope.data.documents import Tell, read_documents, spread
from depthscope.data.packing import separator
from depthscope.errors import DataError
from depthscope.models.model import Model
from depthscope.statistics.estimate import runs

DEFAULT_TOKENS = 16_384
LONGEST_DEFAULT = 512


@dataclass(frozen=True, slots=True)
class Windows:
    """Token windows and where they come from.

    `ids` holds inputs and, in the last column, the token after them: a window of `length` tokens is a row of width
    `length + 1`. `document` numbers the independent units: documents of the corpus from 0, or clusters of them. `start` is the
    window's place among the tokens (BOS included) of its document's windows. A window of joined documents, and a cluster, have
    the number of the first document.
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
    read: int = field(default=0)
    """Documents that were read, used or not."""
    skipped: int = field(default=0)
    """Rows without text."""
    given_up: bool = field(default=False)
    """Whether reading ended early, because documents were too short for too long."""
    owner: Int64[np.ndarray, "windows length"] | None = field(default=None)
    """With packing or clusters: the document that each token belongs to, a separator to the one it ends."""
    separator: str | None = field(default=None)
    """With packing: the token between two documents."""
    cluster: str | None = field(default=None)
    """The field whose values are clusters of documents."""

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
        """How many independent units the windows come from: documents, packs or clusters."""
        return len(np.unique(self.document))

    @property
    def clustered(self) -> dict[str, Any] | None:
        """The cluster field, how many documents its clusters have, and the share of all tokens that the largest has.

        None without a cluster field.
        """
        if self.cluster is None or self.owner is None:
            return None
        largest = int(np.unique(self.document, return_counts=True)[1].max())
        return {
            "field": self.cluster,
            "documents": len(np.unique(self.owner)),
            "largest_share": largest / len(self),
        }

    @property
    def packed(self) -> dict[str, Any] | None:
        """What packing did: how many documents there are, in how many windows several, and how many positions follow a
        boundary within their window. None without packing.
        """
        if self.separator is None or self.owner is None:
            return None
        after = self.owner != self.owner[:, :1]
        return {
            "separator": self.separator,
            "documents": len(np.unique(self.owner)),
            "windows_with_boundary": int(after.any(1).sum()),
            "positions_after_boundary": int(after.sum()),
        }

    @property
    def places(self) -> tuple[Int64[np.ndarray, "windows length"], Int64[np.ndarray, "windows length"]]:
        """Of each token the document it belongs to (never the cluster) and its position among the document's tokens."""
        position = self.start[:, None] + np.arange(self.length)
        if self.owner is None:
            return np.repeat(self.document[:, None], self.length, 1), position
        begins = np.diff(self.owner, prepend=self.owner[:, :1], axis=1) != 0
        first = np.maximum.accumulate(np.where(begins, position, 0), axis=1)
        return self.owner, position - first

    @property
    def token_entropy(self) -> float:
        """Entropy, in nats, of the next tokens' frequencies in these windows: the loss of guessing by frequency alone,
        in hindsight, so that no guess by frequency can do better.
        """
        counts = np.unique(self.ids[:, 1:], return_counts=True)[1]
        frequencies = counts / counts.sum()
        return float(-(frequencies * np.log(frequencies)).sum())

    def called(self, row: int) -> str:
        """A window by its document and its place in it, for messages: `window 2 of document 5`, both numbered from 0."""
        document = self.document[row] if self.owner is None else self.owner[row, 0]
        return f"window {self.start[row] // self.length} of document {document}"

    def part(self, start: int, stop: int) -> "Windows":
        """Windows `start … stop-1` of these."""
        return self._rows(slice(start, stop))

    def take(self, rows: Bool[np.ndarray, " windows"] | Int64[np.ndarray, " rows"]) -> "Windows":
        """The windows with these numbers, or for which `rows` is true."""
        return self._rows(rows)

    def in_random_order(self, seed: int) -> "Windows":
        """All windows in random order, drawn from `seed` alone: those of a document (pack, cluster) lie apart."""
        return self._rows(np.random.default_rng(seed).permutation(len(self)))

    def ordered_between(self, stops: Sequence[int]) -> "Windows":
        """These windows, ordered by document and place among those between two stops (numbers of windows from the first on)."""
        part = np.searchsorted(stops, np.arange(len(self)), side="right")
        return self._rows(np.lexsort((self.start, self.document, part)))

    def _rows(self, rows: slice | np.ndarray) -> "Windows":
        owner = None if self.owner is None else self.owner[rows]
        return replace(self, ids=self.ids[rows], document=self.document[rows], start=self.start[rows], owner=owner)

    def per_document(self) -> list[tuple[int, int]]:
        """(document, how many windows it has) for each document, pack or cluster, in the order they lie here."""
        starts, counts = runs(self.document)
        return list(zip(self.document[starts].tolist(), counts.tolist(), strict=True))

    def batch(self) -> tuple[Tensor, Tensor]:
        """Inputs and next tokens of all windows, each shaped [windows, length]."""
        rows = torch.from_numpy(self.ids.astype(np.int64))
        return rows[:, :-1], rows[:, 1:]

    def token_hash(self) -> str:
        """SHA-256 over token ids, documents and places, and with packing or clusters the documents of all tokens."""
        digest = hashlib.sha256(f"{self.ids.shape} {self.bos}".encode())
        for array in (self.ids, self.document, self.start, *(() if self.owner is None else (self.owner,))):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def make_windows(
    corpus: Corpus, model: Model, *, length: int | None = None, bos: str = "auto", tell: Tell | None = None
) -> Windows:
    """Cut a corpus into windows for a model. `tell` is called with the number of documents read.

    `length` is the model's context or 512, whichever is less, by default. `bos`: `window` puts the tokenizer's BOS token
    before each window, `none` does not, `auto` does what the tokenizer does by itself. Raises DataError when a window is
    longer than the context, no document fills one window, or a window would begin with two BOS tokens.
    """
    length = length or min(model.context or LONGEST_DEFAULT, LONGEST_DEFAULT)
    if length < 2:
        raise DataError(f"a window of {length} tokens is too short: expected at least 2")
    if model.context is not None and length > model.context:
        raise DataError(f"a window of {length} tokens is longer than the context of {model.name}, {model.context}")
    prefix = bos_prefix(model, bos)
    stride = length - len(prefix)
    wanted = -(-(corpus.tokens or DEFAULT_TOKENS) // length)
    found = read_documents(corpus, model, prefix, stride, wanted, tell or (lambda what, done, least: None))
    numbers = list(found.ids)
    chosen = spread([(len(ids) - 1) // stride for ids in found.ids.values()], wanted)
    ids = np.empty((len(chosen), length + 1), dtype=np.int32)
    for row, (which, place) in enumerate(chosen):
        text = found.ids[numbers[which]][place * stride : (place + 1) * stride + 1]
        ids[row] = np.concatenate([np.array(prefix, dtype=np.int32), text])
    _refuse_double_bos(ids, prefix, model)
    document = np.array([numbers[which] for which, _ in chosen], dtype=np.int64)
    windows = Windows(
        ids,
        document,
        start=np.array([place * length for _, place in chosen], dtype=np.int64),
        bos=WINDOW if prefix else NONE,
        too_short=found.too_short,
        special_tokens=found.special_tokens,
        read=found.read,
        skipped=found.skipped,
        given_up=found.given_up,
    )
    windows = _packed(windows, found.owner, len(prefix), model) if corpus.pack else windows
    return windows if corpus.cluster is None else _clustered(windows, found.cluster, corpus.cluster)


def _packed(windows: Windows, owners: Mapping[int, np.ndarray], prefix: int, model: Model) -> Windows:
    """The windows with the document of each token; what goes before a window belongs to the first."""
    owner = np.repeat(windows.document[:, None], windows.length, 1)
    for row, number in enumerate(windows.document.tolist()):
        if number in owners:
            owner[row, prefix:] = owners[number][: windows.length - prefix]
    return replace(windows, owner=owner, separator=str(model.require_tokenizer().decode([separator(model)])))


def _clustered(windows: Windows, clusters: Mapping[int, int], name: str) -> Windows:
    """The windows with their clusters as units, ordered by cluster, then as before."""
    owner = np.repeat(windows.document[:, None], windows.length, 1) if windows.owner is None else windows.owner
    unit = np.array([clusters[number] for number in windows.document.tolist()], dtype=np.int64)
    windows = replace(windows, document=unit, owner=owner, cluster=name)
    return windows._rows(np.argsort(unit, kind="stable"))


def bos_prefix(model: Model, policy: str) -> tuple[int, ...]:
    """The tokens that a BOS policy (auto, none, window) puts before each window: one or none.

    Raises DataError for an unknown policy, or `window` with a tokenizer that has no BOS token.
    """
    tokenizer = model.tokenizer
    check_bos(policy)
    if policy == NONE or tokenizer is None:
        return ()
    bos: Any = tokenizer.bos_token_id  # an int, though transformers types every special token loosely
    if bos is None:
        if policy == WINDOW:
            raise DataError(f"the tokenizer of {model.name} has no BOS token, so --bos window cannot be done")
        return ()
    # Tried, not read from a setting: tokenizers add it by templates, by flags or in code.
    adds_itself = list(tokenizer("a")["input_ids"][:1]) == [bos]
    return (int(bos),) if policy == WINDOW or adds_itself else ()


def _refuse_double_bos(ids: Int32[np.ndarray, "windows width"], prefix: tuple[int, ...], model: Model) -> None:
    if prefix and bool((ids[:, 1] == prefix[0]).any()):
        window = int((ids[:, 1] == prefix[0]).argmax())
        raise DataError(
            f"window {window} would begin with two BOS tokens (id {prefix[0]}): the text has one already. Use --bos none, or "
            f"take it out of the text; {model.name} is not used to two"
        )

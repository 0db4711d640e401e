"""A corpus: a named source of documents, read as a stream. What files and data sets hold is read in formats and hub.

Documents are independent of each other unless a cluster field is given: then those with the same value of it (passages of a
book, texts of an author) are one cluster, and the cluster takes the document's place wherever documents are resampled or
split into training and test. The documents of a cluster need not follow each other in the source.
"""

import glob
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from depthscope.data.fields import Document, Field, Row
from depthscope.data.formats import documents_in, kind_of, require_fields
from depthscope.data.hub import HUB, HUB_FORM, hub_documents, hub_parts, is_saved, saved_documents
from depthscope.errors import DataError

BOOKSHELF = "bookshelf"
BOOKSHELF_FILE = Path(__file__).parent / "bookshelf.jsonl.xz"
SPECIAL_TOKENS = ("text", "keep")
ABOUT_THE_DATA = ("readme", "license", "licence")
"""Names of files that lie in folders of data and are not part of the data."""
MOST_EMPTY = 1_000_000
"""Consecutive rows without text after which reading ends with an error: a stream may have no end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """A named source of documents and how many tokens of it to use. `corpus[i]` is its i-th document.

    `source` is `bookshelf`, a file, pattern or folder (formats says which kinds of files are read), a folder written by
    `save_to_disk`, or `hf:NAME[:CONFIG[:SPLIT]]`; `#FIELD` names the field of a record that holds the document, `#A.B` one
    within a record.
    """

    source: str = BOOKSHELF
    tokens: int | None = None
    special_tokens: str = "text"
    """What a special token's name written in a document means: `text`, the characters that are there, or `keep`, the token."""

    chat: bool = False
    """Documents are lists of messages, which become tokens through the tokenizer's chat template."""

    pack: bool = False
    """Documents shorter than a window are joined, a separator between them, until they fill one (see packing)."""

    cluster: str | None = None
    """The field whose values are clusters of documents."""

    texts: tuple[Document, ...] = ()
    """The documents themselves, where they are not read from `source`, which then only names them."""

    skip: int = 0
    """Documents (rows with or without text) at the beginning that are left out."""

    def __post_init__(self) -> None:
        if self.special_tokens not in SPECIAL_TOKENS:
            raise DataError(f"special_tokens is {self.special_tokens!r}: expected text or keep")
        if self.tokens is not None and self.tokens < 1:
            raise DataError(f"expected a positive number of tokens, got {self.tokens}")
        if self.cluster == "":
            raise DataError("the name of the cluster field is empty: expected one, such as book, or no --cluster")
        if self.cluster and self.texts:
            raise DataError(
                f"documents in memory have no field {self.cluster!r} to cluster by: write them with it to a .jsonl or .parquet "
                "file, and give its name"
            )

    def check(self) -> None:
        """Raise DataError for a source that is not there or of no kind that is read. Opens no file, asks no hub."""
        if self.texts or self._location == BOOKSHELF:
            return
        if self._location.startswith(HUB):
            hub_parts(self._location)
            return
        place = Path(self._location).expanduser()
        if not (place.is_dir() and is_saved(place)):
            for path in _files(self._location):
                require_fields(path, self._field)

    def documents(self, passage: int = 8192) -> Iterator[Document]:
        """The documents, one after the other: texts, or under `chat` messages. One that is empty is a row without text.

        A text file marks no documents: it is read as passages of about `passage` characters that end at a line break,
        each counted as a document. Raises DataError for what cannot be found, read or understood.
        """
        return (document for _, _, document in self.numbered(passage))

    def numbered(self, passage: int = 8192) -> Iterator[tuple[int, int, Document]]:
        """The documents as from `documents`, each with its number and that of its cluster: (document, cluster, text).

        Documents are numbered from 0; a cluster has the number of its first document with text. Without a cluster field each
        document is a cluster. Memory grows with the number of clusters.
        """
        first: dict[Hashable, int] = {}
        empty = 0
        for number, row in enumerate(islice(self._rows(passage), self.skip, None)):
            empty = 0 if row.document else empty + 1
            if empty >= MOST_EMPTY:
                raise DataError(
                    f"{self.source}: {empty:,} rows in a row have no text: expected some. Name another #FIELD"
                )
            of_cluster = self.cluster is not None and bool(row.document)
            yield number, first.setdefault(row.cluster, number) if of_cluster else number, row.document

    def __getitem__(self, index: int) -> Document:
        found = next(islice(self.documents(), index, None), None) if index >= 0 else None
        if found is None:
            raise IndexError(f"{self.source} has no document {index}")
        return found

    @property
    def _location(self) -> str:
        return self.source.partition("#")[0]

    @property
    def _field(self) -> Field:
        name = "" if self._location == BOOKSHELF else self.source.partition("#")[2]
        return Field.named(name, self.chat, self.cluster)

    def _rows(self, passage: int) -> Iterator[Row]:
        if self.texts:
            yield from map(Row, self.texts)
            return
        field = self._field
        place = Path(self._location).expanduser()
        if self._location == BOOKSHELF:
            yield from documents_in(BOOKSHELF_FILE, field, passage)
        elif self._location.startswith(HUB):
            yield from hub_documents(self._location, field)
        elif place.is_dir() and is_saved(place):
            yield from saved_documents(place, field)
        else:
            for path in _files(self._location):
                yield from _not_empty(path, field, passage)


def _not_empty(path: Path, field: Field, passage: int) -> Iterator[Row]:
    seen = False
    for row in documents_in(path, field, passage):
        seen = True
        yield row
    if not seen:
        raise DataError(f"{path} is empty: expected text in it")


def _files(pattern: str) -> list[Path]:
    """The files a pattern stands for, or the readable ones of a folder and those in it, sorted."""
    place = Path(pattern).expanduser()
    if place.is_dir():
        if not (found := _within(place)):
            raise DataError(
                f"{pattern} is a folder with no text in it: expected .txt, .jsonl, .parquet or other files that can be "
                "read, or one written by save_to_disk"
            )
        return found
    if place.is_file():
        return [place]  # its name may hold what means something else in a pattern
    found = (Path(name) for name in sorted(glob.glob(str(place), recursive=True)))  # noqa: PTH207
    paths = [path for path in found if not path.is_dir()]
    if not paths:
        raise DataError(
            f"no text at {pattern}: expected 'bookshelf', a file (.txt, .jsonl, .json, .csv, .parquet …), a pattern, a "
            f"folder, or {HUB_FORM}"
        )
    return paths


def _within(folder: Path) -> list[Path]:
    readable = [
        path
        for path in sorted(folder.rglob("*"))
        if kind_of(path) and path.is_file() and not any(part[0] == "." for part in path.relative_to(folder).parts)
    ]
    data = [path for path in readable if path.name.split(".")[0].lower() not in ABOUT_THE_DATA]
    return data or readable

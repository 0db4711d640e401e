"""A corpus: a named source of documents, read as a stream. What files and data sets hold is read in formats and hub.

Documents are independent of each other unless a cluster field is given: then those with the same value of it (passages of a
book, texts of an author) are one cluster, and the cluster takes the document's place wherever documents are resampled or
split into training and test. The documents of a cluster need not follow each other in the source.
"""

import glob
import os
import re
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from depthscope.data.fields import Document, Field, Row, require_text
from depthscope.data.formats import documents_in, kind_of, require_fields
from depthscope.data.hub import HUB, HUB_FORM, hub_documents, hub_parts, is_saved, saved_documents
from depthscope.errors import DataError
from depthscope.printable import printable, shown

BOOKSHELF = "bookshelf"
BOOKSHELF_FILE = Path(__file__).parent / "bookshelf.jsonl.xz"
WHAT_IS_READ = f"'bookshelf', a file (.txt, .jsonl, .json, .csv, .parquet …), a pattern, a folder, or {HUB_FORM}"
SPECIAL_TOKENS = ("text", "keep")
ABOUT_THE_DATA = ("readme", "license", "licence")
"""Names of files that lie in folders of data and are not part of the data."""
MOST_TOKENS = 1_000_000_000
"""The largest number of tokens that can be asked for: their ids take 4 GB."""
LONGEST_SOURCE = 4096
"""Bytes of a source's name: no system opens longer paths."""
MOST_ENTRIES = 1_000_000
"""Files and folders, at any depth, of a folder that is read: more are a disk that was meant otherwise."""
MOST_EMPTY = 1_000_000
"""Consecutive rows without text after which reading ends with an error: a stream may have no end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """A named source of documents and how many tokens of it to use. `corpus[i]` is its i-th document.

    `source` is `bookshelf`, a file, pattern or folder (formats says which kinds of files are read), a folder written by
    `save_to_disk`, or `hf:NAME[:CONFIG[:SPLIT]]`; `#FIELD` names the field of a record that holds the document, `#A.B` one
    within a record. A file or folder that exists comes before any other meaning of `#`, `*`, `?` and `[` in its name; in a
    pattern `[#]` is the character itself.
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
            raise DataError(f"special_tokens is {shown(self.special_tokens)}: expected text or keep")
        if self.tokens is not None and not (_whole_number(self.tokens) and 1 <= self.tokens <= MOST_TOKENS):
            raise DataError(f"expected a positive number of tokens, at most {MOST_TOKENS:,}, got {shown(self.tokens)}")
        _check_source(self.source)
        if self.cluster is not None and not (isinstance(self.cluster, str) and self.cluster):
            named = "empty" if self.cluster == "" else shown(self.cluster)
            raise DataError(f"the name of the cluster field is {named}: expected one, such as book, or no --cluster")
        if self.cluster:
            require_text(self.cluster, "the name of the cluster field")
        if self.cluster and self.texts:
            raise DataError(
                f"documents in memory have no field {self.cluster!r} to cluster by: write them with it to a .jsonl or .parquet "
                "file, and give its name"
            )

    def check(self) -> None:
        """Raise DataError for a source that is not there or of no kind that is read. Opens no file, asks no hub."""
        location, field = self._parts()
        if self.texts or location == BOOKSHELF:
            return
        if location.startswith(HUB):
            hub_parts(location)
            return
        if not is_saved(_path(location)):
            for path in _files(location):
                require_fields(path, field)

    def files(self) -> list[Path] | None:
        """The files that would be read; none for documents in memory and the embedded text; None for a data set on a hub.

        Raises DataError as `check`.
        """
        location, _ = self._parts()
        if self.texts or location == BOOKSHELF:
            return []
        if location.startswith(HUB):
            return None
        place = _path(location)
        return [path for path in _entries(place) if path.is_file()] if is_saved(place) else _files(location)

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
                    f"{printable(self.source)}: {empty:,} rows in a row have no text: expected some. Name another #FIELD"
                )
            of_cluster = self.cluster is not None and bool(row.document)
            yield number, first.setdefault(row.cluster, number) if of_cluster else number, row.document

    def __getitem__(self, index: int) -> Document:
        found = next(islice(self.documents(), index, None), None) if index >= 0 else None
        if found is None:
            raise IndexError(f"{self.source} has no document {index}")
        return found

    def _parts(self) -> tuple[str, Field]:
        """Where the text is, and the field of the documents."""
        location, name = _divided(self.source)
        return location, Field.named("" if location == BOOKSHELF else name, self.chat, self.cluster)

    def _rows(self, passage: int) -> Iterator[Row]:
        if self.texts:
            yield from map(Row, self.texts)
            return
        location, field = self._parts()
        if location == BOOKSHELF:
            yield from documents_in(BOOKSHELF_FILE, field, passage)
        elif location.startswith(HUB):
            yield from hub_documents(location, field)
        elif is_saved(_path(location)):
            yield from saved_documents(_path(location), field)
        else:
            for path in _files(location):
                yield from _not_empty(path, field, passage)


def _not_empty(path: Path, field: Field, passage: int) -> Iterator[Row]:
    seen = False
    for row in documents_in(path, field, passage):
        seen = True
        yield row
    if not seen:
        raise DataError(f"{printable(path)} is empty: expected text in it")


def _whole_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_source(source: object) -> None:
    """Raise DataError for what cannot be the name of a text. What is there is not looked at."""
    if not isinstance(source, str):
        raise DataError(f"the name of a text is a {type(source).__name__}: expected text")
    if not source or source.startswith("#"):
        raise DataError(f"the name of the text is {shown(source)}: expected {WHAT_IS_READ}")
    if "\0" in source or len(source.encode(errors="surrogatepass")) > LONGEST_SOURCE:
        raise DataError(
            f"the name of the text is {shown(source)}: expected at most {LONGEST_SOURCE} bytes and no null character"
        )


def _divided(source: str) -> tuple[str, str]:
    """Location and name of the field. No `#` in the name of a file or folder that exists begins a field, nor does `[#]`."""
    first = re.search(r"(?<!\[)#", source)
    ends = [first.start()] if first else []
    if first and source[: first.start()] != BOOKSHELF and not source.startswith(HUB):
        # The longest name that exists, if any.
        ends = [place for place in range(len(source), 0, -1) if place == len(source) or source[place] == "#"] + ends
        ends = [place for place in ends if os.path.lexists(_path(source[:place]))][:1] or ends[-1:]
    end = ends[0] if ends else len(source)
    return source[:end], source[end + 1 :]


def _path(location: str) -> Path:
    return Path(os.path.expanduser(location))  # noqa: PTH111 (which raises for an unknown user's ~name)


def _files(pattern: str) -> list[Path]:
    """The files a pattern stands for, or the readable ones of a folder and those in it, sorted."""
    name, place = printable(pattern), _path(pattern)
    if os.path.isdir(place):  # noqa: PTH112 (which raises for a name that is too long)
        if not (found := _within(place)):
            raise DataError(
                f"{name} is a folder with no text in it: expected .txt, .jsonl, .parquet or other files that can be "
                "read, or one written by save_to_disk"
            )
        return found
    if os.path.lexists(place):
        paths = [place]  # its name may hold what means something else in a pattern
    else:
        try:
            paths = [Path(one) for one in sorted(glob.glob(str(place), recursive=True))]  # noqa: PTH207
        except (OSError, ValueError, RecursionError, re.error) as error:
            raise DataError(f"no text at {name}, which is not a pattern that can be looked for") from error
        paths = [path for path in paths if not os.path.isdir(path)]  # noqa: PTH112
    if not paths:
        raise DataError(f"no text at {name}: expected {WHAT_IS_READ}")
    if other := next((path for path in paths if not os.path.isfile(path)), None):  # noqa: PTH113
        raise DataError(
            f"{printable(other)} is not a regular file: expected one, not a pipe, a device or a broken link"
        )
    return paths


def _entries(folder: Path) -> list[Path]:
    found = list(islice(folder.rglob("*"), MOST_ENTRIES + 1))
    if len(found) > MOST_ENTRIES:
        raise DataError(
            f"{printable(folder)} holds more than {MOST_ENTRIES:,} files and folders: expected a folder of text. Name a "
            "smaller one, or a pattern"
        )
    return found


def _within(folder: Path) -> list[Path]:
    readable = [
        path
        for path in sorted(_entries(folder))
        if kind_of(path)
        and os.path.isfile(path)  # noqa: PTH113
        and not any(part[0] == "." for part in path.relative_to(folder).parts)
    ]
    data = [path for path in readable if path.name.split(".")[0].lower() not in ABOUT_THE_DATA]
    return data or readable

"""Where text comes from: the embedded shelf, files and globs, Hugging Face data sets. Read as a stream of documents."""

import codecs
import glob
import gzip
import json
import lzma
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow.parquet as pq

from depthscope.errors import DataError

BOOKSHELF = "bookshelf"
BOOKSHELF_FILE = Path(__file__).parent / "bookshelf.jsonl.xz"
DEFAULT_FIELD = "text"
OPENERS: dict[str, Callable[[Path], IO[bytes]]] = {
    ".xz": partial(lzma.open, mode="rb"),  # type: ignore[dict-item]
    ".gz": partial(gzip.open, mode="rb"),  # type: ignore[dict-item]
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """A named source of text and how many tokens of it to use. `corpus[i]` is the text of its i-th document.

    `source` is `bookshelf`, a file or glob of .txt, .jsonl or .parquet (`#FIELD` names the text field; .gz and .xz are
    read too), or `hf:NAME[:CONFIG[:SPLIT]][#FIELD]`.
    """

    source: str = BOOKSHELF
    tokens: int | None = None
    special_tokens: str = "text"
    """What a special token's name written in a document means: `text`, the characters that are there, or `keep`, the token."""

    texts: tuple[str, ...] = ()
    """The documents themselves, where they are not read from `source`, which then only names them."""

    def __post_init__(self) -> None:
        if self.special_tokens not in ("text", "keep"):
            raise DataError(f"special_tokens is {self.special_tokens!r}: expected text or keep")
        if self.tokens is not None and self.tokens < 1:
            raise DataError(f"expected a positive number of tokens, got {self.tokens}")

    def documents(self, passage: int = 8192) -> Iterator[str]:
        """The texts, one after the other.

        A .txt file marks no documents: it is read as passages of about `passage` characters that end at a line break,
        each counted as a document. Raises DataError for what cannot be found, read or understood.
        """
        if self.texts:
            return iter(self.texts)
        location, _, field = self.source.partition("#")
        if location == BOOKSHELF:
            return _jsonl(BOOKSHELF_FILE, DEFAULT_FIELD)
        if location.startswith("hf:"):
            return _hub(location.removeprefix("hf:"), field or DEFAULT_FIELD)
        return _files(location, field or DEFAULT_FIELD, passage)

    def __getitem__(self, index: int) -> str:
        found = next(islice(self.documents(), index, None), None) if index >= 0 else None
        if found is None:
            raise IndexError(f"{self.source} has no document {index}")
        return found


def _files(pattern: str, field: str, passage: int) -> Iterator[str]:
    paths = [Path(name) for name in sorted(glob.glob(str(Path(pattern).expanduser()), recursive=True))]  # noqa: PTH207
    if Path(pattern).expanduser().is_dir():
        raise DataError(f"{pattern} is a folder: expected a file or a pattern such as {pattern.rstrip('/')}/*.txt")
    if not paths:
        raise DataError(
            f"no text at {pattern}: expected 'bookshelf', a .txt, .jsonl or .parquet file, a pattern, or hf:NAME"
        )
    for path in paths:
        seen = False
        for text in _file(path, field, passage):
            seen = True
            yield text
        if not seen:
            raise DataError(f"{path} is empty: expected text in it")


def _file(path: Path, field: str, passage: int) -> Iterator[str]:
    kind = next((suffix for suffix in reversed(path.suffixes) if suffix not in OPENERS), "")
    readers = {".txt": partial(_text, passage=passage), ".jsonl": partial(_jsonl, field=field)}
    readers[".parquet"] = partial(_parquet, field=field)
    if kind not in readers:
        raise DataError(f"{path}: cannot tell what kind of text this is: expected .txt, .jsonl or .parquet")
    return readers[kind](path)


def _lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file, compressed or not."""
    try:
        with OPENERS.get(path.suffix, partial(Path.open, mode="rb"))(path) as stream:
            for number, line in enumerate(stream, start=1):
                own = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                yield _decoded(own, f"{path}, line {number}")
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def _decoded(line: bytes, where: str) -> str:
    if b"\0" in line:
        raise DataError(f"{where}: a zero byte, so this is no text file: expected UTF-8 text")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 (byte 0x{line[error.start]:02x} at column {error.start + 1}). Convert the file to UTF-8 first"
        ) from error


def _text(path: Path, passage: int) -> Iterator[str]:
    """A text file as passages of about `passage` characters, cut where a line ends."""
    lines: list[str] = []
    length = 0
    for line in _lines(path):
        lines.append(line)
        length += len(line)
        if length >= passage:
            yield "".join(lines)
            lines, length = [], 0
    if "".join(lines).strip():
        yield "".join(lines)


def _jsonl(path: Path, field: str) -> Iterator[str]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: not JSON ({error})") from error
            yield _field(record, field, f"{path}, line {number}")


def _parquet(path: Path, field: str) -> Iterator[str]:
    try:
        table = pq.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a parquet file that can be read: {error}") from error
    if field not in table.schema_arrow.names:
        raise DataError(
            f"{path} has no field {field!r}: it has {', '.join(table.schema_arrow.names)}. Name one as {path}#FIELD"
        )
    row = 0
    for batch in table.iter_batches(batch_size=256, columns=[field]):
        for value in batch.column(0).to_pylist():
            yield _field({field: value}, field, f"{path}, row {row}")
            row += 1


def _field(record: Any, field: str, where: str) -> str:
    if not isinstance(record, dict) or field not in record:
        found = (
            f"it has {', '.join(map(str, record))}" if isinstance(record, dict) else f"it is a {type(record).__name__}"
        )
        raise DataError(f"{where}: no field {field!r} ({found}). Name the text field with #FIELD")
    if not isinstance(record[field], str):
        raise DataError(f"{where}: field {field!r} is a {type(record[field]).__name__}, expected text")
    return record[field]


def _hub(name: str, field: str) -> Iterator[str]:
    """A data set through the datasets library, streamed."""
    import datasets  # a second to import, and only needed here

    path, *rest = name.split(":")
    config, split = [*rest, *(None,) * (2 - len(rest))] if len(rest) <= 2 else _too_many(name)
    try:
        stream: Iterable[Any] = datasets.load_dataset(path, config or None, split=split or "train", streaming=True)
        for row, record in enumerate(stream):
            yield _field(record, field, f"hf:{name}, row {row}")
    except DataError:
        raise
    except Exception as error:  # the library raises dozens of kinds for one user mistake: a name that is not there
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"data set hf:{name} cannot be read: {reason}. Expected hf:NAME[:CONFIG[:SPLIT]][#FIELD]"
        ) from error


def _too_many(name: str) -> list[str | None]:
    raise DataError(f"cannot read hf:{name}: expected hf:NAME[:CONFIG[:SPLIT]][#FIELD]")

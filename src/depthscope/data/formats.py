"""Files of text: which kinds there are, how they are opened, and the documents in each.

Text files (.txt, .md) mark no documents and are read as passages. Others hold a record per document: .jsonl and .ndjson a
line each, .json a list, .csv and .tsv a row, .parquet a row. All but parquet may be compressed.
"""

import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from depthscope.data.fields import Field, Row
from depthscope.errors import DataError


def _zstd(path: Path) -> io.BufferedReader:
    return io.BufferedReader(pa.input_stream(str(path), compression="zstd"))  # type: ignore[arg-type]


OPENERS: dict[str, Callable[[Path], IO[bytes]]] = {
    ".xz": partial(lzma.open, mode="rb"),  # type: ignore[dict-item]
    ".gz": partial(gzip.open, mode="rb"),  # type: ignore[dict-item]
    ".bz2": partial(bz2.open, mode="rb"),  # type: ignore[dict-item]
    ".zst": _zstd,
}
PROSE = (".txt", ".md")
LINES = (".jsonl", ".ndjson")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
KINDS = (*PROSE, *LINES, ".json", *DELIMITERS, ".parquet")


def kind_of(path: Path) -> str | None:
    """The kind of a file, one of KINDS, by its name; None for another."""
    kind = next((suffix.lower() for suffix in reversed(path.suffixes) if suffix.lower() not in OPENERS), "")
    return kind if kind in KINDS else None


def require_kind(path: Path) -> str:
    """The kind of a file. Raises DataError naming those that can be read."""
    kind = kind_of(path)
    if kind is None:
        raise DataError(
            f"{path}: cannot tell what kind of text this is: expected {', '.join(KINDS[:-1])} or {KINDS[-1]}, all but the "
            f"last also followed by {', '.join(OPENERS)}"
        )
    return kind


def require_fields(path: Path, field: Field) -> str:
    """The kind of a file. Raises DataError for one that cannot be read, or that has no fields where some are asked for."""
    kind = require_kind(path)
    if kind in PROSE and field.chat:
        raise DataError(f"{path} is text: expected records with messages for --chat, as .jsonl, .json or .parquet")
    if kind in PROSE and field.cluster:
        raise DataError(
            f"{path} is text: expected records with the field {field.cluster!r} for --cluster, as .jsonl, .csv or .parquet"
        )
    return kind


def documents_in(path: Path, field: Field, passage: int) -> Iterator[Row]:
    """The documents of a file, one per record; of a text file passages of about `passage` characters.

    Raises DataError, naming file and line, for what cannot be read.
    """
    kind = require_fields(path, field)
    if kind in PROSE:
        return map(Row, _passages(path, passage))
    readers: dict[str, Callable[[Path], Iterator[tuple[Any, str]]]] = {
        ".json": partial(_json, field=field),
        ".parquet": partial(_parquet, field=field),
        **dict.fromkeys(LINES, _json_lines),
        **{suffix: partial(_table, delimiter=delimiter) for suffix, delimiter in DELIMITERS.items()},
    }
    return (field.row(record, where) for record, where in readers[kind](path))


def _lines(path: Path) -> Iterator[str]:
    """Lines of a UTF-8 file, compressed or not."""
    try:
        with OPENERS.get(path.suffix.lower(), partial(Path.open, mode="rb"))(path) as stream:
            for number, line in enumerate(stream, start=1):
                own = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                yield _decoded(own, f"{path}, line {number}")
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
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


def _passages(path: Path, passage: int) -> Iterator[str]:
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


def _json_lines(path: Path) -> Iterator[tuple[Any, str]]:
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}: not JSON ({error})") from error
            yield record, f"{path}, line {number}"


def _json(path: Path, field: Field) -> Iterator[tuple[Any, str]]:
    """The records of a JSON file, which is held whole: a list, an object with one list of records, or a single record.

    A file of JSON lines that is named .json is read as such.
    """
    text = "".join(_lines(path))
    try:
        whole = json.loads(text) if text.strip() else []
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data":
            yield from _json_lines(path)
            return
        raise DataError(f"{path}: not JSON ({error})") from error
    if isinstance(whole, dict) and field.name not in whole and not isinstance(whole.get(field.top), dict):
        lists = [key for key, value in whole.items() if isinstance(value, list)]
        if len(lists) != 1:
            raise DataError(
                f"{path}: expected a list of records, an object that holds one list of them, or one record with the field "
                f"{field.name!r}; got an object with {', '.join(whole) or 'nothing'}, {len(lists)} of these lists"
            )
        whole = whole[lists[0]]
    for number, record in enumerate(whole if isinstance(whole, list) else [whole]):
        yield record, f"{path}, record {number}"


def _table(path: Path, delimiter: str) -> Iterator[tuple[Any, str]]:
    """Rows of a table under its heading; quoted cells may hold line breaks."""
    csv.field_size_limit(
        min(sys.maxsize, 2**31 - 1)
    )  # a document is a cell, and may be longer than the 128 KiB allowed
    rows = csv.reader(_lines(path), delimiter=delimiter, strict=True)
    try:
        heading = next(rows, [])
        for row in rows:
            where = f"{path}, line {rows.line_num}"
            if row and len(row) != len(heading):
                raise DataError(
                    f"{where}: {len(row)} cells under a heading of {len(heading)}: expected as many. Cells with "
                    "separators or line breaks in them need quotes"
                )
            if row:
                yield dict(zip(heading, row, strict=True)), where
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: not a table that can be read ({error})") from error


def _parquet(path: Path, field: Field) -> Iterator[tuple[Any, str]]:
    try:
        table = pq.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a parquet file that can be read: {error}") from error
    columns = field.columns(table.schema_arrow.names, str(path))
    row = 0
    try:
        for batch in table.iter_batches(batch_size=256, columns=columns):
            for record in batch.to_pylist():
                yield record, f"{path}, row {row}"
                row += 1
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read from row {row} on: {error}") from error

"""Files of text: which kinds there are, and the documents in each.

Text files (.txt, .md) mark no documents and are read as passages. Others hold a record per document: .jsonl and .ndjson a
line each, .json a list, .csv and .tsv a row, .parquet a row. All but parquet may be compressed. Every file may be a
stranger's: what is held of it at once is bounded (see lines).
"""

import csv
import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from depthscope.data.fields import Field, Row
from depthscope.data.lines import DECOMPRESSED, MOST_BYTES, SHORTER, lines, longer
from depthscope.errors import DataError
from depthscope.printable import first_line, listed, printable
from depthscope.untrusted import MIB, open_regular, parse_json

PROSE = (".txt", ".md")
LINES = (".jsonl", ".ndjson")
DELIMITERS = {".csv": ",", ".tsv": "\t"}
KINDS = (*PROSE, *LINES, ".json", *DELIMITERS, ".parquet")


def kind_of(path: Path) -> str | None:
    """The kind of a file, one of KINDS, by its name; None for another."""
    kind = next((suffix.lower() for suffix in reversed(path.suffixes) if suffix.lower() not in DECOMPRESSED), "")
    return kind if kind in KINDS else None


def require_kind(path: Path) -> str:
    """The kind of a file. Raises DataError naming those that can be read."""
    kind = kind_of(path)
    if kind is None:
        raise DataError(
            f"{printable(path)}: cannot tell what kind of text this is: expected {', '.join(KINDS[:-1])} or {KINDS[-1]}, all "
            f"but the last also followed by {', '.join(DECOMPRESSED)}"
        )
    return kind


def require_fields(path: Path, field: Field) -> str:
    """The kind of a file. Raises DataError for one that cannot be read, or that has no fields where some are asked for."""
    kind = require_kind(path)
    if kind in PROSE and field.chat:
        raise DataError(
            f"{printable(path)} is text: expected records with messages for --chat, as .jsonl, .json or .parquet"
        )
    if kind in PROSE and field.cluster:
        raise DataError(
            f"{printable(path)} is text: expected records with the field {field.cluster!r} for --cluster, as .jsonl, .csv or "
            ".parquet"
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


def _passages(path: Path, passage: int) -> Iterator[str]:
    """A text file as passages of about `passage` characters, cut where a line ends."""
    held: list[str] = []
    length = 0
    for line in lines(path):
        held.append(line)
        length += len(line)
        if length >= passage:
            yield "".join(held)
            held, length = [], 0
    if "".join(held).strip():
        yield "".join(held)


def _json_lines(path: Path) -> Iterator[tuple[Any, str]]:
    for number, line in enumerate(lines(path), start=1):
        if line.strip():
            where = f"{printable(path)}, line {number}"
            yield parse_json(line, where, DataError), where


def _json(path: Path, field: Field) -> Iterator[tuple[Any, str]]:
    """The records of a JSON file, which is held whole: a list, an object with one list of records, or a single record.

    A file of JSON lines that is named .json is read as such.
    """
    if _has_json_lines(path):
        yield from _json_lines(path)
        return
    name = printable(path)
    text = _whole(path)
    whole = parse_json(text, name, DataError) if text.strip() else []
    if isinstance(whole, dict) and field.name not in whole and not isinstance(whole.get(field.top), dict):
        lists = [key for key, value in whole.items() if isinstance(value, list)]
        if len(lists) != 1:
            raise DataError(
                f"{name}: expected a list of records, an object that holds one list of them, or one record with the field "
                f"{field.name!r}; got an object with {listed(whole) or 'nothing'}, {len(lists)} of these lists"
            )
        whole = whole[lists[0]]
    for number, record in enumerate(whole if isinstance(whole, list) else [whole]):
        yield record, f"{name}, record {number}"


def _has_json_lines(path: Path) -> bool:
    """Whether the first line with text is JSON by itself, and not the only one."""
    with_text = (line for line in lines(path) if line.strip())
    try:
        json.loads(next(with_text, ""))
    except (ValueError, RecursionError):
        return False
    return next(with_text, None) is not None


def _whole(path: Path) -> str:
    held: list[str] = []
    length = 0
    for line in lines(path):
        held.append(line)
        length += len(line)
        if length > MOST_BYTES:
            raise DataError(
                f"{printable(path)} {longer()}. Write a record per line, as .jsonl, which is read line by line"
            )
    return "".join(held)


def _table(path: Path, delimiter: str) -> Iterator[tuple[Any, str]]:
    """Rows of a table under its heading; quoted cells may hold line breaks, a row at most MOST_BYTES."""
    # A document is a cell, and may be longer than the 128 KiB that csv allows.
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    name = printable(path)
    length = 0

    def counted() -> Iterator[str]:
        nonlocal length
        for number, line in enumerate(lines(path), start=1):
            length += len(line)
            if length > MOST_BYTES:
                raise DataError(
                    f"{name}, line {number}: the row that ends here {longer()}. {SHORTER}; look for an open quote"
                )
            yield line

    rows = csv.reader(counted(), delimiter=delimiter, strict=True)
    try:
        heading = next(rows, [])
        length = 0
        for row in rows:
            length = 0
            where = f"{name}, line {rows.line_num}"
            if row and len(row) != len(heading):
                raise DataError(
                    f"{where}: {len(row)} cells under a heading of {len(heading)}: expected as many. Cells with "
                    "separators or line breaks in them need quotes"
                )
            if row:
                yield dict(zip(heading, row, strict=True)), where
    except csv.Error as error:
        raise DataError(f"{name}, line {rows.line_num}: not a table that can be read ({error})") from error


def _parquet(path: Path, field: Field) -> Iterator[tuple[Any, str]]:
    """Rows of a parquet file, one at a time: a value that is stored once may stand in every row, and take gigabytes in a few.

    A page of the file, which the format limits to 2 GiB, is decompressed whole.
    """
    name = printable(path)
    with open_regular(path, DataError) as file:
        try:
            table = pq.ParquetFile(file, buffer_size=MIB)
            there = table.schema_arrow.names
        except Exception as error:  # damage may show as any of pyarrow's exceptions, which have no common root
            raise DataError(f"{name} is not a parquet file that can be read: {first_line(error)}") from error
        columns = field.columns(there, name)
        batches = table.iter_batches(batch_size=1, columns=columns)
        row = 0
        while (records := _next_records(batches, f"{name}, row {row}")) is not None:
            for record in records:
                yield record, f"{name}, row {row}"
                row += 1


def _next_records(batches: Iterator[pa.RecordBatch], where: str) -> list[dict[str, Any]] | None:
    """The records of the next batch, None at the end. Raises DataError for damage, and for one longer than MOST_BYTES."""
    try:
        batch = next(batches, None)
        # A column stored as a dictionary brings all its values with every row.
        length = (
            sum(one.nbytes for one in batch.columns if not pa.types.is_dictionary(one.type)) if batch is not None else 0
        )
        if batch is not None and length <= MOST_BYTES:
            return batch.to_pylist()
    except Exception as error:
        raise DataError(f"{where} cannot be read: {first_line(error)}") from error
    if batch is None:
        return None
    raise DataError(f"{where} {longer()}. {SHORTER}")

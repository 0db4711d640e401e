"""What a Parquet file would take to decode, from its footer and page headers, without decoding anything.

A reader allocates what these say before it looks at the data: 60 million equal rows are 2 MB on disk. The footer alone may be
wrong about its pages, so the headers of all pages are read too. Both are Thrift structs in the compact protocol; field numbers
are those of parquet.thrift (Apache Parquet format 2.10).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MAGIC = b"PAR1"
MOST_FOOTER = 1 << 20
MOST_PAGES = 50_000
DEEPEST = 16
"""Levels of structs within structs; parquet.thrift needs 7."""
FIXED_WIDTHS = {0: 1, 1: 4, 2: 8, 4: 4, 5: 8}
"""Decoded bytes of a value by physical type: BOOLEAN, INT32, INT64, FLOAT, DOUBLE."""
BYTE_ARRAY = 6
ENCODINGS = {0, 2, 3, 4, 5, 6, 8, 9}
"""All but DELTA_BYTE_ARRAY (7), in which a few bytes can stand for any number of long values."""
DATA_PAGE, INDEX_PAGE, DICTIONARY_PAGE, DATA_PAGE_V2 = range(4)


class LayoutError(ValueError):
    """The file is not a Parquet file that this program could have written. The message states why."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A column's part in a row group: physical type, values, bytes of its pages once decompressed, and of its dictionary."""

    column: tuple[str, ...]
    kind: int
    values: int
    unpacked: int
    dictionary: int


@dataclass(frozen=True, slots=True)
class Layout:
    """A file's number of rows and of leaf columns, and its chunks."""

    rows: int
    leaves: int
    chunks: list[Chunk]


def layout(content: bytes) -> Layout:
    """What the file says of itself, checked against its pages. Raises LayoutError."""
    if len(content) < 12 or content[:4] != MAGIC or content[-4:] != MAGIC:
        raise LayoutError("it is not a Parquet file")
    size = int.from_bytes(content[-8:-4], "little")
    if size > MOST_FOOTER or size > len(content) - 12:
        raise LayoutError(f"its footer has {size} bytes: expected at most {min(MOST_FOOTER, len(content) - 12)}")
    footer, _ = _struct(content, len(content) - 8 - size, len(content) - 8)
    elements = _list(footer, 2)
    leaves = sum(1 for element in elements if isinstance(element, dict) and not element.get(5))
    if len(elements) > 3 * leaves + 1:  # a list of texts has three; readers descend into nested ones recursively
        raise LayoutError("its columns are nested")
    groups = [_dict(group) for group in _list(footer, 4)]
    rows = _count(footer, 3)
    if rows != sum(_count(group, 3) for group in groups):
        raise LayoutError("its number of rows is not the sum of its row groups'")
    room = [MOST_PAGES]
    chunks = [
        _chunk(content, _dict(chunk), len(content) - 8 - size, room) for group in groups for chunk in _list(group, 1)
    ]
    return Layout(rows, leaves, chunks)


def _chunk(content: bytes, chunk: dict[int, Any], footer: int, room: list[int]) -> Chunk:
    own = _dict(chunk.get(3))
    if 1 in chunk or 8 in chunk:
        raise LayoutError("a column is encrypted or in another file")
    kind, values, start = own.get(1), _count(own, 5), _count(own, 9)
    if kind not in FIXED_WIDTHS and kind != BYTE_ARRAY:
        raise LayoutError(f"a column has the physical type {kind}: expected whole numbers, floats, booleans or text")
    if 11 in own:
        if _count(own, 11) >= start:
            raise LayoutError("a dictionary comes after its data")
        start = _count(own, 11)
    stop = start + _count(own, 7)
    if stop > footer:
        raise LayoutError("a column extends beyond the data")
    found = unpacked = dictionary = 0
    for page, size in _pages(content, start, stop, room):
        unpacked += size
        header = _dict(page.get({DATA_PAGE: 5, DICTIONARY_PAGE: 7, DATA_PAGE_V2: 8}.get(page.get(1, -1), -1), {}))
        if page.get(1) == DICTIONARY_PAGE:
            dictionary = max(dictionary, size)
            continue
        if header.get(4 if page.get(1) == DATA_PAGE_V2 else 2) not in ENCODINGS:
            raise LayoutError("a page has an encoding that this program does not write")
        found += _count(header, 1)
    if found != values:
        raise LayoutError(f"the pages of a column have {found} values, the footer says {values}")
    path = tuple(part.decode("utf-8", "replace") for part in _list(own, 3) if isinstance(part, bytes))
    return Chunk(path, kind, values, unpacked, dictionary)


def _pages(content: bytes, at: int, stop: int, room: list[int]) -> Iterator[tuple[dict[int, Any], int]]:
    """Each page's header and its size once decompressed."""
    while at < stop:
        room[0] -= 1
        if room[0] < 0:
            raise LayoutError(f"it has more than {MOST_PAGES} pages")
        header, at = _struct(content, at, stop)
        yield header, _count(header, 2)
        at += _count(header, 3)
    if at != stop:
        raise LayoutError("a page extends beyond its column")


def _count(own: dict[int, Any], field: int) -> int:
    value = own.get(field)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise LayoutError(f"a count or an offset is {value!r}: expected 0 or more")
    return value


def _dict(value: Any) -> dict[int, Any]:
    if not isinstance(value, dict):
        raise LayoutError("its metadata is incomplete")
    return value


def _list(own: dict[int, Any], field: int) -> list[Any]:
    value = own.get(field, [])
    if not isinstance(value, list):
        raise LayoutError("its metadata is incomplete")
    return value


# The compact protocol: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)


def _struct(content: bytes, at: int, stop: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """A struct as values by field number, and where it ends."""
    if depth > DEEPEST:
        raise LayoutError("its metadata is nested too deeply")
    found: dict[int, Any] = {}
    field = 0
    while True:
        head = _byte(content, at, stop)
        at += 1
        if head == 0:
            return found, at
        if head >> 4:
            field += head >> 4
        else:
            field, at = _zigzag(content, at, stop)
        kind = head & 15
        if kind in (TRUE, FALSE):
            found[field] = kind == TRUE
        else:
            found[field], at = _value(content, at, stop, kind, depth)


def _value(content: bytes, at: int, stop: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (TRUE, FALSE, BYTE):  # a boolean in a list takes a byte
        return _byte(content, at, stop), at + 1
    if kind in (I16, I32, I64):
        return _zigzag(content, at, stop)
    if kind in (DOUBLE, BINARY):
        size, at = (8, at) if kind == DOUBLE else _varint(content, at, stop)
        if size > stop - at:
            raise LayoutError("its metadata is cut off")
        return content[at : at + size], at + size
    if kind in (LIST, SET):
        return _members(content, at, stop, depth)
    if kind == STRUCT:
        return _struct(content, at, stop, depth + 1)
    raise LayoutError("its metadata has a value of an unknown type")  # parquet.thrift has no maps


def _members(content: bytes, at: int, stop: int, depth: int) -> tuple[list[Any], int]:
    head = _byte(content, at, stop)
    at += 1
    count = head >> 4
    if count == 15:
        count, at = _varint(content, at, stop)
    if count > stop - at:  # each takes at least a byte
        raise LayoutError("its metadata is cut off")
    found = []
    for _ in range(count):
        value, at = _value(content, at, stop, head & 15, depth + 1)
        found.append(value)
    return found, at


def _byte(content: bytes, at: int, stop: int) -> int:
    if at >= stop:
        raise LayoutError("its metadata is cut off")
    return content[at]


def _varint(content: bytes, at: int, stop: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = _byte(content, at, stop)
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise LayoutError("its metadata has a number of more than 64 bits")


def _zigzag(content: bytes, at: int, stop: int) -> tuple[int, int]:
    value, at = _varint(content, at, stop)
    return (value >> 1) ^ -(value & 1), at

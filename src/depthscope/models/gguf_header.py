"""The header of a GGUF file: metadata and table of tensors, without the vocabulary and without the weights.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The gguf package's reader makes an array of each string of
the vocabulary, which takes many seconds; transformers' reader knows some of the tensor types only.
"""

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from depthscope.errors import ModelError
from depthscope.untrusted import open_regular

MAGIC = b"GGUF"
VERSIONS = (2, 3)
DEEPEST = 8
STRING, ARRAY = 8, 9
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Value types of fixed size, as characters of struct."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """An entry of the table of tensors."""

    name: str
    shape: tuple[int, ...]
    """As torch has it, the fastest dimension last."""
    kind: int
    """The number of its type in GGMLQuantizationType."""
    offset: int
    """In bytes, from the start of the data."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself. Of an array in the metadata the length is kept."""

    metadata: dict[str, Any]
    tensors: tuple[StoredTensor, ...]
    data_start: int


def read_header(path: Path) -> Header:
    """The header of a GGUF file.

    Raises ValueError or struct.error where it is not one, or ends too early, ModelError for what is not a regular file.
    """
    with open_regular(path, ModelError) as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _Reader(data).header()


class _Reader:
    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.position = data, 0

    def header(self) -> Header:
        magic, (version, tensors, entries) = self.take(4), self.unpack("IQQ")
        if magic != MAGIC:
            raise ValueError(f"it begins with {magic!r}, expected {MAGIC!r}")
        if version not in VERSIONS:
            raise ValueError(f"it has version {version} of the format, expected one of {VERSIONS}")
        metadata = {}
        for _ in range(entries):
            name = self.string()
            metadata[name] = self.value(*self.unpack("I"))
        found = tuple(self.tensor() for _ in range(tensors))
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment is {alignment!r}, expected a positive number")
        return Header(metadata, found, -(-self.position // alignment) * alignment)

    def tensor(self) -> StoredTensor:
        name = self.string()
        (dimensions,) = self.unpack("I")
        if dimensions > 8:
            raise ValueError(f"tensor {name} has {dimensions} dimensions")
        shape = tuple(reversed(self.unpack(f"{dimensions}Q")))
        kind, offset = self.unpack("IQ")
        return StoredTensor(name, shape, kind, offset)

    def value(self, kind: int, depth: int = 0) -> Any:
        if depth > DEEPEST:
            raise ValueError(f"its metadata hold arrays nested more than {DEEPEST} levels deep")
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.unpack(_scalar(kind))[0]
        element, count = self.unpack("IQ")
        if element in (STRING, ARRAY):
            for _ in range(count):
                if element == STRING:
                    self.skip(*self.unpack("Q"))
                else:
                    self.value(ARRAY, depth + 1)
        else:
            self.skip(struct.calcsize(_scalar(element)) * count)
        return count

    def string(self) -> str:
        return self.take(*self.unpack("Q")).decode("utf-8")

    def unpack(self, layout: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{layout}", self.data, self.position)
        self.position += struct.calcsize(f"<{layout}")
        return found

    def take(self, count: int) -> bytes:
        start = self.position
        self.skip(count)
        return self.data[start : self.position]

    def skip(self, count: int) -> None:
        self.position += count
        if self.position > len(self.data):
            raise ValueError(f"it ends at byte {len(self.data):,}, in the middle of its header")


def _scalar(kind: int) -> str:
    if kind not in SCALARS:
        raise ValueError(f"its metadata hold a value of type {kind}, which the format does not have")
    return SCALARS[kind]


def end_of_data(header: Header, sizes: dict[int, tuple[int, int]]) -> int:
    """The byte at which the last tensor ends. `sizes`: by type, elements of a block and its bytes.

    Raises ValueError for a type that is not among them.
    """
    return max(_ends(header, sizes), default=header.data_start)


def _ends(header: Header, sizes: dict[int, tuple[int, int]]) -> Iterator[int]:
    for tensor in header.tensors:
        if tensor.kind not in sizes:
            raise ValueError(f"tensor {tensor.name} has the type {tensor.kind}, which the gguf package does not know")
        elements, size = sizes[tensor.kind]
        yield header.data_start + tensor.offset + prod(tensor.shape) // elements * size

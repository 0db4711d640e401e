"""The tensors of safetensors files: read one at a time, into memory that is allocated already.

A file is opened for one read and closed again, and never memory-mapped, so that what was read counts once against the memory of
the process, and a file that is overwritten later changes nothing in it. Each read checks that the file is still the one whose
header was read: otherwise the weights of one model would be mixed with those of another.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from depthscope.errors import ModelError
from depthscope.untrusted import open_regular, parse_json

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
"""safetensors' names of dtypes; a quantised checkpoint may hold others."""
LONGEST_HEADER = 100_000_000
"""Bytes; the limit of the safetensors library itself."""


class FileState(NamedTuple):
    """What changes when a file is replaced or written to."""

    device: int
    inode: int
    size: int
    modified: int
    """In nanoseconds."""

    @classmethod
    def of(cls, opened: BinaryIO) -> "FileState":
        """The state of an open file."""
        found = os.fstat(opened.fileno())
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a safetensors file: which file, how many bytes from its start, dtype and shape."""

    file: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    state: FileState | None = None
    """The file as it was when its header was read."""

    @property
    def bytes(self) -> int:
        """Its size on disk."""
        return prod(self.shape) * self.dtype.itemsize

    def __getitem__(self, index: Any) -> Tensor:
        """Values, read when transformers asks for them."""
        return self.read()[index]

    def read(self) -> Tensor:
        """The tensor, in memory of its own. Raises ModelError where the file was changed or replaced."""
        tensor = torch.empty(self.shape, dtype=self.dtype)
        self.read_into(tensor)
        return tensor

    def read_into(self, tensor: Tensor) -> None:
        """Fill a contiguous CPU tensor of the same dtype and shape. Raises ModelError as `read` does."""
        # Ours to keep, whatever the file holds: the tensor was made from this dtype and shape (Deferred.write_into).
        assert tensor.dtype == self.dtype
        assert tuple(tensor.shape) == self.shape
        left = tensor.view(-1).view(torch.uint8).numpy().data
        with open_regular(self.file, ModelError) as file:
            self._require_unchanged(file)
            file.seek(self.offset)
            while left:
                count = file.readinto(left)  # type: ignore[attr-defined]
                if not count:
                    raise ModelError(f"{self.file} ends {len(left)} bytes too early: it was changed while it was read")
                left = left[count:]
            self._require_unchanged(file)

    def _require_unchanged(self, file: BinaryIO) -> None:
        if self.state is not None and FileState.of(file) != self.state:
            raise ModelError(
                f"{self.file} was changed or replaced while the model was in use: expected the file as it was when loading "
                "began, so that no weights of two models are mixed. Load the model again"
            )


class Header(NamedTuple):
    """What a safetensors file says of itself: its state when it was read, where the values begin, entries by tensor."""

    file: Path
    state: FileState
    start: int
    entries: dict[str, Any]

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shapes of its tensors."""
        return [tuple(entry["shape"]) for entry in self.entries.values()]


def read_headers(files: Sequence[Path]) -> list[Header]:
    """The headers of safetensors files. Raises ModelError for a file that is not whole, or not such a file."""
    return [_header(file) for file in files]


def _header(file: Path) -> Header:
    with open_regular(file, ModelError) as opened:
        state = FileState.of(opened)
        try:
            with safe_open(file, framework="pt"):  # checks that header and length fit together
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(f"the weights in {file} cannot be loaded: {error}") from error
        length = int.from_bytes(opened.read(8), "little")
        if length > LONGEST_HEADER:
            raise ModelError(f"{file} has a header of {length:,} bytes: expected at most {LONGEST_HEADER:,}")
        entries = parse_json(opened.read(length), f"the header of {file}", ModelError)
    entries.pop("__metadata__", None)
    return Header(file, state, 8 + length, entries)


def stored_tensors(headers: Sequence[Header]) -> dict[str, StoredTensor]:
    """Every tensor of the files by its name. Raises ModelError for a dtype that is not one of DTYPES."""
    found: dict[str, StoredTensor] = {}
    for header in headers:
        for name, entry in header.entries.items():
            if entry["dtype"] not in DTYPES:
                raise ModelError(
                    f"{header.file}: {name} is stored as {entry['dtype']}, expected one of {', '.join(DTYPES)}"
                )
            start = header.start + entry["data_offsets"][0]
            dtype, shape = DTYPES[entry["dtype"]], tuple(entry["shape"])
            found[name] = StoredTensor(header.file, start, dtype, shape, header.state)
    return found

"""The tensors of a safetensors checkpoint on disk: read one at a time, into memory that is allocated already.

A file is opened for one read and closed again, and never memory-mapped, so that what was read counts once against the memory of
the process and the operating system is free to drop the pages.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file, get_checkpoint_shard_files

from depthscope.errors import ModelError

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
}
"""safetensors' names of dtypes; a quantised checkpoint may hold others."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a safetensors file: which file, how many bytes from its start, dtype and shape."""

    file: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size on disk."""
        return prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """The tensor, in memory of its own. Raises ModelError where the file has become shorter."""
        tensor = torch.empty(self.shape, dtype=self.dtype)
        self.read_into(tensor)
        return tensor

    def read_into(self, tensor: Tensor) -> None:
        """Fill a contiguous CPU tensor of the same dtype and shape. Raises ModelError where the file has become shorter."""
        # Ours to keep, whatever the file holds: the tensor was made from this dtype and shape (Deferred.write_into).
        assert tensor.dtype == self.dtype
        assert tuple(tensor.shape) == self.shape
        left = tensor.view(-1).view(torch.uint8).numpy().data
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.offset)
            while left:
                count = file.readinto(left)
                if not count:
                    raise ModelError(f"{self.file} ends {len(left)} bytes too early: it was changed while it was read")
                left = left[count:]


def checkpoint_files(location: str, revision: str | None) -> list[Path]:
    """The safetensors files of a folder or a Hugging Face id (fetched if need be); none where there are no such files."""
    optional: dict[str, Any] = {
        "revision": revision or "main",
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_gated_repo": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    whole = cached_file(location, SAFE_WEIGHTS_NAME, **optional)
    if whole is not None:
        return [Path(whole)]
    index = cached_file(location, SAFE_WEIGHTS_INDEX_NAME, **optional)
    if index is None:
        return []
    shards, _ = get_checkpoint_shard_files(location, index, revision=revision or "main")
    return [Path(shard) for shard in shards]


def stored_tensors(files: Sequence[Path]) -> dict[str, StoredTensor]:
    """Every tensor of the files by its name. Nothing but headers is read.

    Raises SafetensorError for a file that is not whole, ModelError for a dtype that is not one of DTYPES.
    """
    found: dict[str, StoredTensor] = {}
    for file in files:
        with safe_open(file, framework="pt"):  # checks that header and length fit together
            pass
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in DTYPES:
                raise ModelError(f"{file}: {name} is stored as {entry['dtype']}, expected one of {', '.join(DTYPES)}")
            start = 8 + length + entry["data_offsets"][0]
            found[name] = StoredTensor(file, start, DTYPES[entry["dtype"]], tuple(entry["shape"]))
    return found

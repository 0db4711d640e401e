"""Writing the weights of an export as safetensors files, one part of the model after the other.

At most one file's tensors are in memory beyond the model itself, so that a model larger than memory can be exported too.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from depthscope.errors import RunError
from depthscope.models.admitted import INDEX, WEIGHTS, weight_files
from depthscope.models.export.target import Target
from depthscope.models.export.tensors import Part, State, as_stored, read_part
from depthscope.models.memory import memory_errors
from depthscope.models.model import Model

LARGEST = 5 * 10**9
"""Bytes of a file where the original does not say how large its own are: what transformers and the hub advise."""


@dataclass(frozen=True, slots=True)
class Written:
    """What was written: bytes of tensors, and how many tensors."""

    bytes: int
    tensors: int


def largest_shard(model: Model) -> int:
    """How large a file may be: as large as the original's largest, or LARGEST where that is one file or not known."""
    files = [] if model.folder is None or model.gguf is not None else weight_files(model.folder)
    return max(file.stat().st_size for file in files) if len(files) > 1 else LARGEST


def shards_of(parts: Sequence[Part], largest: int) -> list[list[Part]]:
    """The parts that go into each file: as many as fit into it, at least one."""
    found: list[list[Part]] = []
    room = 0
    for part in parts:
        if not found or part.size > room:
            found.append([])
            room = largest
        found[-1].append(part)
        room -= part.size
    return found


def write_weights(
    model: Model,
    target: Target,
    parts: Sequence[Part],
    order: Sequence[int],
    folder: Path,
    dtype: torch.dtype,
    tell: Callable[[str, int, int], None],
) -> Written:
    """Write the parts in `folder`, in the names and the form in which checkpoints of the family keep them.

    Raises RunError where a file cannot be written, MemoryShortError where a file's tensors do not fit into memory.
    """
    shards = shards_of(parts, largest_shard(model))
    named = (
        [WEIGHTS]
        if len(shards) == 1
        else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    )
    places: dict[str, str] = {}
    written = done = 0
    model.stack.expect([part.block for part in parts if part.block is not None])
    for name, shard in zip(named, shards, strict=True):
        tensors: State = {}
        with memory_errors("hold the tensors of one file", "Load the model with --stream yes, or free memory"):
            for part in shard:
                tensors |= as_stored(model, read_part(model, target, part, order, dtype))
                done += 1
                tell("writing layers", done, len(parts))
            tensors = _apart(tensors)
        try:
            save_file(tensors, folder / name, metadata={"format": "pt"})
        except (SafetensorError, OSError) as error:
            raise RunError(f"the weights cannot be written to {folder.parent}: {error}") from error
        places |= dict.fromkeys(tensors, name)
        written += sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": written}, "weight_map": dict(sorted(places.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return Written(written, len(places))


def _apart(tensors: State) -> State:
    """The tensors, each in memory of its own where several share one: safetensors writes no aliases."""
    seen: set[int] = set()
    found: State = {}
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        found[name] = tensor.contiguous().clone() if place in seen else _whole(tensor)
        seen |= {place, found[name].untyped_storage().data_ptr()}
    return found


def _whole(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_contiguous() else tensor.contiguous()

"""How large a model a configuration asks for, checked against its weights and the memory before anything is allocated.

A configuration of a few bytes can ask for a million layers. Numbers that transformers would loop over are compared with the
table of tensors, which no model's layers, experts or dimensions exceed; what remains is built on the meta device, where
tensors have shapes and no values, and its size is compared with the weights and with the memory that is available.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from transformers.initialization import no_init_weights

from depthscope.errors import ModelError
from depthscope.models.configuration import model_errors
from depthscope.models.memory import require_memory
from depthscope.models.offload.streaming import device_memory
from depthscope.models.quiet import quiet

SPARE = 1024
"""Layers, experts and the like that a configuration may name beyond those it has tensors for (`max_window_layers`, say)."""
MOST_LABELS = 100_000
MOST_ELEMENTS = 1 << 24
"""Any number that is neither a position, a token nor a base: 16.8 million, above every dimension of a known model."""
UNBOUNDED = ("theta", "base", "position", "_id", "seed", "window", "length", "ctx", "version", "max_seq")
"""Parts of names of numbers that can be larger, and over which nothing loops."""
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""Numbers of blocks, each of which has a tensor of its own."""
LAYERS, EXPERTS, LABELS = ("layer", "depth", "block"), ("expert",), ("label",)
FREE_ELEMENTS = 10_000_000
"""Elements a model may have beyond twice those of its weights (tables computed from the configuration)."""


def check_numbers(config: Mapping[str, Any], shapes: Sequence[tuple[int, ...]], where: str) -> None:
    """Raise ModelError for a number in a configuration that its weights, of these shapes, rule out.

    Called before transformers sees the configuration: many of its classes make lists and modules of these lengths.
    """
    tensors = len(shapes)
    widest = max((max(shape, default=1) for shape in shapes), default=0)
    stacked = max((shape[0] for shape in shapes if len(shape) > 2), default=0)
    for path, value in numbers(config):
        name = path.rpartition(".")[2].partition("[")[0].lower()
        most = _most(name, tensors, stacked, widest)
        if most is not None and not -most <= value <= most:
            raise ModelError(
                f"{where}: {path} is {_shown(value)}, more than any model with these weights has ({tensors:,} tensors, of at "
                f"most {widest:,} in a dimension): expected at most {most:,}. Restore the file that came with the weights"
            )
    for key in ("id2label", "label2id"):
        if isinstance(found := config.get(key), Mapping | list) and len(found) > MOST_LABELS:
            raise ModelError(f"{where}: {key} has {len(found):,} entries, expected at most {MOST_LABELS:,}")


def _most(name: str, tensors: int, stacked: int, widest: int) -> int | None:
    if any(part in name for part in LABELS):
        return MOST_LABELS
    if name in DEPTHS:
        return max(1, tensors)
    if any(part in name for part in EXPERTS) and "size" not in name and "dim" not in name:
        return max(tensors, stacked) + SPARE
    if any(part in name for part in LAYERS) and "size" not in name and "dim" not in name:
        return tensors + SPARE
    if any(part in name for part in UNBOUNDED):
        return None
    return max(MOST_ELEMENTS, widest)


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, int]]:
    """Every whole number in JSON values, with its place."""
    if isinstance(value, Mapping):
        for key, member in value.items():
            yield from numbers(member, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for place, member in enumerate(value):
            yield from numbers(member, f"{path}[{place}]")
    elif isinstance(value, int) and not isinstance(value, bool):
        yield path, value


def _shown(value: int) -> str:
    return f"{value:,}" if abs(value) < 10**30 else f"a number of {len(str(abs(value) // 10**20)) + 20} digits"


@dataclass(frozen=True, slots=True)
class Asked:
    """What a configuration asks for: a model of class `made_by` in `dtype` on `device`, with weights of these shapes."""

    source: str
    made_by: Any
    config: Any
    shapes: Sequence[tuple[int, ...]]
    dtype: torch.dtype
    device: torch.device

    def check(self, *, resident: bool, quantised: bool) -> None:
        """Raise ModelError unless the model can be made and is about as large as its weights, MemoryShortError where it
        is to be held whole (`resident`) and does not fit into the memory available.
        """
        with model_errors(f"{self.source} config.json cannot be used", self.config), quiet():
            with torch.device("meta"), no_init_weights():
                model = self.made_by(copy.deepcopy(self.config))
            held = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values()
            asked = sum(tensor.numel() for tensor in held)
            needed = sum(tensor.numel() * self._size(tensor.dtype) for tensor in held)
        stored = sum(map(prod, self.shapes))
        if quantised:
            return  # packed: neither elements nor bytes are those of the model as it is built here
        if asked > 2 * stored + FREE_ELEMENTS:
            raise ModelError(
                f"the weights of {self.source} do not fit its config.json: it asks for a model of {asked:,} numbers, and the "
                f"weights are {stored:,}. One of the two files belongs to another model"
            )
        limit = device_memory(self.device)
        if resident and limit is not None:
            what = f"loading {self.source} in {str(self.dtype).removeprefix('torch.')}"
            require_memory(needed, what, "Stream it (--stream yes), choose --dtype bfloat16, or free memory", limit)

    def _size(self, dtype: torch.dtype) -> int:
        return (self.dtype if dtype.is_floating_point else dtype).itemsize

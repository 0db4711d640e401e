"""How much is computed at once on a device. Affects speed and memory, and numbers only by rounding.

The best sizes for a card are data: `cards.json` holds what `benchmarks/accelerator.py` measured, by card and by model width.
A card that is not listed uses the sizes of the most similar one; accelerators other than CUDA's use ACCELERATOR.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import log2
from pathlib import Path
from typing import Any

import torch

CARDS = Path(__file__).with_name("cards.json")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens of a piece, and the part of tokens × vocabulary that is processed at a time."""

    tokens: int
    """Tokens of a work unit, and of one piece in it."""
    together: int
    """The most tokens in one call of a block: several routes share a call if a piece is smaller."""
    rows: int
    """Tokens whose logits are in memory at once."""
    slice_width: int
    """Vocabulary entries in one slice. It depends only on the device and the model, so that the sums of a token are added in
    the same order whatever else is in the batch."""
    reductions: str = "plain"
    """The fastest form of the passes over the vocabulary (`reductions`)."""


CPU = Sizes(tokens=1024, together=1024, rows=1024, slice_width=2048)
"""Measured (benchmarks/speed): 8 MiB of float32 logits stay in the cache during the passes over them."""
ACCELERATOR = Sizes(tokens=16_384, together=16_384, rows=8192, slice_width=16_384, reductions="triton")
"""Estimated: large enough that a matrix product takes many times as long as its launch."""


@dataclass(frozen=True, slots=True)
class Card:
    """What distinguishes one accelerator from another."""

    name: str
    memory: float
    """In GiB."""
    multiprocessors: int
    capability: float

    def distance(self, other: "Card") -> float:
        """How different the two are: doublings of memory and of multiprocessors, plus generations."""
        return (
            abs(log2(self.memory / other.memory))
            + abs(log2(self.multiprocessors / other.multiprocessors))
            + abs(self.capability - other.capability)
        )


def card(device: torch.device) -> Card:
    """The card behind a CUDA device."""
    found = torch.cuda.get_device_properties(device)
    return Card(found.name, found.total_memory / 2**30, found.multi_processor_count, found.major + found.minor / 10)


def sizes_for(device: torch.device, width: int) -> Sizes:
    """The sizes for a model whose residual stream is `width` wide on a device."""
    return CPU if device.type == "cpu" else _of_accelerator(device, width)


@cache
def _of_accelerator(device: torch.device, width: int) -> Sizes:
    measured = json.loads(CARDS.read_text(encoding="utf-8"))
    return nearest(measured, card(device), width) if device.type == "cuda" and measured else ACCELERATOR


def nearest(measured: Sequence[dict[str, Any]], one: Card, width: int) -> Sizes:
    """The sizes measured on the card most similar to `one`, for the model width closest to `width`."""
    like = min(measured, key=lambda entry: one.distance(Card(**entry["card"])))
    of_width = min(like["sizes"], key=lambda entry: abs(log2(entry["width"] / width)))
    return Sizes(**{name: value for name, value in of_width.items() if name != "width"})

"""How much is computed at once on a kind of device. It decides speed and memory, never the numbers beyond rounding."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """Tokens of a piece, and the part of tokens × vocabulary that is worked on at a time."""

    tokens: int
    """Of a work unit, and of one call of a block."""
    rows: int
    """Tokens whose logits are there at once."""
    slice_width: int
    """Vocabulary entries in one slice. It follows from nothing but the device, so that a token's sums are added up in the
    same order whatever it is computed together with."""


CPU = Sizes(tokens=1024, rows=1024, slice_width=2048)
"""Measured (benchmarks/speed): 8 MiB of float32 logits stay in the cache for the passes over them."""
ACCELERATOR = Sizes(tokens=16_384, rows=8192, slice_width=16_384)
"""Reckoned, not measured: large enough that a product takes many times what starting it takes."""


def sizes_for(device: str) -> Sizes:
    """The sizes for a torch device type, such as `cpu` or `cuda`."""
    return CPU if device == "cpu" else ACCELERATOR

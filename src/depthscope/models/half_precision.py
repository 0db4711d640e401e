"""What half precision costs on a CPU: one without instructions for it takes longer than in float32, for the same results."""

import time

import torch
from torch.nn.functional import linear

ROWS, INPUTS, OUTPUTS = 256, 512, 1024
"""Of the product that is timed: milliseconds in float32."""
ROUNDS = 3
SLOWER = 2.0
"""A ratio that is worth a note. Smaller ones may be due to other work on the machine."""


def time_of_products(dtype: torch.dtype) -> float:
    """How many times as long as in float32 the CPU takes for a product in `dtype`: the fastest of a few of each, in turns."""
    best = {torch.float32: float("inf"), dtype: float("inf")}
    operands = {one: (torch.ones(ROWS, INPUTS, dtype=one), torch.ones(OUTPUTS, INPUTS, dtype=one)) for one in best}
    with torch.inference_mode():
        for turn in range(ROUNDS + 1):
            for one, (given, weight) in operands.items():
                begun = time.perf_counter()
                linear(given, weight)
                if turn:  # the first makes the kernel
                    best[one] = min(best[one], time.perf_counter() - begun)
    return best[dtype] / best[torch.float32]

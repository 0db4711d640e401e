"""What do the moments of neurons cost beside the matrix product they need? On the shapes of gpt2, random weights.

    python benchmarks/neurons.py [--neurons 2048] [--vocabulary 50257] [--width 768] [--threads 1 2] [--repeats 5]

The bare product of all w_out with all of W_U, in the tiles the moments use and in one call per 1024 neurons (whichever is
faster counts), and the moments, taken in turns; medians and the ratio. What is done once per model (the vocabulary's
directions and matrices of second moments) is timed apart: it does not grow with the number of neurons. gpt2 has 36,864
neurons; the default is a part of them, since the cost of a pass is proportional to their number.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date

import torch
from torch import Tensor

from depthscope.statistics.moments import TILES, VocabularyDirections


def seconds(act: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def product(w_out: Tensor, weight: Tensor, neurons: int, entries: int) -> None:
    """The matrix product alone, tile after tile into one buffer."""
    buffer = torch.empty(min(neurons, len(w_out)) * min(entries, len(weight)))
    for low in range(0, len(weight), entries):
        columns = weight[low : low + entries].T
        for start in range(0, len(w_out), neurons):
            rows = w_out[start : start + neurons]
            shape = (len(rows), columns.shape[1])
            torch.mm(rows, columns, out=buffer[: shape[0] * shape[1]].view(shape))


def measure(options: argparse.Namespace, threads: int) -> None:
    """Print medians and the ratio for a number of threads."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(options.vocabulary, options.width, generator=generator)
    w_out = torch.randn(options.neurons, options.width, generator=generator)
    start = time.perf_counter()
    directions = VocabularyDirections(weight)
    once = time.perf_counter() - start
    ways: dict[str, Callable[[], object]] = {
        "product in tiles": lambda: product(w_out, weight, *TILES["cpu"]),
        "product at once": lambda: product(w_out, weight, 1024, options.vocabulary),
        "moments": lambda: directions.moments(w_out),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(options.repeats + 1):
        for name, act in ways.items():
            spent = seconds(act)
            if turn:  # the first turn warms up
                taken[name].append(spent)
    median = {name: statistics.median(times) for name, times in taken.items()}
    bare = min(median["product in tiles"], median["product at once"])
    print(f"{threads} thread(s): " + ", ".join(f"{name} {value:.3f} s" for name, value in median.items()), end="; ")
    print(f"once per model {once:.2f} s; ratio {median['moments'] / bare:.3f}", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Moments of neurons against the matrix product alone.")
    parser.add_argument("--neurons", type=int, default=2048)
    parser.add_argument("--vocabulary", type=int, default=50_257)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(f"{options.neurons:,} neurons × {options.vocabulary:,} tokens × {options.width}", end="; ")
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {date.today()}")
    for threads in options.threads:
        measure(options, threads)


if __name__ == "__main__":
    main()

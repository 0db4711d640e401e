"""A sweep in a process set up in different ways, on an idle machine and beside other work.

    python -m benchmarks.busy [--rounds 3] [--busy 0 1] [--ways default brief "one thread" kept] [--tokens 512] [--window 64]

default: nothing set. brief: torch's waiting threads spin briefly. kept: so, and the allocator keeps freed memory.
A drop sweep of bookshelf-gpt2, in processes of their own that take turns, while so many endless loops run.
Prints the seconds of each, and the medians. Loading the model is not timed.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from depthscope.allocator import KEPT

BRIEF = {"GOMP_SPINCOUNT": "1000"}
KEEP = {"MALLOC_MMAP_THRESHOLD_": str(KEPT), "MALLOC_TRIM_THRESHOLD_": str(KEPT)}
WAYS = {"default": {}, "brief": BRIEF, "one thread": {"OMP_NUM_THREADS": "1"}, "kept": BRIEF | KEEP}
SETTINGS = {"OMP_WAIT_POLICY", "GLIBC_TUNABLES"}.union(*WAYS.values())
SWEEP = """
import sys, time
import depthscope as ds
tokens, window = map(int, sys.argv[1:])
model, text = ds.load("bookshelf-gpt2"), ds.corpus("bookshelf", tokens=tokens)
begun = time.perf_counter()
ds.study(model, text, experiments=["sweep"], edits=["drop"], window=window, progress=False)
print(time.perf_counter() - begun)
"""


LOOP = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    pass
"""
"""It ends with its parent, whatever ended that."""


@contextmanager
def loops(count: int) -> Iterator[None]:
    """So many processes that do nothing but occupy a core."""
    started = [subprocess.Popen([sys.executable, "-c", LOOP, str(os.getpid())]) for _ in range(count)]
    try:
        yield
    finally:
        for one in started:
            one.kill()
            one.wait()


def seconds(way: str, tokens: int, window: int) -> float:
    """Of one sweep."""
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", SWEEP, str(tokens), str(window)],
        env=kept | WAYS[way],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="A sweep beside other work.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--window", type=int, default=64)
    options = parser.parse_args()
    for count in options.busy:
        spent: dict[str, list[float]] = {way: [] for way in options.ways}
        with loops(count):
            for _ in range(options.rounds):
                for way in options.ways:
                    spent[way].append(seconds(way, options.tokens, options.window))
        for way, values in spent.items():
            each = ", ".join(f"{one:.1f}" for one in values)
            print(f"{count} busy, {way}: median {median(values):.1f} s ({each})", flush=True)


if __name__ == "__main__":
    main()

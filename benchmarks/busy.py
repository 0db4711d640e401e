"""A sweep beside other work: torch's threads spinning for as long as they like, or briefly, and one thread only.

    python -m benchmarks.busy [--rounds 3] [--busy 0 1] [--ways "default" "brief" "one thread"]

A drop sweep of bookshelf-gpt2 on 512 tokens, in processes of their own that take turns, while so many endless loops run.
Prints the seconds of each, and the medians. Loading the model is not timed.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

WAYS = {"default": {}, "brief": {"GOMP_SPINCOUNT": "1000"}, "one thread": {"OMP_NUM_THREADS": "1"}}
SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS")
SWEEP = """
import time
import depthscope as ds
model, text = ds.load("bookshelf-gpt2"), ds.corpus("bookshelf", tokens=512)
begun = time.perf_counter()
ds.study(model, text, experiments=["sweep"], edits=["drop"], window=64, progress=False)
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


def seconds(way: str) -> float:
    """Of one sweep."""
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", SWEEP], env=kept | WAYS[way], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="A sweep beside other work.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    options = parser.parse_args()
    for count in options.busy:
        spent: dict[str, list[float]] = {way: [] for way in options.ways}
        with loops(count):
            for _ in range(options.rounds):
                for way in options.ways:
                    spent[way].append(seconds(way))
        for way, values in spent.items():
            each = ", ".join(f"{one:.1f}" for one in values)
            print(f"{count} busy, {way}: median {median(values):.1f} s ({each})", flush=True)


if __name__ == "__main__":
    main()

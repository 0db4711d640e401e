"""Does the memory of a sweep grow with the text? Peak memory of two sweeps, each in a process of its own.

    python benchmarks/memory.py [--model bookshelf-gpt2] [--tokens 20000 200000] [--edits swap,drop,drop-attn,drop-mlp]

Prints a line per sweep and the ratio of the peaks. Peak memory is the largest resident set of the process, as the
operating system accounts it, weights and libraries included.
"""

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from datetime import date

COMMAND = "from depthscope.cli import main; main()"


def sweep(model: str, tokens: int, edits: str) -> tuple[float, float]:
    """(peak MiB, seconds) of one sweep."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["sweep", model, "--tokens", str(tokens), "--edits", edits, "--out", folder]
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-c", COMMAND, *arguments], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if os.waitstatus_to_exitcode(status):
            sys.exit("the sweep failed")
        return usage.ru_maxrss / 1024, time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Peak memory of sweeps over texts of different length.")
    parser.add_argument("--model", default="bookshelf-gpt2")
    parser.add_argument("--tokens", type=int, nargs=2, default=[20_000, 200_000])
    parser.add_argument("--edits", default="swap,drop,drop-attn,drop-mlp")
    options = parser.parse_args()
    print(f"{options.model}, {options.edits}; {platform.machine()}, {os.cpu_count()} cores, {date.today()}")
    peaks = []
    for tokens in options.tokens:
        peak, seconds = sweep(options.model, tokens, options.edits)
        peaks.append(peak)
        print(f"{tokens:>9,} tokens  peak {peak:7.1f} MiB  {seconds:7.1f} s", flush=True)
    print(f"ratio {peaks[1] / peaks[0]:.3f}")


if __name__ == "__main__":
    main()

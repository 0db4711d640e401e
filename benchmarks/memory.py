"""Does the memory of a study grow with the text? Peak memory of two studies, each in a process of its own.

    python benchmarks/memory.py [--model bookshelf-gpt2] [--tokens 20000 200000] [--experiments sweep]

Prints a line per study and the ratio of the peaks. Peak memory is the largest resident set of the process, as the
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


def study(model: str, tokens: int, experiments: str) -> tuple[float, float]:
    """(peak MiB, seconds) of one study."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["study", model, "--tokens", str(tokens), "--experiments", experiments, "--out", folder]
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-c", COMMAND, *arguments], stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if os.waitstatus_to_exitcode(status):
            sys.exit("the study failed")
        return usage.ru_maxrss / 1024, time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Peak memory of studies over texts of different length.")
    parser.add_argument("--model", default="bookshelf-gpt2")
    parser.add_argument("--tokens", type=int, nargs=2, default=[20_000, 200_000])
    parser.add_argument("--experiments", default="sweep")
    options = parser.parse_args()
    print(f"{options.model}, {options.experiments}; {platform.machine()}, {os.cpu_count()} cores, {date.today()}")
    peaks = []
    for tokens in options.tokens:
        peak, seconds = study(options.model, tokens, options.experiments)
        peaks.append(peak)
        print(f"{tokens:>9,} tokens  peak {peak:7.1f} MiB  {seconds:7.1f} s", flush=True)
    print(f"ratio {peaks[1] / peaks[0]:.3f}")


if __name__ == "__main__":
    main()

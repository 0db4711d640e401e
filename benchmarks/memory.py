"""Peak memory and address space of studies, each in a process of its own: do they grow with the text, what is the least limit?

    python -m benchmarks.memory [--model bookshelf-gpt2] [--tokens 20000 200000] [--window N] [--experiments sweep]
    python -m benchmarks.memory --tokens 256 --limits 1.4 1.7 1.9 2.2 2.45

Prints a line per study and the ratio of the last peak to the first. Peak memory is the largest resident set of the process, as
the operating system accounts it, weights and libraries included. Address space (VmPeak, Linux) is what `ulimit -v` limits: more
than memory, because threads reserve much that they do not use. With `--limits`, in GiB, each study runs under such a limit, and
its exit status is printed.
"""

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from depthscope.studies.provenance import versions

COMMAND = "from depthscope.cli import main; main()"
POLL = 0.05
"""Seconds between looks at the address space; its peak only rises, so only the last moments can be missed."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a study took. `status` is its exit status, `memory` and `space` are MiB."""

    status: int
    memory: float
    space: float
    seconds: float


def study(arguments: list[str], limit: float | None = None) -> Cost:
    """The cost of one study, under a limit of `limit` GiB of address space if one is given."""

    def limited() -> None:
        if limit is not None:
            size = int(limit * 2**30)
            resource.setrlimit(resource.RLIMIT_AS, (size, size))

    with tempfile.TemporaryDirectory() as folder:
        start, space = time.perf_counter(), 0.0
        process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "study", *arguments, "--out", folder],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=limited,
        )
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                return Cost(
                    os.waitstatus_to_exitcode(status), usage.ru_maxrss / 1024, space, time.perf_counter() - start
                )
            space = max(space, _address_space(process.pid))
            time.sleep(POLL)


def _address_space(process: int) -> float:
    """The largest address space of a running process so far, in MiB; 0 where the system does not say."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmPeak")), 0.0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="bookshelf-gpt2")
    parser.add_argument("--tokens", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--window", type=int)
    parser.add_argument("--experiments", default="sweep")
    parser.add_argument("--limits", type=float, nargs="+", help="limits on the address space, in GiB")
    asked = parser.parse_args()
    print(
        f"{asked.model}, {asked.experiments}; {platform.machine()}, {os.cpu_count()} cores, "
        f"torch {versions()['torch']}, {date.today()}"
    )
    costs = []
    for tokens in asked.tokens:
        arguments = [asked.model, "--tokens", str(tokens), "--experiments", asked.experiments]
        arguments += [] if asked.window is None else ["--window", str(asked.window)]
        for limit in asked.limits or [None]:
            cost = study(arguments, limit)
            if cost.status and limit is None:
                sys.exit(f"the study of {tokens} tokens ended with status {cost.status}")
            within = "" if limit is None else f"  limit {limit:5.2f} GiB  status {cost.status}"
            print(
                f"{tokens:>9,} tokens  memory {cost.memory:7.1f} MiB  address space {cost.space:7.1f} MiB  "
                f"{cost.seconds:7.1f} s{within}",
                flush=True,
            )
            costs.append(cost)
    if len(costs) > 1 and not asked.limits:
        print(f"ratio {costs[-1].memory / costs[0].memory:.3f}")


if __name__ == "__main__":
    main()

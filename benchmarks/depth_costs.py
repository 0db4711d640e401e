"""What experiments of the shared pass cost, next to a drop sweep of the same model and text in the same process.

    OMP_NUM_THREADS=1 python -m benchmarks.depth_costs sweep+sweep_classes lens lens+lens_classes

Each argument is an experiment, or several joined by + that are read from one baseline run. They and the drop sweep are timed
in turns, and the median of the rounds is printed, per second of the process's CPU time: with one thread that is what the work
takes on a machine that does nothing else. Only readings of the shared pass can be timed. What an experiment prepares first,
such as maps it fits, is timed apart, once.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

from depthscope.data.corpus import Corpus
from depthscope.data.windows import make_windows
from depthscope.experiments.experiment import Prepared, Reading, Subject
from depthscope.models.load import load
from depthscope.schema.experiments import EXPERIMENTS, options
from depthscope.studies.read_windows import read_windows

SWEEP = "sweep"


def costs(model_name: str, groups: list[str], tokens: int, window: int, rounds: int) -> dict[str, list[float]]:
    """Tokens per second by group and round; the drop sweep is the first group."""
    model = load(model_name)
    corpus = Corpus(tokens=tokens)
    windows = make_windows(corpus, model, length=window)
    defaults = {name: option.default for name, option in options().items()}
    subject = Subject(model, corpus, windows, "auto", {**defaults, "edits": ("drop",)})

    def read(names: str) -> Callable[[], None]:
        readings = [EXPERIMENTS[name].maker()(subject) for name in names.split("+")]
        if others := [reading.name for reading in readings if not isinstance(reading, Reading)]:
            raise SystemExit(f"{', '.join(others)} is no reading of the shared pass: expected one that is")
        for reading in readings:
            if isinstance(reading, Prepared):
                began = time.process_time()
                with TemporaryDirectory() as folder:
                    reading.prepare(Path(folder), lambda what, done, units: None)
                print(f"{reading.name}: prepared in {time.process_time() - began:.1f} s of CPU time")

        def run() -> None:
            for start in range(0, len(windows), per_unit):
                read_windows(model, readings, windows.part(start, start + per_unit))

        return run

    per_unit = max(1, 1024 // windows.length)
    timed = {names: read(names) for names in (SWEEP, *groups)}
    for run in timed.values():
        run()  # warm up
    found: dict[str, list[float]] = {names: [] for names in timed}
    for _ in range(rounds):
        for names, run in timed.items():
            began = time.process_time()
            run()
            found[names].append(windows.tokens / (time.process_time() - began))
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What experiments of the shared pass cost next to a drop sweep.")
    parser.add_argument("experiments", nargs="+", help="names; several that share a pass are joined by +")
    parser.add_argument("--model", default="bookshelf-gpt2")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    found = costs(asked.model, asked.experiments, asked.tokens, asked.window, asked.rounds)
    drop = statistics.median(found[SWEEP])
    print(f"{asked.model}, {asked.tokens} tokens, windows of {asked.window}; {platform.machine()}; {date.today()}")
    print("| experiment | tokens/s of CPU time | drop sweep, tokens/s | time over the sweep's |\n|---|---|---|---|")
    for names in asked.experiments:
        speed = statistics.median(found[names])
        print(f"| {names} | {speed:.0f} | {drop:.0f} | {drop / speed:.2f} |")


if __name__ == "__main__":
    main()

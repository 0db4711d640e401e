"""What experiments cost next to a drop sweep of the same model and text in the same process.

    OMP_NUM_THREADS=1 python -m benchmarks.depth_costs depth_probes patching [--tokens 2048] [--rounds 3]

Experiments and sweep are timed in turns, and medians over the rounds are printed, per second of the process's CPU time: with
one thread that is what the work takes on a machine that does nothing else. A reading of the shared pass is timed with its
baseline run, one with own units for all of its units, per token of the text. Tables are timed apart: what is fitted there does
not grow with the text. Loading, reading the text and writing files are not timed.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from typing import Any

import polars as pl

from depthscope.data.corpus import Corpus
from depthscope.data.windows import make_windows
from depthscope.experiments.experiment import OwnUnits, Subject
from depthscope.models.load import load
from depthscope.schema.experiments import EXPERIMENTS, options
from depthscope.studies.read_windows import read_windows
from depthscope.studies.threads import same_sums

SWEEP = "sweep"
AT_ONCE = 1024
"""Tokens of a work unit, as in a study on a CPU."""


def costs(model_name: str, names: list[str], tokens: int, window: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Median tokens/s and median seconds for the tables, of the drop sweep and of each experiment."""
    model, corpus = load(model_name), Corpus(tokens=tokens)
    windows = make_windows(corpus, model, length=window)
    defaults = {name: option.default for name, option in options().items()} | {"edits": ("drop",)}
    made = {
        name: EXPERIMENTS[name].maker()(Subject(model, corpus, windows, "auto", defaults)) for name in (SWEEP, *names)
    }
    at_once = max(1, AT_ONCE // windows.length)

    def shards(name: str) -> list[pl.DataFrame]:
        one = made[name]
        if isinstance(one, OwnUnits):
            with model.measuring():
                return [one.work(unit) for unit in range(one.units)]
        parts = (windows.part(start, start + at_once) for start in range(0, len(windows), at_once))
        return [read_windows(model, [one], part)[name] for part in parts]

    found: dict[str, list[tuple[float, float]]] = {name: [] for name in made}
    for _ in range(rounds):
        for name, one in made.items():
            measured, seconds = timed(lambda name=name: shards(name))
            with same_sums():
                _, of_tables = timed(lambda one=one, measured=measured: one.tables(iter(measured)))
            found[name].append((windows.tokens / seconds, of_tables))
    return {name: tuple(map(statistics.median, zip(*each, strict=True))) for name, each in found.items()}


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What the work returns, and the CPU time it took."""
    began = time.process_time()
    result = work()
    return result, time.process_time() - began


def main() -> None:
    """Measure and print rows of the table in docs/performance.md."""
    parser = argparse.ArgumentParser(description="What experiments cost next to a drop sweep.")
    parser.add_argument("experiments", nargs="+")
    parser.add_argument("--model", default="bookshelf-gpt2")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    found = costs(asked.model, asked.experiments, asked.tokens, asked.window, asked.rounds)
    print(f"{asked.model}, {asked.tokens} tokens, windows of {asked.window}; {platform.machine()}; {date.today()}")
    print("| experiment | tokens/s of CPU time | drop sweep, tokens/s | time over the sweep's | tables, s |")
    print("|---|---|---|---|---|")
    drop = found[SWEEP][0]
    for name in asked.experiments:
        speed, tables = found[name]
        print(f"| {name} | {speed:.0f} | {drop:.0f} | {drop / speed:.2f} | {tables:.1f} |")


if __name__ == "__main__":
    main()

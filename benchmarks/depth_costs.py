"""What experiments cost next to a drop sweep of the same model and text in the same process.

    OMP_NUM_THREADS=1 python -m benchmarks.depth_costs dependency lens+effective_depth [--tokens 1024] [--rounds 3]

Each argument is an experiment, or several joined by + that share a run of the unmodified model. They and the drop sweep are
timed in turns, the unmodified model's run included, and medians over the rounds are printed, per second of the process's CPU
time: with one thread that is what the work takes on a machine that does nothing else. Of an experiment with own units all are
timed, per token of the text. What is prepared first, and the tables at the end, do not grow with the text: timed apart.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import polars as pl

from depthscope.data.corpus import Corpus
from depthscope.data.windows import Windows, make_windows
from depthscope.experiments.experiment import OwnUnits, Prepared, Reading, Running, Subject
from depthscope.models.load import load
from depthscope.models.model import Model
from depthscope.schema.experiments import EXPERIMENTS
from depthscope.studies.read_windows import read_windows
from depthscope.studies.settings import study_settings
from depthscope.studies.threads import same_sums

SWEEP = "sweep"
AT_ONCE = 1024
"""Tokens of a work unit, as in a study on a CPU."""

Costs = tuple[float, float, float]
"""Tokens per second, seconds of preparing, seconds of writing the tables."""


def costs(asked: argparse.Namespace) -> dict[str, Costs]:
    """The medians over the rounds, of the drop sweep and of each group of experiments."""
    model, corpus = load(asked.model, dtype="float32"), Corpus(tokens=asked.tokens)
    windows = make_windows(corpus, model, length=asked.window)
    model.kernels.forget()
    options = dict(one.split("=", 1) for one in asked.options)

    def made(name: str, **given: Any) -> Running:
        settings = study_settings(experiments=(name,), **given)
        return EXPERIMENTS[name].maker()(Subject(model, corpus, windows, settings.bos, settings.options))

    with TemporaryDirectory() as folder:
        groups = {SWEEP: [made(SWEEP, edits="drop")]}
        groups |= {group: [made(name, **options) for name in group.split("+")] for group in asked.experiments}
        prepared = {name: timed(lambda one=one: prepare(one, Path(folder)))[1] for name, one in groups.items()}
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in groups}
        for turn in range(asked.rounds + 1):
            for name, group in groups.items():
                shards, seconds = timed(lambda group=group: measured(model, group, windows))
                _, of_tables = timed(lambda group=group, shards=shards: write(group, shards))
                if turn:  # the first one packs weights
                    found[name].append((windows.tokens / seconds, of_tables))
    return {
        name: (statistics.median(speed for speed, _ in rounds), prepared[name], statistics.median(t for _, t in rounds))
        for name, rounds in found.items()
    }


def prepare(group: Sequence[Running], folder: Path) -> None:
    """What experiments do before their first unit."""
    for one in group:
        if isinstance(one, Prepared):
            one.prepare(folder, lambda what, done, units: None)


def measured(model: Model, group: Sequence[Running], windows: Windows) -> Mapping[str, list[pl.DataFrame]]:
    """All shards of each experiment of a group."""
    shards: dict[str, list[pl.DataFrame]] = {one.name: [] for one in group}
    readings = [one for one in group if isinstance(one, Reading)]
    for part in _parts(windows) if readings else ():
        for name, shard in read_windows(model, readings, part).items():
            shards[name].append(shard)
    for one in group:
        if isinstance(one, OwnUnits):
            with model.measuring():
                shards[one.name] += [one.work(unit) for unit in range(one.units)]
    return shards


def write(group: Sequence[Running], shards: Mapping[str, list[pl.DataFrame]]) -> None:
    """Make the tables."""
    with same_sums():
        for one in group:
            one.tables(iter(shards[one.name]))


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What the work returns, and the CPU time it took."""
    began = time.process_time()
    result = work()
    return result, time.process_time() - began


def _parts(windows: Windows) -> Iterator[Windows]:
    at_once = max(1, AT_ONCE // windows.length)
    for start in range(0, len(windows), at_once):
        yield windows.part(start, min(start + at_once, len(windows)))


def main() -> None:
    """Measure and print rows of the table in docs/performance.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+", help="names; several that share a pass are joined by +")
    parser.add_argument("--model", default="bookshelf-gpt2")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--options", nargs="*", default=[], help="name=value, of all the experiments")
    asked = parser.parse_args()
    found = costs(asked)
    print(f"{asked.model}, {asked.tokens} tokens, windows of {asked.window}; {platform.machine()}; {date.today()}")
    print("| experiment | tokens/s | drop sweep, tokens/s | time over the sweep's | before, s | tables, s |")
    print("|---|---:|---:|---:|---:|---:|")
    drop, _, _ = found.pop(SWEEP)
    for name, (speed, before, tables) in found.items():
        print(f"| {name} | {speed:,.0f} | {drop:,.0f} | {drop / speed:.2f} | {before:.1f} | {tables:.1f} |")


if __name__ == "__main__":
    main()

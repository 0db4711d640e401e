"""Seconds until every mean KL of a sweep is known to ± a goal: `--precision`, against reading the text uniformly.

    python -m benchmarks.precision.seconds MODEL [--goal 0.1] [--edits drop] [--window N] [--rounds 2] [--most TOKENS]
                                           [--orders documents windows]

Uniform reading measures every edit on all that it reads, with the same engine, intervals and growth from look to look, until
the last row is known. It reads whole documents in random order (`documents`), or windows of all documents in random order
(`windows`), as `--precision` does, which besides leaves out the edits that are known. All take turns; a round has random orders
of its own for uniform reading (that of `--precision` is fixed by the text). Printed: tokens and seconds of each, and how many
times those of `--precision` the seconds are.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

import depthscope as ds
from depthscope.data.corpus import Corpus
from depthscope.data.windows import Windows, make_windows
from depthscope.engine.baseline import Baseline
from depthscope.experiments.sweep import Sweep, possible_edits
from depthscope.models.model import Model
from depthscope.statistics.repeated_intervals import RepeatedIntervals, critical_value, look_schedule

UNIT = 1024
"""Tokens of a work unit on a CPU, as in a study."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What one way took. `reached` is False where the text ended first."""

    tokens: int
    seconds: float
    reached: bool
    widest: float
    """Half-width of the widest row's interval at the end, relative to its mean."""

    def __str__(self) -> str:
        goal = "" if self.reached else f", text ended at ±{self.widest:.1%}"
        return f"{self.tokens:,} tokens, {self.seconds:.1f} s{goal}"


def aimed(model: Model, corpus: Corpus, goal: float, edits: Sequence[str] | None, window: int | None) -> Taken:
    """A study with a goal, as a user runs it, with its directory, tables and page left to the caller."""
    begun = time.perf_counter()
    study = ds.study(model, corpus, experiments=["sweep"], edits=edits, precision=goal, window=window, progress=False)
    outcome = study.run.manifest.precision
    assert outcome is not None
    spent = time.perf_counter() - begun
    return Taken(outcome.tokens, spent, outcome.reached, outcome.widest.half_width_relative if outcome.widest else 0.0)


def in_documents(windows: Windows, seed: int) -> list[int]:
    """Rows of the windows, whole documents in random order."""
    numbers = np.random.default_rng(seed).permutation(np.unique(windows.document))
    return [row for number in numbers for row in np.flatnonzero(windows.document == number).tolist()]


def in_any_order(windows: Windows, seed: int) -> list[int]:
    """Rows of the windows in random order."""
    return np.random.default_rng(seed).permutation(len(windows.document)).tolist()


ORDERS = {"documents": in_documents, "windows": in_any_order}


def uniform(
    model: Model,
    corpus: Corpus,
    goal: float,
    edits: Sequence[str] | None,
    window: int | None,
    ordered: Callable[[Windows, int], list[int]],
    seed: int,
) -> Taken:
    """Every edit on all that is read, until the last row is known."""
    begun = time.perf_counter()
    windows = make_windows(corpus, model, length=window)
    kinds, _ = possible_edits(edits, model)
    sweep = Sweep(model, windows.length, kinds)
    place = [measure.name for measure in sweep.measures].index("kl")
    order = ordered(windows, seed)
    looks = look_schedule(windows.document[order])
    looked = RepeatedIntervals(len(sweep.edits), critical_value(looks))
    each = np.full(len(sweep.edits), windows.length)
    at_once = max(1, UNIT // windows.length)
    widest, read = np.inf, 0
    for first in range(0, len(order), at_once):
        rows = order[first : first + at_once]
        read += len(rows)
        batch = windows.take(np.array(rows))
        with model.measuring():
            baseline = Baseline(model, *batch.batch(), keep=sweep.keep, named=batch.called)
            kl = sweep.values(baseline)[place, 1:].reshape(len(sweep.edits), len(rows), -1).sum(2, dtype=np.float64)
        for number, row in enumerate(rows, first + 1):
            looked.add(int(windows.document[row]), each, kl[:, number - first - 1])
            if number in looks:
                found = looked.estimate()
                widest = float(((found.high - found.mean) / found.mean).max())
        if widest <= goal:
            break
    return Taken(read * windows.length, time.perf_counter() - begun, widest <= goal, widest)


def main() -> None:
    """Take turns and print."""
    parser = argparse.ArgumentParser(description="Seconds until every mean KL of a sweep is known to a goal.")
    parser.add_argument("model")
    parser.add_argument("--goal", type=float, default=0.1)
    parser.add_argument("--data", default="bookshelf")
    parser.add_argument("--edits")
    parser.add_argument("--window", type=int)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--most", type=int, default=1_000_000, help="tokens of the text")
    parser.add_argument("--orders", nargs="+", default=list(ORDERS), choices=list(ORDERS))
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    model = ds.load(options.model, dtype=options.dtype)
    corpus = ds.corpus(options.data, tokens=options.most)
    edits = options.edits.split(",") if options.edits else None
    ds.study(model, ds.corpus(options.data, tokens=512), experiments=["sweep"], edits=edits, window=64, progress=False)
    ratios: dict[str, list[float]] = {name: [] for name in options.orders}
    for turn in range(options.rounds):
        own = aimed(model, corpus, options.goal, edits, options.window)
        print(f"{options.model} ±{options.goal:.0%}: --precision {own}", flush=True)
        for name, of in ratios.items():
            other = uniform(model, corpus, options.goal, edits, options.window, ORDERS[name], turn)
            of.append(other.seconds / own.seconds)
            print(f"{options.model} ±{options.goal:.0%}: {name} {other}; {of[-1]:.2f} times", flush=True)
    for name, of in ratios.items():
        print(f"{options.model} ±{options.goal:.0%}: {name} median {statistics.median(of):.2f} times", flush=True)


if __name__ == "__main__":
    main()

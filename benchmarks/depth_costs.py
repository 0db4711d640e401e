"""What the experiments on depth cost next to a sweep of drops: both read the same windows, in turns, in one process.

    python -m benchmarks.depth_costs NAME … [--model bookshelf-gpt2] [--tokens 1024] [--rounds 3] [--options variant=all]

NAME is an experiment, or several joined by + that share what they compute. Only readings of the shared pass; the run of the
unmodified model, which all share, is not timed. Prints medians.
"""

import argparse
import time
from collections.abc import Sequence
from functools import reduce
from operator import or_
from statistics import median
from typing import Any

import depthscope as ds
from depthscope.data.windows import Windows, make_windows
from depthscope.engine.baseline import Baseline
from depthscope.experiments.experiment import Reading, Subject
from depthscope.models.model import Model
from depthscope.schema.experiments import EXPERIMENTS
from depthscope.studies.settings import study_settings


def seconds(model: Model, readings: Sequence[Reading], windows: Windows) -> float:
    """The time that readings take on the windows."""
    with model.measuring():
        baseline = Baseline(model, *windows.batch(), keep=reduce(or_, (reading.keep for reading in readings)))
        _ = baseline.measured  # shared by all readings
        start = time.perf_counter()
        for reading in readings:
            reading.read(baseline, windows)
        return time.perf_counter() - start


def main() -> None:
    """Read the arguments, time everything in turns and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--model", default="bookshelf-gpt2")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--window", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--options", nargs="*", default=[], help="name=value, of the experiments")
    given = parser.parse_args()
    model, corpus = ds.load(given.model, dtype="float32"), ds.corpus(tokens=given.tokens)
    windows = make_windows(corpus, model, length=given.window)
    model.kernels.forget()
    chosen = dict(one.split("=", 1) for one in given.options)

    def made(name: str, **options: Any) -> Reading:
        settings = study_settings(experiments=name, **options)
        return EXPERIMENTS[name].maker()(Subject(model, corpus, windows, settings.bos, settings.options))

    readings = {"drops": [made("sweep", edits="drop")]}
    readings |= {names: [made(name, **chosen) for name in names.split("+")] for names in given.names}
    taken: dict[str, list[float]] = {name: [] for name in readings}
    for turn in range(given.rounds + 1):
        for name, together in readings.items():
            one = seconds(model, together, windows)
            if turn:  # the first turn packs weights
                taken[name].append(one)
    print(f"| {given.model}, {windows.tokens:,} tokens | tokens/s | of the drops' time (range) |\n|---|---:|---|")
    for name, times in taken.items():
        ratios = [one / drop for one, drop in zip(times, taken["drops"], strict=True)]
        spread = "" if name == "drops" else f" ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {name} | {windows.tokens / median(times):,.1f} | {median(ratios):.2f}{spread} |")


if __name__ == "__main__":
    main()

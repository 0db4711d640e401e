"""What experiments on the shared pass cost, next to a drop sweep of the same model and text.

    OMP_NUM_THREADS=1 python -m benchmarks.depth_costs NAME [NAME …] [--model bookshelf-gpt2] [--tokens 2048] [--rounds 3]

Each experiment is timed alone, the model's own run included, as is the sweep; they take turns in the same process. Printed are
tokens/s, the median over the rounds, and their ratio to the sweep's as rows of the table in docs/performance.md. Making an
experiment (reading its weights, drawing its samples) and writing its tables are not timed.
"""

import argparse
from statistics import median
from time import perf_counter

import depthscope as ds
from depthscope.experiments.experiment import Reading
from depthscope.schema.experiments import EXPERIMENTS
from depthscope.studies.read_windows import read_windows
from depthscope.studies.run_study import studied
from depthscope.studies.settings import study_settings

SWEEP = "sweep"
TEXT_AT_ONCE = 1024
"""Tokens of a work unit, as in a study on a CPU."""


def timed(names: list[str], model_name: str, tokens: int, rounds: int) -> dict[str, float]:
    """Median tokens/s of the drop sweep and of each experiment."""
    model = ds.load(model_name)
    settings = study_settings(experiments=(SWEEP, *names), edits=("drop",))
    subject = studied(model, ds.corpus(tokens=tokens), settings, lambda what, done, units: None)
    readings = {name: EXPERIMENTS[name].maker()(subject) for name in (SWEEP, *names)}
    at_once = max(1, TEXT_AT_ONCE // subject.windows.length)
    units = [subject.windows.part(start, start + at_once) for start in range(0, len(subject.windows), at_once)]
    seconds: dict[str, list[float]] = {name: [] for name in readings}
    for turn in range(rounds + 1):  # the first one is not counted
        for name, reading in readings.items():
            if not isinstance(reading, Reading):
                raise SystemExit(f"{name} does not read the shared pass: it cannot be timed here")
            start = perf_counter()
            for unit in units:
                read_windows(model, [reading], unit)
            if turn:
                seconds[name].append(perf_counter() - start)
    return {name: subject.windows.tokens / median(spent) for name, spent in seconds.items()}


def main() -> None:
    """Print a row for each experiment."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("names", nargs="+", choices=[name for name in EXPERIMENTS if name != SWEEP])
    arguments.add_argument("--model", default="bookshelf-gpt2")
    arguments.add_argument("--tokens", type=int, default=2048)
    arguments.add_argument("--rounds", type=int, default=3)
    asked = arguments.parse_args()
    speeds = timed(asked.names, asked.model, asked.tokens, asked.rounds)
    for name in asked.names:
        print(f"| `{name}` | {speeds[name]:,.0f} | {speeds[SWEEP]:,.0f} | {speeds[name] / speeds[SWEEP]:.2g} |")


if __name__ == "__main__":
    main()

"""Does the confidence sequence cover the truth at all looks together, and where one stops?

    python benchmarks/coverage.py [--simulations 8000] [--documents 1500]

Simulated documents: tokens skewed as KL is (gamma, shape 1/2), all multiplied by a factor of their document, log-normal with
the given spread; documents of one to five windows of 16 tokens, or all alike. One looks after every document. `all looks` is
the share of simulations in which no interval from the fewest documents on misses the true mean; `ordinary` is the same for
the intervals of tables, which are not made for that. `±10%` is the share in which the interval does not miss at the first
look at which it is within ±10 % of its mean, and with how many documents that is, among simulations that come so far.
"""

import argparse
import platform
from dataclasses import dataclass, field
from datetime import date

import numpy as np
from jaxtyping import Bool, Float64

from depthscope.statistics.confidence_sequence import FEWEST, ConfidenceSequence
from depthscope.statistics.estimate import Estimate

GOALS = (0.05, 0.1, 0.2)
WINDOW = 16
SCENARIOS = ((0.3, (1, 5)), (0.6, (1, 5)), (0.6, (1, 1)), (0.6, (16, 16)), (1.0, (1, 5)))
"""Spread of the documents' factor, and the least and most windows of a document."""
TOGETHER = 1000


@dataclass(slots=True)
class Coverage:
    """Shares of simulations that are covered; `at_goal` holds (share, mean documents, how many reach it) per goal."""

    all_looks: float
    ordinary: float
    at_goal: dict[float, tuple[float, float, int]] = field(default_factory=dict)


def simulate(spread: float, windows: tuple[int, int], simulations: int, documents: int, seed: int = 0) -> Coverage:
    """Coverage in `simulations` texts of so many documents; those computed together share the documents' lengths."""
    parts = [
        _together(spread, windows, min(TOGETHER, simulations - start), documents, np.random.default_rng([seed, start]))
        for start in range(0, simulations, TOGETHER)
    ]
    kept, ordinary, stops, right = (np.concatenate(columns, axis=-1) for columns in zip(*parts, strict=True))
    found = Coverage(float(kept.mean()), float(ordinary.mean()))
    for goal, stop, covered in zip(GOALS, stops, right, strict=True):
        come = stop > 0
        if come.any():
            found.at_goal[goal] = (float(covered[come].mean()), float(stop[come].mean()), int(come.sum()))
    return found


def _together(
    spread: float, windows: tuple[int, int], columns: int, documents: int, rng: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """Per simulation: never missed, by the sequence and ordinarily; per goal the stop (0 for none) and whether it covers."""
    truth = np.exp(spread**2 / 2)
    sequence = ConfidenceSequence(columns)
    never, never_ordinary = np.ones((2, columns), dtype=bool)
    stops, right = np.zeros((len(GOALS), columns)), np.zeros((len(GOALS), columns), dtype=bool)
    for count in range(1, documents + 1):
        tokens = WINDOW * int(rng.integers(windows[0], windows[1], endpoint=True))
        sequence.add(tokens, np.exp(rng.normal(0, spread, columns)) * rng.gamma(0.5 * tokens, 2.0, columns))
        if count < FEWEST:
            continue
        found = sequence.estimate()
        now = covers(found, truth)
        never &= now
        never_ordinary &= covers(sequence.moments.estimate(), truth)
        for place, goal in enumerate(GOALS):
            stop = (stops[place] == 0) & (found.high - found.mean <= goal * found.mean)
            stops[place, stop], right[place, stop] = count, now[stop]
    return never, never_ordinary, stops, right


def covers(found: Estimate, truth: float) -> Bool[np.ndarray, " columns"]:
    """Where the truth lies in the interval."""
    low: Float64[np.ndarray, " columns"] = found.low
    return (low <= truth) & (truth <= found.high)


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description="Coverage of the confidence sequence.")
    parser.add_argument("--simulations", type=int, default=8000)
    parser.add_argument("--documents", type=int, default=1500)
    options = parser.parse_args()
    print(f"{platform.machine()}, numpy {np.__version__}, {date.today()}")
    print(f"{options.simulations} simulations of {options.documents} documents, looks from {FEWEST} on\n")
    goals = "  ".join(f"{f'±{goal:.0%}':>17}" for goal in GOALS)
    print(f"spread  windows  all looks  ordinary  {goals}")
    for spread, windows in SCENARIOS:
        found = simulate(spread, windows, options.simulations, options.documents)
        reached = "  ".join(
            f"{'{:.3f} at {:.0f}'.format(*found.at_goal[goal][:2]) if goal in found.at_goal else '–':>17}"
            for goal in GOALS
        )
        length = "-".join(str(count) for count in dict.fromkeys(windows))
        print(f"{spread:6}  {length:>7}  {found.all_looks:9.3f}  {found.ordinary:8.3f}  {reached}", flush=True)


if __name__ == "__main__":
    main()

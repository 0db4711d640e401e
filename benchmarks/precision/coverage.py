"""Do the intervals of `--precision` cover the mean where a row stops? On recorded KL of real models.

    python -m benchmarks.precision.coverage FOLDER [FOLDER …] [--simulations 400] [--documents 200]

A text is simulated by drawing recorded documents with replacement; the truth is the mean of the recorded ones. Its windows are
read in random order, with the looks and the stopping rule of the library, every row stopping alone. Printed per model and goal:
the share of (text, row) that reach it, of these the share whose interval at the stop covers the truth, of the worst row too,
the bias of the mean at the stop as a share of the truth, how many tokens the last row and the mean row take, and the same
coverage at all looks at once.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64, Int64

from benchmarks.precision.record import Recorded
from depthscope.statistics.repeated_intervals import RepeatedIntervals, critical_value, look_schedule

GOALS = (0.05, 0.1, 0.2)

Windows = list[tuple[int, Float64[np.ndarray, " rows"]]]


def drawn(recorded: Recorded, sums: Float64[np.ndarray, "windows rows"], documents: int, seed: int) -> Windows:
    """Windows of a simulated text in random order: (number of the document in this text, sums of the window)."""
    rng = np.random.default_rng(seed)
    there = np.unique(recorded.document)
    chosen = rng.choice(there, documents)
    windows = [
        (place, sums[row]) for place, one in enumerate(chosen) for row in np.flatnonzero(recorded.document == one)
    ]
    return [windows[place] for place in rng.permutation(len(windows))]


def stops(
    windows: Windows, length: int, goals: Sequence[float], truth: Float64[np.ndarray, " rows"]
) -> tuple[Int64[np.ndarray, "goals rows"], Float64[np.ndarray, "goals rows"], np.ndarray, np.ndarray]:
    """Windows at which each row stops (0 for never), its mean then, whether it is covered then, and at all looks."""
    looks = look_schedule(np.array([document for document, _ in windows]))
    looked = RepeatedIntervals(len(truth), critical_value(looks))
    shape = len(goals), len(truth)
    stop, mean, right = np.zeros(shape, dtype=np.int64), np.zeros(shape), np.zeros(shape, dtype=bool)
    always = np.ones(len(truth), dtype=bool)
    tokens = np.full(len(truth), length)
    for place, (document, sums) in enumerate(windows, 1):
        looked.add(document, tokens, sums)
        if place not in looks:
            continue
        found = looked.estimate()
        covered = (found.low <= truth) & (truth <= found.high)
        always &= covered
        for which, goal in enumerate(goals):
            now = (stop[which] == 0) & (found.high - found.mean <= goal * found.mean)
            stop[which, now], mean[which, now], right[which, now] = place, found.mean[now], covered[now]
    return stop, mean, right, always


def report(folder: Path, simulations: int, documents: int) -> None:
    """Print the table of a model."""
    recorded = Recorded.read(folder)
    length = recorded.kl.shape[2]
    sums = recorded.kl.astype(np.float64).sum(2)
    truth = sums.mean(0) / length
    found = [stops(drawn(recorded, sums, documents, seed), length, GOALS, truth) for seed in range(simulations)]
    stop, mean, right, always = (np.stack(part) for part in zip(*found, strict=True))
    print(f"\n{folder.name}: {len(sums)} windows of {length} tokens, {len(np.unique(recorded.document))} documents")
    print(f"covered at all looks: {always.mean():.3f}, worst row {always.mean(0).min():.3f}")
    print("goal   reached  covered  worst row   bias  tokens of last row  of mean row")
    for which, goal in enumerate(GOALS):
        reached = stop[:, which] > 0
        if not reached.any():
            print(f"±{goal:.0%}   never")
            continue
        often = np.flatnonzero(reached.sum(0) >= simulations / 2)
        worst = min((right[:, which, row][reached[:, row]].mean() for row in often), default=np.nan)
        bias = (mean[:, which] / truth - 1)[reached].mean()
        all_reach = stop[:, which][reached.all(1)]
        last, each = (np.nan, np.nan) if not len(all_reach) else (all_reach.max(1).mean(), all_reach.mean())
        print(
            f"±{goal:>4.0%} {reached.mean():>8.3f} {right[:, which][reached].mean():>8.3f} {worst:>10.3f} {bias:>+7.4f}"
            f" {last * length:>19,.0f} {each * length:>12,.0f}",
            flush=True,
        )


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description="Coverage of the intervals of --precision at the stop.")
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--simulations", type=int, default=400)
    parser.add_argument("--documents", type=int, default=400, help="of a simulated text")
    options = parser.parse_args()
    print(f"{options.simulations} texts of {options.documents} documents")
    for folder in options.folders:
        report(folder, options.simulations, options.documents)


if __name__ == "__main__":
    main()

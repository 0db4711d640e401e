"""How often does the interval of the best cell of a map contain its true value? Simulated coverage.

    python -m benchmarks.best_cell [--simulations 400] [--write]

A simulated map has CELLS cells measured on DOCUMENTS documents of one to five windows of 256 tokens. A document's mean KL in
a cell is the cell's true value times a log-normal factor of the document, times one of document and cell, times a gamma
variable whose shape is the number of tokens over 40: tokens' KL is skewed and correlated. The factors' spreads are (0.5,
0.1), as for edits that find the same documents hard, (0.3, 0.4), and (0, 0.6), cells that have nothing in common. The true
values are all equal (the null: there is no best cell), spread over two orders of magnitude, or equal and best in a tenth of
the cells. The changes in loss are the same with the true value subtracted from KL and a normal deviation of 0.02 added: they
are skewed and of either sign.

The cell with the lowest estimate is picked. Compared are its interval as in the map (ordinary: of that cell alone), one of a
Gaussian multiplier bootstrap of the maximum at Student's t probabilities, and the one that is used
(statistics/simultaneous.py). With --write the table of docs/experiments/map.md is replaced.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from itertools import product
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks.speed.table import written_into
from depthscope.statistics.estimate import ClusterMoments, Estimate
from depthscope.statistics.simultaneous import together

PAGE = Path(__file__).parents[1] / "docs" / "experiments" / "map.md"
DOCUMENTS, CELLS = (10, 20, 64), (60, 400)
SPREADS = ((0.5, 0.1), (0.3, 0.4), (0.0, 0.6))
"""Of the log of the factor that all cells share, and of each cell's own."""
TRUTHS = ("equal", "spread", "a tenth best")
QUANTITIES = ("KL", "change in loss")
REPLICATES = 500
"""Fewer than in a study, to simulate more maps."""
METHODS = ("ordinary", "multiplier", "used")


@dataclass(frozen=True, slots=True)
class Found:
    """Of one setting: by method, in what share of simulations the picked cell is covered."""

    setting: tuple[str, int, int, tuple[float, float], str]
    covered: tuple[float, ...]


def truth(name: str, cells: int) -> np.ndarray:
    """The true KL of each cell."""
    if name == "equal":
        return np.full(cells, 0.1)
    return np.geomspace(0.05, 5, cells) if name == "spread" else np.where(np.arange(cells) < cells // 10, 0.1, 0.5)


def documents(
    generator: np.random.Generator, count: int, kl: np.ndarray, spreads: tuple[float, float], loss: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Sums [documents, cells] and tokens of a simulated text."""
    tokens = 256.0 * generator.integers(1, 6, count)
    shape = (count, len(kl))
    common, own = (
        np.exp(spread * generator.standard_normal((count, n)) - spread**2 / 2)
        for spread, n in zip(spreads, (1, len(kl)), strict=True)
    )
    values = kl * common * own * generator.gamma(tokens[:, None] / 40, 40 / tokens[:, None], shape)
    if loss:
        values += generator.normal(0, 0.02, shape) - 0.1
    return values * tokens[:, None], tokens


def ordinary(sums: np.ndarray, tokens: np.ndarray) -> Estimate:
    """The intervals of a table: each cell's alone."""
    moments = ClusterMoments(sums.shape[1])
    for count, row in zip(tokens, sums, strict=True):
        moments.add(int(count), row)
    return moments.estimate()


def multiplier(
    sums: np.ndarray, tokens: np.ndarray, usual: Estimate, positive: bool, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Bounds from the maximum over cells of documents' residuals, times standard normal variables."""
    freedom = len(tokens) - 1
    residuals = sums - usual.mean * tokens[:, None]
    residuals /= np.linalg.norm(residuals, axis=0)
    highest = np.abs(generator.standard_normal((REPLICATES, len(tokens))) @ residuals).max(1)
    times = stats.t.isf(stats.norm.sf(np.quantile(highest, 0.95)), freedom) / stats.t.ppf(0.975, freedom)
    half = times * (usual.high - usual.mean)
    if positive:
        share = half / usual.mean
        return usual.mean * np.exp(-share), usual.mean * np.exp(share)
    return usual.mean - half, usual.mean + half


def simulate(quantity: str, count: int, cells: int, spreads: tuple[float, float], name: str, simulations: int) -> Found:
    """Coverage of the picked cell by each method."""
    loss, kl = quantity != "KL", truth(name, cells)
    true = kl - 0.1 if loss else kl
    covered = []
    for seed in range(simulations):
        generator = np.random.default_rng(seed)
        sums, tokens = documents(generator, count, kl, spreads, loss)
        usual = ordinary(sums, tokens)
        all_at_once = together(sums, tokens, not loss, REPLICATES, seed)
        bounds = [
            (usual.low, usual.high),
            multiplier(sums, tokens, usual, not loss, generator),
            (all_at_once.low, all_at_once.high),
        ]
        best = int(usual.mean.argmin())
        covered.append([low[best] <= true[best] <= high[best] for low, high in bounds])
    return Found(
        (quantity, count, cells, spreads, name),
        tuple(np.mean(covered, axis=0).tolist()),
    )


def everything(simulations: int) -> Iterator[Found]:
    """Every setting."""
    for setting in product(QUANTITIES, DOCUMENTS, CELLS, SPREADS, TRUTHS):
        yield simulate(*setting, simulations)


def table(found: list[Found]) -> list[str]:
    """A row per quantity, number of documents and of cells: the lowest and highest coverage over the other settings."""
    lines = [
        "| quantity | documents | cells | " + " | ".join(f"{name}, covered" for name in METHODS) + " |",
        "|---|---:|---:|" + "---|" * len(METHODS),
    ]
    for quantity, count, cells in product(QUANTITIES, DOCUMENTS, CELLS):
        some = [one for one in found if one.setting[:3] == (quantity, count, cells)]
        if some:
            shares = np.array([one.covered for one in some]).T
            said = [
                f"{100 * low:.1f} – {100 * high:.1f} %" for low, high in zip(shares.min(1), shares.max(1), strict=True)
            ]
            lines.append(f"| {quantity} | {count} | {cells} | {' | '.join(said)} |")
    return lines


def main() -> None:
    """Simulate, print, and write the table."""
    parser = argparse.ArgumentParser(description="Coverage of the interval of a map's best cell.")
    parser.add_argument("--simulations", type=int, default=400)
    parser.add_argument("--write", action="store_true", help="Write the table of docs/experiments/map.md.")
    options = parser.parse_args()
    found = []
    for one in everything(options.simulations):
        found.append(one)
        covered = "  ".join(f"{name} {share:.3f}" for name, share in zip(METHODS, one.covered, strict=True))
        print(*one.setting, covered, flush=True)
    said = (
        f"{options.simulations} simulated texts per setting, {REPLICATES} replicates, {date.today()}. Lowest and highest over "
        "three spreads and three kinds of true values."
    )
    text = "\n".join([said, "", *table(found)])
    print(text)
    if options.write:
        PAGE.write_text(written_into(PAGE.read_text(encoding="utf-8"), text, "coverage"), encoding="utf-8")


if __name__ == "__main__":
    main()

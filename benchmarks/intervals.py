"""How often do intervals of the signatures' effects contain the true effect? Simulated coverage of four kinds of interval.

    python benchmarks/intervals.py [--simulations 500]

Documents are of unequal, log-normal length (standard deviation of the log 0.5 or 0.8) and differ by log-normal factors (0.4 or
0.6) that are half common to all layers, half of each layer; values of short documents are larger. Effects: ratios, a ratio to
a median over layers, shares near 0 and 1, agreement near 1. Intervals, nominally of 95 %: percentile (of the Poisson
bootstrap), BCa (Efron 1987), BCa with the levels of Hesterberg (2015) for the effective number of documents, and the one
that is used (statistics/jackknife.py), with the share of simulations in which it lies wholly above or below the truth.
"""

import argparse
from collections.abc import Callable

import numpy as np
from scipy import stats

from depthscope.schema.signatures import SIGNATURES
from depthscope.stages.effects import EFFECTS
from depthscope.statistics.jackknife import Scale, effective_number, jackknife_interval

LAYERS = 16
DOCUMENTS = (8, 12, 20, 60)
POPULATIONS = ((0.5, 0.4), (0.8, 0.6))
"""Spread of the log of lengths, and of the factors."""
REPLICATES = 1000
POPULATION = 200_000

Draw = Callable[[np.random.Generator, np.ndarray, float], list[np.ndarray]]
"""Means per document [documents, layers] of each measurement, from lengths and the factors' spread."""


def stages(*values: float) -> np.ndarray:
    """A value per stage, over 16 layers."""
    return np.repeat(values, (2, 6, 6, 2)).astype(float)


def factors(generator: np.random.Generator, documents: int, columns: int, spread: float) -> np.ndarray:
    """Log-normal with mean 1, half common to all columns."""
    common, own = generator.standard_normal((documents, 1)), generator.standard_normal((documents, columns))
    return np.exp(spread * np.sqrt(0.5) * (common + own) - spread**2 / 2)


def by_layer(*levels: np.ndarray) -> Draw:
    """Measurements with these levels over layers."""

    def draw(generator: np.random.Generator, tokens: np.ndarray, spread: float) -> list[np.ndarray]:
        short = (tokens[:, None] / 150) ** -0.2
        return [level * short * factors(generator, len(tokens), len(level), spread) for level in levels]

    return draw


def lens(late: float) -> Draw:
    """Lens KL that falls by 8 nats from x_1 on, this share of them in the second half, with some steps upwards."""
    falls = 8 * np.repeat([(1 - late) / 7, late / 8], (7, 8))

    def draw(generator: np.random.Generator, tokens: np.ndarray, spread: float) -> list[np.ndarray]:
        steps = falls * factors(generator, len(tokens), len(falls), spread)
        steps += 0.05 * generator.standard_normal(steps.shape)
        after = np.zeros((len(tokens), 1))
        return [np.hstack([np.full_like(after, 12), np.cumsum(steps[:, ::-1], axis=1)[:, ::-1], after])]

    return draw


def agreement(generator: np.random.Generator, tokens: np.ndarray, spread: float) -> list[np.ndarray]:
    """Shares of tokens, 97 % on average."""
    lost = 0.03 * np.exp(spread * generator.standard_normal(len(tokens)) - spread**2 / 2)
    chance = np.clip(1 - lost, 0, 1)[:, None] * np.ones(LAYERS)
    return [generator.binomial(tokens[:, None], chance) / tokens[:, None]]


CASES: dict[str, tuple[str, Draw]] = {
    "ratio to a median, 30": ("first_layer_sensitivity", by_layer(stages(3, 0.1, 0.1, 1))),
    "ratio to a median, 10": ("last_swap_sensitivity", by_layer(stages(3, 0.1, 0.1, 1)[:-1])),
    "share, 0.90": ("little_early_progress", lens(0.9)),
    "share, 0.98": ("little_early_progress", lens(0.98)),
    "share, 0.05": ("little_early_progress", lens(0.05)),
    "rate after the knee, 0.89": ("progress_sets_in", lens(0.9)),
    "geometric mean of ratios": (
        "mlp_importance_rises",
        by_layer(stages(0.6, 0.08, 0.2, 0.5), stages(0.5, 0.1, 0.05, 0.1)),
    ),
    "ratio of means, 2.9": ("mlp_over_attention", by_layer(stages(1.5, 1.6, 0.6, 0.4))),
    "agreement, 0.97": ("robust_middle", agreement),
}


def lengths(generator: np.random.Generator, documents: int, spread: float) -> np.ndarray:
    """Tokens per document, about 150."""
    return np.maximum(16, np.round(np.exp(generator.normal(5, spread, documents)))).astype(int)


def bca(estimate: float, replicates: np.ndarray, without: np.ndarray, z: float) -> np.ndarray:
    """Bias-corrected and accelerated percentiles (Efron 1987), at levels ∓z."""
    least = 0.5 / len(replicates)
    below = (replicates < estimate).mean() + (replicates == estimate).mean() / 2
    bias = stats.norm.ppf(np.clip(below, least, 1 - least))
    away = without.mean() - without
    scale = 6 * (away**2).sum() ** 1.5
    acceleration = (away**3).sum() / scale if scale else 0.0
    shifted = bias + np.array([-z, z])
    return np.quantile(replicates, stats.norm.cdf(bias + shifted / np.maximum(1 - acceleration * shifted, 1e-9)))


def covered(case: str, documents: int, population: tuple[float, float], simulations: int) -> list[float]:
    """Shares of simulations: coverage of each interval, and the last one above and below the truth."""
    name, draw = CASES[case]
    effect, scale = EFFECTS[name][1], Scale(SIGNATURES[name].lowest, SIGNATURES[name].highest)
    long, spread = population
    generator = np.random.default_rng(1)
    tokens = lengths(generator, POPULATION, long)
    (truth,) = effect(*((tokens @ values / tokens.sum())[None] for values in draw(generator, tokens, spread)))
    counts = [np.random.default_rng([0, document]).poisson(1.0, REPLICATES) for document in range(documents)]
    weights = np.vstack([np.ones(documents), np.array(counts).T, 1 - np.eye(documents)])
    hits = np.zeros(6)
    for _ in range(simulations):
        tokens = lengths(generator, documents, long)
        weighted = weights * tokens
        with np.errstate(invalid="ignore"):  # a replicate without documents
            means = [weighted @ values / weighted.sum(1, keepdims=True) for values in draw(generator, tokens, spread)]
        effects = effect(*means)
        own, replicates, without = effects[0], effects[1 : 1 + REPLICATES], effects[1 + REPLICATES :]
        replicates = replicates[np.isfinite(replicates)]
        number = effective_number(tokens.astype(float))
        wide = np.sqrt(number / (number - 1)) * stats.t.ppf(0.975, number - 1)
        used = jackknife_interval(own, without, replicates, number, scale)
        plain = np.quantile(replicates, (0.025, 0.975))
        intervals = [plain, bca(own, replicates, without, 1.96), bca(own, replicates, without, wide), used]
        hits += [*(low <= truth <= high for low, high in intervals), truth < used[0], truth > used[1]]
    return (hits / simulations).tolist()


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=500)
    simulations = parser.parse_args().simulations
    print("| effect | documents | spreads | percentile | BCa | BCa, expanded | used | above | below |")
    print("|---|---|---|---|---|---|---|---|---|")
    for population in POPULATIONS:
        for case in CASES:
            for documents in DOCUMENTS:
                shares = " | ".join(f"{share:.3f}" for share in covered(case, documents, population, simulations))
                print(f"| {case} | {documents} | {population[0]}, {population[1]} | {shares} |", flush=True)


if __name__ == "__main__":
    main()

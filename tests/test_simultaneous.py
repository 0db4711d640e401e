"""Simultaneous intervals: the definition by loops, coverage of the picked cell, constant memory; intervals over two ways."""

import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from depthscope.statistics import simultaneous
from depthscope.statistics.estimate import ClusterMoments, Estimate, estimate_of
from depthscope.statistics.simultaneous import FEWEST, GroupedSums, together
from depthscope.statistics.two_way import over_both

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.best_cell import simulate

GENERATOR = np.random.default_rng(0)
TOKENS = GENERATOR.integers(1, 5, 14) * 64.0
SUMS = GENERATOR.gamma(2.0, 0.5, (14, 5)) * TOKENS[:, None]


def ratio(sums: np.ndarray, tokens: np.ndarray) -> tuple[float, float]:
    """Mean and standard error of one cell, by the definition."""
    mean = sums.sum() / tokens.sum()
    spread = ((sums - mean * tokens) ** 2).sum()
    return mean, np.sqrt(len(sums) / (len(sums) - 1) * spread) / tokens.sum()


@pytest.mark.parametrize("positive", [True, False])
def test_intervals_equal_their_definition(positive):
    found = together(SUMS, TOKENS, positive, replicates=40, seed=3)
    drawn = np.random.default_rng(3).multinomial(14, np.full(14, 1 / 14), 40)
    highest, lowest = [], []
    for weights in drawn:
        rows, ts = np.repeat(np.arange(14), weights), []
        for cell in range(5):
            own, (mean, error) = ratio(SUMS[:, cell], TOKENS)[0], ratio(SUMS[rows, cell], TOKENS[rows])
            ts.append((np.log(mean) - np.log(own)) * mean / error if positive else (mean - own) / error)
        highest.append(max(ts))
        lowest.append(min(ts))
    high, low = np.quantile(highest, 0.975), np.quantile(lowest, 0.025)
    for cell in range(5):
        mean, error = ratio(SUMS[:, cell], TOKENS)
        ends = (
            (np.log(mean) - np.array([high, low]) * error / mean) if positive else mean - np.array([high, low]) * error
        )
        assert (found.low[cell], found.high[cell]) == pytest.approx(tuple(np.exp(ends) if positive else ends))
        assert found.mean[cell] == pytest.approx(mean)


def test_pieces_of_replicates_and_groups_of_documents(monkeypatch):
    whole = together(SUMS, TOKENS, True, replicates=60)
    grouped = GroupedSums(7)
    for tokens, sums in zip(TOKENS, SUMS, strict=True):
        grouped.add(int(tokens), np.concatenate([[0.0, 0.0], sums]))
    assert grouped.intervals(range(2, 7), True, replicates=60).low == pytest.approx(whole.low, rel=1e-9)
    monkeypatch.setattr(simultaneous, "AT_ONCE", 50)
    assert together(SUMS, TOKENS, True, replicates=60).low == pytest.approx(whole.low, rel=1e-9)
    monkeypatch.setattr(simultaneous, "GROUPS", 4)
    few = GroupedSums(1)
    for tokens in TOKENS:
        few.add(int(tokens), np.array([tokens]))
    assert few.tokens.shape == (4,)
    assert few.tokens.sum() == TOKENS.sum()


def test_cells_without_an_interval():
    equal = np.column_stack([SUMS[:, 0], TOKENS * 0.25, -SUMS[:, 0], TOKENS * 0])
    found = together(equal, TOKENS, positive=True, replicates=50)
    assert found.low[1] == found.mean[1] == found.high[1] == 0.25
    assert found.low[3] == found.high[3] == 0
    assert np.isnan(found.low[2])
    few = together(SUMS[: FEWEST - 1], TOKENS[: FEWEST - 1], positive=True)
    assert np.isnan(few.low).all()
    assert np.isfinite(few.mean).all()


@pytest.mark.parametrize(
    "setting",
    [
        ("KL", 20, 60, (0.5, 0.1), "equal"),
        ("KL", 20, 60, (0.0, 0.6), "equal"),
        ("change in loss", 20, 60, (0.3, 0.4), "a tenth best"),
        ("KL", 64, 60, (0.3, 0.4), "spread"),
    ],
)
def test_the_picked_cell_is_covered(setting):
    """At least 93 % in `python -m benchmarks.best_cell`; here few simulations, whose share may be lower by chance."""
    ordinary, _, used = simulate(*setting, simulations=60).covered
    assert used >= 0.9
    assert ordinary <= used


def test_intervals_over_documents_and_draws():
    generator = np.random.default_rng(1)
    documents = np.arange(30)

    def estimated(draw_spread: float, draws: int = 10) -> tuple[Estimate, Estimate]:
        of_document, of_draw = generator.normal(0, 1, 30), generator.normal(0, draw_spread, draws)
        values = of_document[None, :] + of_draw[:, None] + generator.normal(0, 0.1, (draws, 30))
        usual = estimate_of(values.mean(0)[None], documents)
        return usual, over_both(usual, values.mean(1)[:, None])

    usual, same = estimated(0.0)
    assert same.high - same.mean == pytest.approx(usual.high - usual.mean, rel=0.05)
    covered = [(both.low <= 0 <= both.high).item() for _, both in (estimated(2.0) for _ in range(150))]
    alone = [(usual.low <= 0 <= usual.high).item() for usual, _ in (estimated(2.0) for _ in range(150))]
    assert np.mean(covered) >= 0.91
    assert np.mean(alone) < 0.7
    assert np.isnan(estimated(1.0, draws=1)[1].low).all()


def test_the_two_ways_add_up():
    usual = ClusterMoments(1)
    for value in (1.0, 2.0, 4.0):
        usual.add(1, np.array([value]))
    both = over_both(usual.estimate(), np.array([[1.0], [2.0], [4.0]]))
    # The same variance from both, with 2 degrees of freedom each: V doubles and so do the degrees of freedom.
    half = np.sqrt(2 * np.var([1, 2, 4], ddof=1) / 3) * stats.t.ppf(0.975, 4)
    assert both.high - both.mean == pytest.approx(half)

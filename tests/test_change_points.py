"""Change points against brute force, and how often noise passes; the Poisson bootstrap against its definition."""

from itertools import combinations, pairwise

import numpy as np
import pytest
from scipy import stats

from depthscope.statistics.bootstrap import PoissonBootstrap
from depthscope.statistics.change_points import choose, segment, unexplained
from depthscope.statistics.estimate import ClusterMoments


def naive_cost(signals: np.ndarray, bounds: tuple[int, ...]) -> float:
    edges = (0, *bounds, len(signals))
    return sum(
        (signals[i, s] - signals[a:b, s].mean()) ** 2
        for a, b in pairwise(edges)
        for i in range(a, b)
        for s in range(signals.shape[1])
    )


@pytest.mark.parametrize("changes", [0, 1, 2, 3])
def test_segments_are_the_best_of_all(changes):
    for seed in range(5):
        signals = np.random.default_rng(seed).standard_normal((9, 3))
        found = segment(signals, changes)
        best = min(combinations(range(1, 9), changes), key=lambda bounds: naive_cost(signals, bounds))
        assert found == best
        assert unexplained(signals, found) == pytest.approx(naive_cost(signals, best))


def planted(seed: int, layers: int = 16, noise: float = 0.4) -> np.ndarray:
    generator = np.random.default_rng(seed)
    levels = np.repeat(generator.standard_normal((4, 8)) * 1.5, [2, 5, 6, 3], axis=0)
    return levels + noise * generator.standard_normal((layers, 8))


def test_planted_changes_are_found_and_noise_is_not():
    found = [choose(planted(seed), 3, simulations=100).changes for seed in range(20)]
    assert np.mean([count == 3 for count in found]) >= 0.8
    assert np.mean([segment(planted(seed), 3) == (2, 7, 13) for seed in range(20)]) >= 0.8
    noise = [choose(np.random.default_rng(s).standard_normal((16, 8)), 3, simulations=100).changes for s in range(60)]
    assert np.mean([count > 0 for count in noise]) <= 0.1


def test_one_catastrophic_layer_is_one_change():
    signals = 0.3 * np.random.default_rng(0).standard_normal((12, 6))
    signals[0] += 3
    assert choose(signals, 3).changes == 1
    assert segment(signals, 1) == (1,)


def test_flat_signals_have_no_change():
    assert choose(np.zeros((12, 5)), 3).changes == 0
    assert choose(np.ones((2, 5)), 3).changes == 0


def test_choosing_is_repeatable():
    assert choose(planted(3), 3, seed=5) == choose(planted(3), 3, seed=5)


def test_bootstrap_is_a_ratio_of_counted_sums():
    generator = np.random.default_rng(1)
    tokens, sums = generator.integers(5, 50, 12), generator.standard_normal((12, 3))
    bootstrap = PoissonBootstrap(3, replicates=7, seed=4)
    for document, (n, s) in enumerate(zip(tokens, sums, strict=True)):
        bootstrap.add(document, int(n), s)
    drawn = np.array([np.random.default_rng([4, document]).poisson(1.0, 7) for document in range(12)])
    means = bootstrap.means()
    np.testing.assert_allclose(means[0], sums.sum(0) / tokens.sum())
    for replicate in range(7):
        counts = drawn[:, replicate]
        np.testing.assert_allclose(means[1 + replicate], (counts[:, None] * sums).sum(0) / (counts * tokens).sum())


def test_order_and_company_of_documents_do_not_matter():
    def of(documents: list[int]) -> np.ndarray:
        bootstrap = PoissonBootstrap(1, replicates=20)
        for document in documents:
            bootstrap.add(document, 10 + document, np.array([float(document**2)]))
        return bootstrap.means()

    np.testing.assert_allclose(of([1, 2, 3, 9]), of([9, 3, 2, 1]))


def test_bootstrap_spreads_as_the_interval_of_the_mean_says():
    generator = np.random.default_rng(2)
    bootstrap, moments = PoissonBootstrap(1), ClusterMoments(1)
    for document in range(80):
        n = int(generator.integers(20, 60))
        total = np.array([(generator.standard_normal(n) + generator.standard_normal()).sum()])
        bootstrap.add(document, n, total)
        moments.add(n, total)
    estimate = moments.estimate()
    width = estimate.high[0] - estimate.low[0]
    low, high = np.quantile(bootstrap.means()[1:, 0], stats.norm.cdf([-1.96, 1.96]))
    assert high - low == pytest.approx(width, rel=0.15)

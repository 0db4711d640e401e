"""The Poisson bootstrap against its definition."""

import numpy as np
import pytest
from scipy import stats

from depthscope.statistics.bootstrap import PoissonBootstrap
from depthscope.statistics.estimate import ClusterMoments


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

"""The confidence sequence: its naive definition, its laws, and how often it covers the truth."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from depthscope.statistics.confidence_sequence import FEWEST, TIGHTEST, ConfidenceSequence, boundary


def sequence_of(tokens, sums):
    sequence = ConfidenceSequence(sums.shape[1])
    for count, row in zip(tokens, sums, strict=True):
        sequence.add(int(count), row)
    return sequence


def some_documents(count, columns=3, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, 50, count)
    return tokens, tokens[:, None] * rng.lognormal(0, 0.5, (count, columns))


@pytest.mark.parametrize("count", [FEWEST, 97, 1000])
def test_it_equals_its_naive_definition(count):
    """Theorem 2.2 of the paper with s² the linearised variance of the ratio, as written there, and Student's t."""
    tokens, sums = some_documents(count)
    found = sequence_of(tokens, sums).estimate()
    alpha = 0.05
    rho = np.sqrt((-2 * np.log(alpha) + np.log(-2 * np.log(alpha) + 1)) / TIGHTEST)
    for column in range(sums.shape[1]):
        mean = sums[:, column].sum() / tokens.sum()
        residual = (sums[:, column] - mean * tokens) / tokens.mean()
        known = np.sqrt(
            2 * (count * rho**2 + 1) / (count**2 * rho**2) * np.log(np.sqrt(count * rho**2 + 1) / alpha)
        ) * np.sqrt(count)
        half = stats.t.isf(stats.norm.sf(known), count - 1) * np.sqrt(residual.var(ddof=1) / count)
        assert found.mean[column] == pytest.approx(mean, rel=1e-12)
        assert found.high[column] - mean == pytest.approx(half, rel=1e-6)
        assert mean - found.low[column] == pytest.approx(half, rel=1e-6)
    assert (found.tokens, found.documents) == (tokens.sum(), count)


def test_merging_is_one_pass_over_both():
    tokens, sums = some_documents(90)
    merged, whole = sequence_of(tokens[:30], sums[:30]), sequence_of(tokens, sums).estimate()
    merged.merge(sequence_of(tokens[30:], sums[30:]))
    found = merged.estimate()
    assert (found.tokens, found.documents) == (whole.tokens, whole.documents)
    for a, b in ((found.mean, whole.mean), (found.low, whole.low), (found.high, whole.high)):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_columns_are_alone_and_the_order_of_documents_does_not_matter():
    tokens, sums = some_documents(60)
    whole, one = sequence_of(tokens, sums).estimate(), sequence_of(tokens, sums[:, 1:2]).estimate()
    assert whole.high[1] == one.high[0]
    turned = sequence_of(tokens[::-1], sums[::-1]).estimate()
    np.testing.assert_allclose(whole.high, turned.high, rtol=1e-12)


def test_few_documents_have_means_and_no_interval():
    tokens, sums = some_documents(FEWEST)
    few, enough = (sequence_of(tokens[:n], sums[:n]).estimate() for n in (FEWEST - 1, FEWEST))
    assert np.isnan([few.low, few.high]).all()
    assert np.isfinite(few.mean).all()
    assert np.isfinite([enough.low, enough.high]).all()
    with pytest.raises(ValueError, match="no tokens"):
        ConfidenceSequence(2).estimate()


def test_the_known_variance_boundary_is_tightest_where_it_says_and_always_wider_than_an_ordinary_interval():
    """Tightest in the paper's sense: over all ρ, the one chosen gives the least width at TIGHTEST documents."""

    def width(scaled):
        return np.sqrt((scaled + 1) / scaled * np.log((scaled + 1) / 0.05**2))

    least = width(np.linspace(1, 30, 10_000)).min()
    assert boundary(TIGHTEST) == pytest.approx(least, rel=2e-3)
    assert min(boundary(n) for n in (FEWEST, 100, 300, 1000, 10_000)) > 1.5 * stats.norm.ppf(0.975)
    assert boundary(300, level=0.9) < boundary(300) < boundary(300, level=0.99)


@pytest.fixture(scope="module")
def coverage():
    path = Path(__file__).parents[1] / "benchmarks" / "coverage.py"
    spec = importlib.util.spec_from_file_location("simulated_coverage", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("spread", "windows"), [(0.3, (1, 5)), (0.6, (1, 5)), (0.6, (1, 1))])
def test_it_covers_the_truth_at_all_looks_and_where_one_stops(coverage, spread, windows):
    """A small version of benchmarks/coverage.py: 1,000 texts of 500 documents, a look after each document."""
    found = coverage.simulate(spread, windows, simulations=1000, documents=500)
    assert found.all_looks >= 0.93
    assert found.ordinary < 0.8, "stopping by ordinary intervals would be wrong here, so this test can tell"
    share, documents, reached = found.at_goal[0.2]
    assert reached > 900
    assert share >= 0.95
    assert FEWEST <= documents < 300

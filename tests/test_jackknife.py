"""Intervals over documents: the jackknife by its definition, bounded scales, coverage of known effects, groups."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from depthscope.statistics.bootstrap import GROUPS, PoissonBootstrap
from depthscope.statistics.jackknife import Scale, effective_number, jackknife_interval

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.intervals import covered

SHARE, TIMES, FREE = Scale(0.0, 1.0), Scale(0.0, np.inf), Scale(-np.inf, np.inf)


def test_without_groups_leaves_out_the_documents_of_each_group():
    generator = np.random.default_rng(0)
    numbers = [0, 1, 5, 64, 65, 130]
    documents = [(d, int(generator.integers(5, 50)), generator.standard_normal(3)) for d in numbers]
    bootstrap = PoissonBootstrap(3, replicates=4)
    for document in documents:
        bootstrap.add(*document)
    without = bootstrap.without_groups()
    assert without.shape == (GROUPS, 3)
    assert np.flatnonzero(np.isfinite(without).all(1)).tolist() == sorted({d % GROUPS for d in numbers})
    for group in (0, 1, 2, 5):
        kept = [(n, sums) for d, n, sums in documents if d % GROUPS != group]
        np.testing.assert_allclose(without[group], sum(s for _, s in kept) / sum(n for n, _ in kept))
    lone = PoissonBootstrap(2, replicates=4)
    lone.add(7, 10, np.ones(2))
    assert np.isnan(lone.without_groups()).all(), "without its only document nothing is left"


def test_the_interval_of_a_mean_of_equal_documents_is_students():
    """For a mean the jackknife error is the standard error, exactly."""
    values = np.random.default_rng(1).gamma(2.0, size=12)
    without = (values.sum() - values) / 11
    found = jackknife_interval(values.mean(), without, np.empty(0), effective_number(np.full(12, 30.0)), FREE)
    expected = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    np.testing.assert_allclose(found, expected)


def test_an_effective_number_is_that_of_equal_groups_and_less_of_unequal_ones():
    assert effective_number(np.full(9, 7.0)) == pytest.approx(9)
    assert effective_number(np.array([5.0, 5.0, 0.0])) == pytest.approx(2)
    assert effective_number(np.array([100.0, 1, 1, 1])) < 1.1


@given(
    st.sampled_from([SHARE, TIMES, FREE, Scale(-1.0, 1.0)]),
    st.lists(st.floats(0.0, 1.0), min_size=3, max_size=20),
    st.floats(1.0, 40.0),
)
def test_an_interval_stays_on_its_scale_and_contains_the_effect(scale, raw, number):
    values = np.array(raw)
    low, high = jackknife_interval(values[0], values[1:], values, number, scale)
    assert scale.lowest <= low <= high <= scale.highest
    if scale is not FREE and (0 < values[0] < 1) and np.isfinite(scale.free(values)).all():
        assert low - 1e-9 <= values[0] <= high + 1e-9


def test_an_interval_changes_with_the_scale_as_its_effect_does():
    """A ratio turned upside down has its interval turned upside down; a share's complement has the complement."""
    values = np.random.default_rng(2).uniform(0.8, 0.99, 10)
    low, high = jackknife_interval(0.9, values, values, 10.0, TIMES)
    np.testing.assert_allclose(jackknife_interval(1 / 0.9, 1 / values, values, 10.0, TIMES), (1 / high, 1 / low))
    low, high = jackknife_interval(0.9, values, values, 10.0, SHARE)
    np.testing.assert_allclose(jackknife_interval(0.1, 1 - values, values, 10.0, SHARE), (1 - high, 1 - low))


def test_at_a_bound_the_interval_is_of_percentiles_wide_enough_for_few_documents():
    replicates = np.linspace(0.9, 1.0, 1001)
    low, high = jackknife_interval(1.0, np.array([1.0, 1.0, 0.97]), replicates, 8.0, SHARE)
    level = stats.norm.cdf(np.sqrt(8 / 7) * stats.t.ppf(0.975, 7))
    np.testing.assert_allclose((low, high), np.quantile(replicates, (1 - level, level)))


@pytest.mark.parametrize("case", ["ratio to a median, 30", "share, 0.98"])
@pytest.mark.parametrize("documents", [8, 20])
def test_intervals_cover_the_truth_where_documents_are_few_unequal_and_skewed(case, documents):
    """150 simulations of a nominal 95 %: fewer than 88 % would have a chance below 1 in 1,000 at a coverage of 95 %."""
    *_, used, above, below = covered(case, documents, (0.5, 0.4), simulations=150)
    assert used >= 0.88
    assert used + above + below == pytest.approx(1)

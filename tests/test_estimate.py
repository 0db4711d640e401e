import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from depthscope.statistics.estimate import ClusterMoments, runs

documents = st.lists(st.tuples(st.integers(1, 50), st.floats(-100, 100)), min_size=1, max_size=30)


def moments_of(some):
    moments = ClusterMoments(1)
    for tokens, total in some:
        moments.add(tokens, np.array([total]))
    return moments


@given(documents.filter(lambda some: len(some) > 1))
def test_estimate_equals_its_naive_definition(some):
    n, s = np.array([tokens for tokens, _ in some], float), np.array([total for _, total in some])
    mean = s.sum() / n.sum()
    variance = len(n) / (len(n) - 1) * ((s - mean * n) ** 2).sum() / n.sum() ** 2
    half = stats.t.ppf(0.975, len(n) - 1) * np.sqrt(variance)
    found = moments_of(some).estimate()
    scale = 1e-6 * (1 + np.abs(s).max())
    assert found.mean[0] == pytest.approx(mean, abs=scale)
    assert found.high[0] - found.mean[0] == pytest.approx(half, abs=scale)
    assert found.mean[0] - found.low[0] == pytest.approx(half, abs=scale)
    assert (found.tokens, found.documents) == (int(n.sum()), len(n))


@given(documents, documents)
def test_merging_is_one_pass_over_both(a, b):
    merged, both = moments_of(a), moments_of(a + b)
    merged.merge(moments_of(b))
    x, y = merged.estimate(), both.estimate()
    assert (x.tokens, x.documents) == (y.tokens, y.documents)
    np.testing.assert_allclose([x.mean, x.low, x.high], [y.mean, y.low, y.high], atol=1e-6)


def test_equal_documents_of_equal_length_give_the_textbook_interval():
    values = np.random.default_rng(0).normal(size=25)
    found = moments_of([(10, 10 * value) for value in values]).estimate()
    low, high = stats.t.interval(0.95, 24, values.mean(), stats.sem(values))
    np.testing.assert_allclose([found.low[0], found.high[0]], [low, high])


def test_one_document_gives_no_interval():
    found = moments_of([(10, 3.0)]).estimate()
    assert found.mean[0] == pytest.approx(0.3)
    assert np.isnan(found.low[0])
    assert np.isnan(found.high[0])


def test_nothing_gives_no_mean():
    with pytest.raises(ValueError, match="no tokens"):
        ClusterMoments(2).estimate()


@pytest.mark.parametrize(
    ("count", "spread", "lowest"),
    [(10, 0.3, 0.92), (40, 0.3, 0.935), (160, 0.3, 0.935), (10, 0.6, 0.885), (40, 0.6, 0.91)],
)
def test_intervals_cover_the_truth_as_often_as_they_say(count, spread, lowest):
    """Skewed per-token values that share a document effect of log-normal `spread`, documents of unequal length.

    A column is a run of the experiment; documents are as long in the runs of one batch.
    """
    rng = np.random.default_rng(1)
    batches, runs, truth, covered, naive = 40, 50, np.exp(0.5 * spread**2), 0, 0
    for _ in range(batches):
        moments, total, squares = ClusterMoments(runs), np.zeros(runs), np.zeros(runs)
        for length in rng.integers(1, 6, count) * 16:
            values = np.exp(rng.normal(0, spread, runs)) * rng.gamma(0.5, 2.0, (length, runs))
            moments.add(int(length), values.sum(0))
            total, squares = total + values.sum(0), squares + (values**2).sum(0)
        found = moments.estimate()
        covered += int(((found.low <= truth) & (truth <= found.high)).sum())
        mean = total / found.tokens
        error = np.sqrt((squares / found.tokens - mean**2) / found.tokens)
        naive += int((np.abs(mean - truth) <= 1.96 * error).sum())
    assert covered / (batches * runs) >= lowest
    assert naive / (batches * runs) < lowest - 0.05, "taking tokens for independent would be wrong: this test can tell"


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9), st.floats(-100, 100)), min_size=1, max_size=12))
def test_columns_with_counts_of_their_own_are_estimated_apart(some):
    """A document without tokens of a column is not one of its documents; what is stored is read back."""
    apart = [ClusterMoments(1), ClusterMoments(1)]
    together = ClusterMoments(2)
    for *counts, total in some:
        sums = np.array([total * (count > 0) for count in counts])
        together.add(np.array(counts), sums)
        for moments, count, own in zip(apart, counts, sums, strict=True):
            if count:
                moments.add(count, np.array([own]))
    if not np.any(together.tokens):
        return
    for found in (together.estimate(), ClusterMoments.read(together.stored()).estimate()):
        for column, moments in enumerate(apart):
            if not moments.documents:
                assert np.isnan([found.mean[column], found.low[column], found.high[column]]).all()
                continue
            alone = moments.estimate()
            one = found.columns(np.array([column]))
            assert (one.tokens.item(), one.documents.item()) == (alone.tokens, alone.documents)
            for mine, other in ((one.mean, alone.mean), (one.low, alone.low), (one.high, alone.high)):
                np.testing.assert_array_equal(mine, other)


def test_runs_of_documents():
    starts, counts = runs(np.array([5, 5, 2, 9, 9, 9]))
    assert (starts.tolist(), counts.tolist()) == ([0, 2, 3], [2, 1, 3])
    with pytest.raises(AssertionError, match="contiguous"):
        runs(np.array([5, 2, 5]))

"""Intervals at planned looks: the constant against published tables and simulation, the mean against its definition."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from depthscope.statistics.estimate import estimate_of
from depthscope.statistics.repeated_intervals import (
    FEWEST,
    GROWTH,
    RepeatedIntervals,
    critical_value,
    look_schedule,
)


@pytest.mark.parametrize(("looks", "pocock"), [(1, 1.960), (2, 2.178), (5, 2.413), (10, 2.555), (20, 2.672)])
def test_the_constant_is_that_of_pocock(looks, pocock):
    """Pocock 1977, table 1; Jennison and Turnbull 2000, table 2.1: equal steps, two-sided, 5 %."""
    assert critical_value(list(range(1, looks + 1))) == pytest.approx(pocock, abs=1.5e-3)


def test_the_schedule_grows_from_the_fewest_documents_to_the_end():
    documents = np.random.default_rng(1).permutation(np.repeat(np.arange(120), 7))
    looks = look_schedule(documents)
    assert len(np.unique(documents[: looks[0]])) == FEWEST
    assert len(np.unique(documents[: looks[0] - 1])) == FEWEST - 1
    assert looks[-1] == len(documents)
    assert all(a < b <= np.ceil(a * GROWTH) for a, b in pairwise(looks))
    assert look_schedule(np.arange(FEWEST - 1)) == [FEWEST - 1]


def parts(rng, documents, columns):
    """Windows of unequal documents in random order: (document, tokens, sums)."""
    numbers = rng.permutation(np.repeat(np.arange(documents), rng.integers(1, 6, documents)))
    return [(int(d), np.full(columns, 16), rng.gamma(0.5 * 16, 2.0, columns)) for d in numbers]


def test_parts_of_documents_in_any_order_are_documents():
    found, columns = parts(np.random.default_rng(2), 70, 3), 3
    looked = RepeatedIntervals(columns, critical=2.5)
    for part in found:
        looked.add(*part)
    ordered = sorted(found, key=lambda part: part[0])
    values = np.stack([sums / 16 for _, _, sums in ordered], 1)
    whole = estimate_of(values, np.array([document for document, _, _ in ordered]))
    estimate = looked.estimate()
    np.testing.assert_allclose(estimate.mean, whole.mean, rtol=1e-12)
    factor = stats.t.isf(stats.norm.sf(2.5), 69) / stats.t.ppf(0.975, 69)
    np.testing.assert_allclose(estimate.high - estimate.mean, factor * (whole.high - whole.mean), rtol=1e-9)


def test_a_column_that_was_left_out_is_as_it_was_and_few_documents_have_no_interval():
    found = parts(np.random.default_rng(3), 60, 2)
    stop = look_schedule(np.array([document for document, _, _ in found]))[0]
    before, after = RepeatedIntervals(2, 2.5), RepeatedIntervals(2, 2.5)
    for place, (document, tokens, sums) in enumerate(found):
        keep = np.array([1, place < stop])
        after.add(document, tokens * keep, sums * keep)
        if place < stop:
            before.add(document, tokens, sums)
    one, other = before.estimate(), after.estimate()
    for a, b in ((one.mean, other.mean), (one.high, other.high)):
        assert a[1] == b[1]
        assert a[0] != b[0]
    assert after.estimate().documents[1] == FEWEST
    few = RepeatedIntervals(1, 2.5)
    for document in range(FEWEST - 1):
        few.add(document, np.array([16]), np.array([1.0 + document]))
    assert np.isnan(few.estimate().low).all()
    assert np.isfinite(few.estimate().mean).all()


@pytest.mark.parametrize("each", [1, 6])
def test_windows_of_documents_in_random_order_are_covered_at_all_looks_and_unbiased_at_each(each):
    """Many texts, a column each; their documents differ by a log-normal factor."""
    rng, texts, documents = np.random.default_rng(4), 1500, 120
    effect, truth = np.exp(rng.normal(-0.045, 0.3, (documents, texts))), 1.0
    order = rng.permutation(np.repeat(np.arange(documents), each))
    looks = look_schedule(order)
    looked = RepeatedIntervals(texts, critical_value(looks))
    never, ordinary = np.ones(texts, dtype=bool), np.ones(texts, dtype=bool)
    for place, document in enumerate(order.tolist(), 1):
        looked.add(document, np.full(texts, 16), effect[document] * rng.gamma(0.5 * 16, 2.0, texts))
        if place in looks:
            found = looked.estimate()
            never &= (found.low <= truth) & (truth <= found.high)
            half = (found.high - found.mean) * 1.96 / looked.critical
            ordinary &= np.abs(found.mean - truth) <= half
            assert found.mean.mean() == pytest.approx(truth, abs=4 * found.mean.std() / np.sqrt(texts))
    assert never.mean() >= 0.93
    assert ordinary.mean() < 0.9, "ordinary intervals at these looks would be wrong, so this test can tell"

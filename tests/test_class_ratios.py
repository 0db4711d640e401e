"""Ratios of a class's mean to the mean of all tokens: against loops over the definition, and how often intervals cover."""

import numpy as np
import pytest
from scipy import stats

from depthscope.statistics.class_ratios import ClassGroups

DOCUMENTS, ROWS, TOKENS = 40, 5, 30
SHARE = (0.6, 0.3, 0.1)


def drawn(random, documents=DOCUMENTS):
    """Values [documents, rows, tokens], which differ by class and document, and the class of every token."""
    of = random.choice(len(SHARE), (documents, TOKENS), p=SHARE)
    values = random.gamma(0.5, 2, (documents, ROWS, TOKENS)) * (1 + of[:, None] * np.arange(1, ROWS + 1)[:, None])
    return values * np.exp(random.normal(0, 0.3, documents))[:, None, None], of


def grouped(values, of, classes=3):
    groups = ClassGroups(values.shape[1], classes)
    for value, one in zip(values, of, strict=True):
        part = np.stack([value[:, one == number].sum(1) for number in range(classes)], 1)
        counts = np.array([(one == number).sum() for number in range(classes)])
        groups.add(part, counts, value.sum(1), one.size)
    return groups


def naive(values, of, number):
    """Ratio and interval by the definition, document by document."""
    a, n = values[of == number].sum(), (of == number).sum()
    b, m = values.sum(), values.size
    u = [
        values[d, of[d] == number].sum() / a - (of[d] == number).sum() / n - values[d].sum() / b + values[d].size / m
        for d in range(len(values))
    ]
    error = np.sqrt(len(u) / (len(u) - 1) * np.sum(np.square(u)))
    there = sum((of[d] == number).any() for d in range(len(values)))
    half = stats.t.ppf(0.975, there - 1) * error
    ratio = (a / n) / (b / m)
    return ratio, ratio * np.exp(-half), ratio * np.exp(half)


def test_a_ratio_and_its_interval_are_those_of_the_definition():
    values, of = drawn(np.random.default_rng(0))
    found = grouped(values, of).ratios()
    for row in range(ROWS):
        for number in range(len(SHARE)):
            expected = naive(values[:, row], of, number)
            at = (row, number)
            assert (found.mean[at], found.low[at], found.high[at]) == pytest.approx(expected, rel=1e-9)


def test_intervals_of_all_ratios_cover_them_together_and_each_its_own():
    """On documents with skewed tokens that differ by a factor; the truth is a large sample's."""
    whole, of = drawn(np.random.default_rng(1), 20_000)
    truth = np.stack([whole.transpose(1, 0, 2)[:, of == one].mean(1) for one in range(len(SHARE))], 1)
    truth /= whole.mean((0, 2))[:, None]
    own, together, tries = 0.0, 0, 80
    for seed in range(tries):
        groups = grouped(*drawn(np.random.default_rng([2, seed])))
        one, all_ = groups.ratios(), groups.together(np.arange(ROWS), replicates=300)
        own += ((one.low <= truth) & (truth <= one.high)).mean()
        together += ((all_.low <= truth) & (truth <= all_.high)).all()
        assert (all_.high / all_.low)[:, 0].min() > (one.high / one.low)[:, 0].min(), "wider, for covering all"
    assert own / tries > 0.9
    assert together / tries > 0.9


def test_classes_that_say_too_little():
    values, of = drawn(np.random.default_rng(3), 20)
    of[:] = np.where(of == 2, 1, of)
    of[0, 0] = 2  # one token in one document
    values[:, 1] = 0.0  # a layer without any effect
    groups = grouped(values, of, 4)  # and a class without tokens
    found, together = groups.ratios(), groups.together(np.arange(ROWS))
    assert np.isfinite(found.low[[0, 2, 3, 4], :2]).all()
    assert np.isfinite(found.mean[0, 2])
    assert np.isnan(found.low[:, 2]).all()
    assert np.isnan(found.mean[:, 3]).all()
    assert np.isnan(found.mean[1]).all()
    assert np.isfinite(together.low[[0, 2, 3, 4], :2]).all()
    assert np.isnan(together.low[:, 2:]).all()
    alone = grouped(values, np.zeros_like(of), 1)
    assert alone.ratios().mean[0, 0] == pytest.approx(1)
    whole = alone.together(np.arange(ROWS))
    assert (whole.low[0, 0], whole.high[0, 0]) == pytest.approx((1, 1)), "a class of all tokens has no spread"


def test_few_documents_have_no_interval_for_all_at_once():
    groups = grouped(*drawn(np.random.default_rng(4), 9))
    assert np.isnan(groups.together(np.arange(ROWS)).low).all()
    assert np.isfinite(groups.ratios().low[:, 0]).all()

"""N-gram labels and control tasks are as defined, and test labels decide nothing."""

from collections import Counter

import numpy as np
import pytest

from depthscope.statistics.probe_baselines import control_labels, ngram_labels


def example(seed):
    generator = np.random.default_rng(seed)
    examples = int(generator.integers(4, 200))
    tokens = generator.integers(0, 6, (examples, 2))
    labels = generator.random(examples) < 0.5
    training = generator.random(examples) < 0.6
    training[:2] = True
    return tokens, labels, training


def naive(tokens, labels, training, row):
    for order in range(tokens.shape[1], -1, -1):
        same = [
            i
            for i in np.flatnonzero(training)
            if order == 0 or tuple(tokens[i, -order:]) == tuple(tokens[row, -order:])
        ]
        yes = sum(bool(labels[i]) for i in same)
        if 2 * yes != len(same):
            return 2 * yes > len(same)
    return False


@pytest.mark.parametrize("seed", range(10))
def test_ngram_labels_are_votes_of_training_examples_with_back_off(seed):
    tokens, labels, training = example(seed)
    found = ngram_labels(tokens, labels, training)
    assert found.tolist() == [naive(tokens, labels, training, row) for row in range(len(tokens))]
    one = ngram_labels(tokens[:, 1:], labels, training)
    assert one.tolist() == [naive(tokens[:, 1:], labels, training, row) for row in range(len(tokens))]


@pytest.mark.parametrize("seed", range(5))
def test_test_labels_decide_nothing(seed):
    tokens, labels, training = example(seed)
    assert np.array_equal(ngram_labels(tokens, labels | ~training, training), ngram_labels(tokens, labels, training))


@pytest.mark.parametrize("share", [0.5, 0.2])
def test_control_labels_are_random_one_for_a_token_and_balanced(share):
    generator = np.random.default_rng(0)
    tokens = generator.zipf(1.6, 2_000).clip(max=500)
    counts = Counter(tokens.tolist())
    tasks = [control_labels(tokens, share, np.random.default_rng([1, draw])) for draw in range(100)]
    for labels in tasks:
        by_token = {(token, bool(label)) for token, label in zip(tokens.tolist(), labels, strict=True)}
        assert len(by_token) == len(counts), "a token has one label"
        assert abs(labels.sum() - share * 2_000) <= max(counts.values()) / 2
    often = np.mean([labels[tokens == 2].mean() for labels in tasks])
    assert abs(often - share) < 0.15, "which tokens are labelled yes is random"
    assert np.array_equal(tasks[3], control_labels(tokens, share, np.random.default_rng([1, 3])))

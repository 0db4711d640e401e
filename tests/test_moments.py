"""Moments of cosines with a vocabulary, streamed, against their naive definitions in float64."""

import numpy as np
import pytest
import torch
from scipy import stats

from depthscope.data.token_classes import token_classes, vocabulary_of
from depthscope.models.weights import mlp_output_weights, unembedding
from depthscope.statistics import moments as moments_module
from depthscope.statistics.moments import VocabularyDirections, group_separation, group_sums, robust_z


def naive_cosines(w_out: torch.Tensor, weight: torch.Tensor) -> np.ndarray:
    """[neurons, vocab] in float64, by the definition."""
    w, u = w_out.double().numpy(), weight.double().numpy()
    return (w @ u.T) / np.linalg.norm(w, axis=1)[:, None] / np.linalg.norm(u, axis=1)


@pytest.mark.parametrize("processed", [True, False])
def test_moments_are_those_of_the_cosines(shelf, processed):
    weight, _ = unembedding(shelf, processed)
    w_out = mlp_output_weights(shelf, 10, processed)[200:240]
    cosines = naive_cosines(w_out, weight)
    found = VocabularyDirections(weight).moments(w_out)
    effects = (w_out.double() @ weight.double().T).numpy()
    for name, expected in {
        "norm": np.linalg.norm(w_out.double().numpy(), axis=1),
        "mean": cosines.mean(1),
        "variance": cosines.var(1),
        "skew": stats.skew(cosines, axis=1),
        "kurtosis": stats.kurtosis(cosines, axis=1, fisher=False),
        "effect_variance": effects.var(1),
    }.items():
        np.testing.assert_allclose(getattr(found, name).numpy(), expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_tiles_of_any_size_give_the_same(gpt2, monkeypatch):
    weight, _ = unembedding(gpt2)
    directions = VocabularyDirections(weight)
    w_out = mlp_output_weights(gpt2, 3)[:50]
    whole = directions.moments(w_out)
    for tiles in ((7, 1000), (50, 1), (1, 4096)):
        if tiles[1] == 1:
            directions, w_out = VocabularyDirections(weight[:64]), w_out[:5]
            whole = directions.moments(w_out)
        monkeypatch.setitem(moments_module.TILES, "cpu", tiles)
        piecewise = directions.moments(w_out)
        torch.testing.assert_close(piecewise.skew, whole.skew, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(piecewise.kurtosis, whole.kurtosis, rtol=1e-5, atol=0)


def test_a_mean_far_from_zero_costs_no_digits():
    """All tokens point almost the same way, as in unprocessed models: the cosines are 0.99 with a spread of 0.001."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(1, 64, generator=generator)
    weight = common + 0.02 * torch.randn(3000, 64, generator=generator)
    w_out = common + 0.1 * torch.randn(5, 64, generator=generator)
    cosines = naive_cosines(w_out, weight)
    assert cosines.mean() > 50 * cosines.std(1).max()
    found = VocabularyDirections(weight).moments(w_out)
    np.testing.assert_allclose(found.variance.numpy(), cosines.var(1), rtol=1e-4)
    np.testing.assert_allclose(found.skew.numpy(), stats.skew(cosines, axis=1), atol=1e-3)
    np.testing.assert_allclose(found.kurtosis.numpy(), stats.kurtosis(cosines, axis=1, fisher=False), rtol=1e-3)


def test_an_effect_of_less_than_a_hundredth_of_others_is_measured(gpt2):
    """Float32 must not hide entropy neurons: weights along the last direction that W_U still reads, made fainter still."""
    weight, _ = unembedding(gpt2)
    generator = torch.Generator().manual_seed(0)
    loud, faint = torch.randn(2, 192, generator=generator)
    turned, _ = torch.linalg.qr(torch.randn(192, 192, generator=generator))
    scaled = weight / torch.linspace(1, 1e3, 192) @ turned  # features from loud to faint, in no special axes
    w_out = torch.stack([loud, torch.cat([torch.zeros(180), faint[180:]])]) @ turned
    effects = (w_out.double() @ scaled.double().T).numpy().var(1)
    found = VocabularyDirections(scaled).spread(w_out).effect_variance.numpy()
    assert effects[1] < 1e-5 * effects[0]
    np.testing.assert_allclose(found, effects, rtol=1e-3)


def test_class_separation_is_the_share_of_variance_between_two_groups(shelf):
    weight, _ = unembedding(shelf, processed=False)
    w_out = mlp_output_weights(shelf, 4, processed=False)[:6]
    classes = token_classes(vocabulary_of(shelf))
    spread = VocabularyDirections(weight).spread(w_out)
    sizes = torch.from_numpy(classes.sizes).double()
    sums = group_sums(weight, torch.from_numpy(classes.member))
    shares, differences = group_separation(w_out, sums, sizes, spread, len(weight))
    effects = (w_out.double() @ weight.double().T).numpy()
    for place, member in enumerate(classes.member):
        for neuron, effect in enumerate(effects):
            fitted = np.where(member, effect[member].mean(), effect[~member].mean())
            assert shares[neuron, place] == pytest.approx(fitted.var() / effect.var(), rel=1e-5, abs=1e-9)
            gap = (effect[member].mean() - effect[~member].mean()) / effect.std()
            assert differences[neuron, place] == pytest.approx(gap, rel=1e-4, abs=1e-6)


def test_robust_z_is_not_moved_by_outliers():
    values = np.random.default_rng(0).normal(5, 2, 10_001)
    found = robust_z(values)
    np.testing.assert_allclose(found, (values - 5) / 2, atol=0.15)
    assert np.abs(robust_z(np.append(values, [1e9] * 50))[:-50] - found).max() < 0.1
    assert np.isnan(robust_z(np.array([np.nan, 1.0, 2.0, 4.0]))).tolist() == [True, False, False, False]
    assert robust_z(np.array([1.0, 1.0, 1.0, 9.0])).tolist() == [0, 0, 0, 0]
    assert np.isnan(robust_z(np.array([np.nan]))).all()

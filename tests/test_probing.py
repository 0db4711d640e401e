"""Neurons are chosen and probes fitted as defined, and only training examples decide."""

import numpy as np
import pytest
import torch
from families import tiny_model
from scipy import stats
from test_activations import output_weights

from depthscope.experiments.class_neurons import class_differences, class_neurons
from depthscope.models.load import load
from depthscope.models.weights import centres_writing, unembedding
from depthscope.statistics.moments import VocabularyDirections, moments_of_few
from depthscope.statistics.probing import Split, best_threshold, fit_probe, probes_together, single_probes, wide_probe


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi", "llama", "qwen2"])
def test_differences_are_those_of_whole_logit_effects(family):
    """W_U·w_out of every neuron and token, in float64, from the model's own parameters: the final norm's scale in it."""
    model = load(tiny_model(family))
    with torch.no_grad():
        model.unembedding.modules[-1].weight.add_(torch.randn(32, generator=torch.Generator().manual_seed(1)) * 0.3)
    tokens = np.arange(97) % 7 == 2
    scaled = model.unembedding.weight.detach().double() * model.unembedding.modules[-1].weight.detach().double()
    for block, found in enumerate(class_differences(model, tokens)):
        rows = output_weights(model, block)[0].double()
        rows = rows - rows.mean(1, keepdim=True) if centres_writing(model) else rows
        effect = (rows @ scaled.T).numpy()
        expected = effect[:, tokens].mean(1) - effect[:, ~tokens].mean(1)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_moments_of_few_are_those_of_the_cosines_and_of_the_whole_pass():
    generator = torch.Generator().manual_seed(0)
    rows, tokens = torch.randn(40, 16, generator=generator), torch.randn(300, 16, generator=generator) ** 3
    rows[7] = 0
    kurtosis, skew = moments_of_few(rows, tokens / tokens.norm(dim=1, keepdim=True))
    kept = np.arange(40) != 7
    cosines = torch.nn.functional.cosine_similarity(rows[:, None].double(), tokens[None].double(), dim=-1).numpy()[kept]
    np.testing.assert_allclose(kurtosis[kept], stats.kurtosis(cosines, axis=1, fisher=False), rtol=1e-4)
    np.testing.assert_allclose(skew[kept], stats.skew(cosines, axis=1), rtol=1e-3, atol=1e-5)
    assert kurtosis[7] == skew[7] == 0
    whole = VocabularyDirections(tokens).moments(rows[kept])
    np.testing.assert_allclose(kurtosis[kept], whole.kurtosis.numpy(), rtol=1e-4)
    np.testing.assert_allclose(skew[kept], whole.skew.numpy(), rtol=1e-3, atol=1e-5)


def test_prediction_and_suppression_neurons_are_found_where_they_were_put():
    """Neurons that write one token's own direction have high kurtosis; the sign says which group they are for."""
    model = load(tiny_model("gpt2", n_embd=128))
    tokens = np.zeros(97, dtype=bool)
    tokens[[5, 50]] = True
    weight = model.stack.blocks[2].mlp.c_proj.weight
    written = unembedding(model)[0]
    with torch.no_grad():
        weight[10:14], weight[20:24] = 3 * written[5], -3 * written[50]
        weight[30] = 20 * written[5] - 40 * written[60]  # the largest difference, but the skew of a suppression neuron
    prediction, suppression = class_neurons(model, tokens, 4)
    assert class_differences(model, tokens)[2].argmax() == 30
    assert sorted(prediction.neuron.tolist()) == [10, 11, 12, 13]
    assert sorted(suppression.neuron.tolist()) == [20, 21, 22, 23]
    assert set(prediction.layer.tolist()) == set(suppression.layer.tolist()) == {2}
    assert (prediction.kurtosis > 10).all()
    assert (prediction.skew > 0).all()
    assert (suppression.skew < 0).all()
    assert prediction.selected_by == suppression.selected_by == "class"
    more, _ = class_neurons(model, tokens, 40)
    every = np.sort(np.concatenate(class_differences(model, tokens)))
    np.testing.assert_allclose(more.difference, every[::-1][:40])
    assert more.selected_by == "difference"


def data(features, examples=400, documents=20, seed=0):
    generator = np.random.default_rng(seed)
    document = np.sort(generator.integers(0, documents, examples))
    labels = generator.random(examples) < 0.5
    split = Split(document % 10 < 7, labels, document)
    return generator.normal(size=(examples, features)).astype(np.float32) * 3 + 1, split, generator


@pytest.mark.parametrize(("features", "strength"), [(1, 1.0), (5, 0.1), (300, 0.01)])
def test_a_probe_is_the_minimum_of_its_objective(features, strength):
    x, split, _ = data(features)
    labels = split.labels ^ (x[:, 0] > 2)
    probe = fit_probe(x, labels, strength)
    standard = (x.astype(float) - x.mean(0, dtype=float)) / x.std(0, dtype=float)
    error = 1 / (1 + np.exp(-(standard @ probe.weights + probe.bias))) - labels
    np.testing.assert_allclose(probe.weights + strength * error @ standard, 0, atol=2e-3)
    np.testing.assert_allclose(strength * error.sum(), 0, atol=2e-3)
    assert (probe.predict(x) == (standard @ probe.weights + probe.bias > 0)).all()


def test_only_training_examples_decide():
    x, split, generator = data(6)
    x[:, 4] = 0  # a dead neuron
    alone = single_probes(x, split)
    changed = x.copy()
    changed[~split.training] = generator.normal(size=changed[~split.training].shape)
    assert np.array_equal(single_probes(changed, split).training_accuracy, alone.training_accuracy)
    assert np.array_equal(single_probes(changed, split).order, alone.order)
    told = split.fit(x[:, alone.order[:3]]).predict(x[:, alone.order[:3]])
    together = probes_together(x, alone, split, range(1, 7))
    assert np.array_equal(together[2], (told == split.labels)[~split.training])
    assert np.array_equal(together[0], alone.right[alone.order[0]])
    assert (np.diff(alone.training_accuracy[alone.order]) <= 0).all()
    assert np.array_equal(wide_probe(x, split, 0).weights, wide_probe(changed, split, 0).weights)


def test_the_threshold_is_the_best_of_all():
    generator = np.random.default_rng(0)
    for examples in (1, 2, 5, 40):
        for _ in range(30):
            scores = generator.integers(-4, 4, examples).astype(float)
            labels = generator.random(examples) < 0.4
            found = best_threshold(scores, labels)
            accuracy = [((scores > t) == labels).mean() for t in (-np.inf, *np.unique(scores))]
            assert ((scores > found) == labels).mean() == max(accuracy)
            assert found == [-np.inf, *np.unique(scores)][int(np.argmax(accuracy))]

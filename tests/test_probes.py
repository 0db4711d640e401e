"""Probes: the set is balanced and parted by documents, neurons are chosen and fits made as defined, controls control."""

import io
import json
from collections import Counter

import numpy as np
import polars as pl
import pytest
import torch
from families import tiny_model
from scipy import stats
from test_activations import output_weights

from depthscope.data.corpus import Corpus
from depthscope.data.suffix_contexts import ends_in, suffix_contexts
from depthscope.errors import DataError, UnsupportedError
from depthscope.measure.class_neurons import class_differences, class_neurons, cosine_moments
from depthscope.measure.probing import Split, best_threshold, fit_probe, probes_together, single_probes, wide_probe
from depthscope.models.load import load
from depthscope.models.weights import centres_writing, unembedding
from depthscope.schema import probes as schema
from depthscope.schema.metric import ESTIMATE
from depthscope.studies import probes as study
from depthscope.studies.probe_tables import Pools, probe_tables
from depthscope.studies.probes import Probes, class_prediction

SHELF = Corpus()


@pytest.fixture(scope="module")
def contexts(gpt2):
    return suffix_contexts(SHELF, gpt2, "ing", per_class=300)


def test_classes_are_balanced_and_documents_are_in_one_part(contexts):
    assert len(contexts) == 600
    for document in np.unique(contexts.document):
        here = contexts.document == document
        assert contexts.label[here].mean() == 0.5
        assert len(set(contexts.training[here].tolist())) == 1
    tested = np.unique(contexts.document[~contexts.training])
    assert len(tested) == round(0.3 * len(np.unique(contexts.document)))
    assert (np.diff(contexts.document) >= 0).all()


def test_labels_are_spellings_and_no_word_is_the_class(contexts, gpt2):
    texts = [gpt2.tokenizer.decode([token]) for token in contexts.target]
    assert contexts.label.tolist() == [text.rstrip().lower().endswith("ing") for text in texts]
    assert max(Counter(contexts.target.tolist()).values()) == 30  # "ing" itself is more frequent than a tenth
    assert len({text for text, label in zip(texts, contexts.label, strict=True) if label}) > 20


def test_contexts_are_the_24_tokens_before_the_target_and_none_comes_twice(contexts, gpt2):
    assert contexts.ids.shape == (600, 24)
    assert len({row.tobytes() for row in contexts.ids}) == 600
    documents = list(SHELF.documents())
    for row in range(0, 600, 37):
        tokens = np.array(gpt2.tokenize(documents[contexts.document[row]]))
        windows = np.lib.stride_tricks.sliding_window_view(tokens, 25)
        expected = [*contexts.ids[row], contexts.target[row]]
        assert (windows == expected).all(1).any()


def test_contexts_follow_from_the_seed(contexts, gpt2):
    again = suffix_contexts(SHELF, gpt2, " ING", per_class=300)
    other = suffix_contexts(SHELF, gpt2, "ing", per_class=300, seed=1)
    assert again.token_hash() == contexts.token_hash() != other.token_hash()


def test_text_that_comes_twice_is_taken_once(gpt2, tmp_path):
    passages = list(SHELF.documents())[:60]
    file = tmp_path / "twice.jsonl"
    file.write_text("\n".join(json.dumps({"text": text}) for text in passages * 2))
    twice = suffix_contexts(Corpus(source=str(file)), gpt2, "ing", per_class=5_000)
    assert len(np.unique(twice.ids, axis=0)) == len(twice) > 1_000


def test_what_gives_no_balanced_set_is_refused_with_the_counts(gpt2, tiny_of, tmp_path):
    short = tmp_path / "short.jsonl"
    short.write_text("\n".join(json.dumps({"text": text}) for text in list(SHELF.documents())[:4]))
    with pytest.raises(
        DataError, match=r"too few next tokens end in 'ing' .*: \d+ for training and \d+ for test, in 4 doc"
    ):
        Probes(gpt2, Corpus(source=str(short)))
    with pytest.raises(DataError, match="0 of the 4096 tokens of bookshelf-gpt2 end in 'zzz'"):
        Probes(gpt2, SHELF, suffix="zzz")
    with pytest.raises(DataError, match="suffix ' ' is empty"):
        ends_in(gpt2, " ")
    with pytest.raises(DataError, match="without a tokenizer"):
        Probes(tiny_of("llama"), SHELF)
    with pytest.raises(DataError, match="at least 1 neuron, draw and context per class, got 0, 5 and 1000"):
        Probes(gpt2, SHELF, neurons=0)
    with pytest.raises(DataError, match="contexts of 300 tokens are longer than the context of bookshelf-gpt2, 256"):
        suffix_contexts(SHELF, gpt2, length=300)


@pytest.mark.parametrize(("family", "reason"), [("mamba", "no separate attention and MLP"), ("mixtral", "experts")])
def test_models_without_neurons_to_read_are_refused(tiny_of, family, reason):
    with pytest.raises(UnsupportedError, match=reason):
        Probes(tiny_of(family), SHELF)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi", "llama", "qwen2"])
def test_differences_are_those_of_whole_logit_effects(family):
    """W_U·w_out of every neuron and token, in float64, from the model's own parameters: the final norm's scale in it."""
    model = load(tiny_model(family))
    with torch.no_grad():
        model.head.modules[-1].weight.add_(torch.randn(32, generator=torch.Generator().manual_seed(1)) * 0.3)
    tokens = np.arange(97) % 7 == 2
    scaled = model.head.weight.detach().double() * model.head.modules[-1].weight.detach().double()
    for block, found in enumerate(class_differences(model, tokens)):
        rows = output_weights(model, block)[0].double()
        rows = rows - rows.mean(1, keepdim=True) if centres_writing(model) else rows
        effect = (rows @ scaled.T).numpy()
        expected = effect[:, tokens].mean(1) - effect[:, ~tokens].mean(1)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_moments_are_those_of_the_cosines():
    generator = torch.Generator().manual_seed(0)
    rows, tokens = torch.randn(40, 16, generator=generator), torch.randn(300, 16, generator=generator) ** 3
    rows[7] = 0
    kurtosis, skew = cosine_moments(rows, tokens / tokens.norm(dim=1, keepdim=True))
    kept = np.arange(40) != 7
    cosines = torch.nn.functional.cosine_similarity(rows[:, None].double(), tokens[None].double(), dim=-1).numpy()[kept]
    np.testing.assert_allclose(kurtosis[kept], stats.kurtosis(cosines, axis=1, fisher=False), rtol=1e-4)
    np.testing.assert_allclose(skew[kept], stats.skew(cosines, axis=1), rtol=1e-3, atol=1e-5)
    assert kurtosis[7] == skew[7] == 0


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


def test_class_prediction_is_that_of_whole_distributions(tiny, monkeypatch):
    monkeypatch.setattr(study, "SLICE", 7)
    tokens = torch.arange(97) % 5 == 1
    residual = torch.randn(4, 9, 32, generator=torch.Generator().manual_seed(0)) * 3
    with torch.inference_mode():
        hidden = tiny.head.hidden(residual)
        top1, log_probability = class_prediction(tiny.head, hidden, tokens)
        logits = tiny.head.logits(hidden).double()
    torch.testing.assert_close(log_probability, logits.softmax(-1)[:, tokens].sum(-1).log(), atol=1e-4, rtol=1e-4)
    assert torch.equal(top1, tokens[logits.argmax(-1)])
    assert 0 < top1.sum() < 36


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
    together = probes_together(x, alone, split, 6)
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


def constructed(shuffled):
    """Examples where neuron 3 decides the label, or where labels are drawn anew.

    The model's probability says yes rightly for a fifth of the training examples and is blind for the others; among the
    test examples it is always right, but lower.
    """
    x, split, generator = data(40, examples=2_000, documents=60, seed=5)
    labels = split.labels if shuffled else x[:, 3] > 1
    known = labels & (generator.random(2_000) < 0.4)
    frame = pl.DataFrame(
        {
            "document": split.documents,
            "training": split.training,
            "label": labels,
            "top1": labels,
            "log_probability": np.where(split.training, np.where(known, -1.0, -2.0), np.where(labels, -2.0, -3.0)),
            "activations": x,
        },
        schema=schema.probe_shard(40),
    )
    places = [np.arange(4), np.arange(4, 8)]
    pools = Pools(*places, [np.arange(8, 16), np.arange(16, 24)], 1, np.arange(40))
    neurons = [study.ClassNeurons(p * 0, p, *(p * 1.0,) * 3, "difference") for p in places]
    return probe_tables("ing", frame, pools, *neurons, 0), float(labels[~split.training].mean())


def of(table, group, k, metric="accuracy"):
    return table.filter(pl.col("draw").is_null(), group=group, k=k, metric=metric).row(0, named=True)


def test_a_neuron_that_decides_is_found_and_random_ones_say_nothing():
    tables, share = constructed(shuffled=False)
    table, neurons = tables["probes"], tables["probe_neurons"]
    for group in ("prediction", "both"):
        assert of(table, group, 1)["mean"] > 0.99
    assert neurons.filter(group="prediction", rank=1)["neuron"].item() == 3
    assert of(table, "model_top1", 0)["mean"] == 1
    assert of(table, "model_threshold", 0)["mean"] == pytest.approx(1 - share)  # the training threshold, no for all
    assert of(table, "layer", 40)["mean"] > 0.95
    for group in ("suppression", "random_prediction", "random_suppression", "random_both"):
        row = of(table, group, 4)
        assert row["ci_low"] - 0.03 < 0.5 < row["ci_high"] + 0.03
    assert of(table, "prediction", 4, "accuracy_over_random")["ci_low"] > 0.4


def test_labels_drawn_at_random_cannot_be_told():
    table = constructed(shuffled=True)[0]["probes"].filter(~pl.col("group").str.starts_with("model"), metric="accuracy")
    assert table.height == 3 * 4 * 4 + 2
    assert ((table["ci_low"] <= 0.5) & (table["ci_high"] >= 0.5)).mean() > 0.8
    assert abs(table["mean"].mean() - 0.5) < 0.02


def small(model):
    return Probes(model, SHELF, per_class=130, neurons=6, draws=2)


def stored(frame):
    file = io.BytesIO()
    frame.write_parquet(file)
    return pl.read_parquet(io.BytesIO(file.getvalue()))


@pytest.fixture(scope="module")
def made(shelf):
    probes = small(shelf)
    shards = [stored(probes.work(unit)) for unit in range(probes.units)]
    return probes, shards, probes.tables(shards)


def test_a_shard_holds_what_the_model_does(made, shelf):
    """Activations and decisions from transformers' own forward, window by window."""
    probes, shards, _ = made
    assert probes.units == 2
    assert dict(shards[0].schema) == schema.probe_shard(len(probes.reader.neurons))
    assert pl.concat(shards)["label"].to_list() == probes.contexts.label.tolist()
    read = {}
    maps = {f"{b}": m for b, block in enumerate(shelf.stack.blocks) for n, m in block.named_modules() if n in LAST}
    handles = [m.register_forward_pre_hook(lambda _m, a, b=b: read.__setitem__(int(b), a[0])) for b, m in maps.items()]
    with torch.inference_mode():
        logits = shelf.hf(input_ids=probes.contexts.batch(256, 260), use_cache=False).logits[:, -1].double()
    for handle in handles:
        handle.remove()
    ending = torch.from_numpy(probes.contexts.ending)
    rows = shards[1]
    assert rows["top1"].to_list() == ending[logits.argmax(-1)].tolist()
    np.testing.assert_allclose(rows["log_probability"], logits.softmax(-1)[:, ending].sum(-1).log(), atol=1e-4)
    found = rows["activations"].to_numpy()
    groups = ((probes.prediction, probes.pools.prediction), (probes.suppression, probes.pools.suppression))
    for neurons, places in groups:
        for layer, neuron, place in zip(neurons.layer, neurons.neuron, places, strict=True):
            np.testing.assert_allclose(found[:, place], read[int(layer)][:, -1, int(neuron)], atol=1e-4)
    np.testing.assert_allclose(found[:, probes.pools.whole], read[probes.pools.layer][:, -1], atol=1e-4)


LAST = ("mlp.c_proj", "mlp.dense_4h_to_h")


def test_random_neurons_are_of_the_same_layers_and_none_is_chosen(made):
    probes, _, _ = made
    pools, places = probes.pools, probes.reader.neurons.numpy()
    chosen = np.concatenate([pools.prediction, pools.suppression])
    assert not np.array_equal(*pools.random)
    for drawn in pools.random:
        assert places[drawn, 0].tolist() == places[chosen, 0].tolist()
        assert len(set(drawn.tolist())) == len(chosen)
        assert not set(drawn.tolist()) & set(chosen.tolist())


def test_too_narrow_a_layer_has_no_control(tiny_of):
    chosen = np.stack([np.ones(65, dtype=int), np.arange(65)], 1)
    with pytest.raises(UnsupportedError, match="65 neurons of layer 1 are chosen, and only 63 are left"):
        study._random_like(tiny_of("gpt2"), chosen, np.random.default_rng(0))


def test_tables_say_what_was_counted(made):
    _, shards, tables = made
    table, neurons = tables["probes"], tables["probe_neurons"]
    assert dict(table.schema) == schema.PROBES_TABLE
    assert dict(neurons.schema) == schema.PROBE_NEURONS_TABLE
    assert set(table["group"]) == set(schema.GROUPS)
    tested = pl.concat(shards).filter(~pl.col("training"))
    top1 = of(table, "model_top1", 0)
    assert top1["mean"] == pytest.approx((tested["top1"] == tested["label"]).mean())
    assert top1["tokens"] == tested.height == table["tokens"].unique().item()
    assert top1["documents"] == tested["document"].n_unique()
    assert of(table, "majority", 0)["mean"] == 0.5
    for group in schema.CHOSEN_GROUPS:
        row = {metric: of(table, group, 6, metric)["mean"] for metric in schema.METRICS}
        one = of(table, group, 1)["mean"]
        random = table.filter(pl.col("draw").is_not_null(), group=schema.RANDOM[group], k=6)["mean"]
        assert random.len() == 2
        assert of(table, schema.RANDOM[group], 6)["mean"] == pytest.approx(random.mean())
        against = {
            "accuracy_over_single": one,
            "accuracy_over_random": random.mean(),
            "accuracy_over_model": top1["mean"],
            "accuracy_over_threshold": of(table, "model_threshold", 0)["mean"],
        }
        for metric, other in against.items():
            assert row[metric] == pytest.approx(row["accuracy"] - other)
    for group in ("prediction", "suppression"):
        ranked = neurons.filter(group=group)
        assert ranked["rank"].to_list() == [1, 2, 3, 4, 5, 6]
        assert ranked["training_accuracy"].is_sorted(descending=True)
        best = ranked.row(0, named=True)
        assert {name: best[name] for name in ESTIMATE} == {name: of(table, group, 1)[name] for name in ESTIMATE}
        assert ((ranked["difference"] > 0) == (group == "prediction")).all()


def test_the_same_settings_give_the_same_bytes(made, shelf):
    probes, shards, tables = made
    again = small(shelf)
    assert json.dumps(dict(again.settings)) == json.dumps(dict(probes.settings))
    assert again.work(1).equals(shards[1])
    resumed = again.tables([shards[0], stored(again.work(1))])
    assert all(resumed[name].equals(tables[name]) for name in ("probes", "probe_neurons"))


def test_columns_are_frozen():
    assert list(schema.PROBES_TABLE) == ["suffix", "group", "layer", "k", "draw", *ESTIMATE]
    about = ["suffix", "group", "rank", "layer", "neuron", "difference", "kurtosis", "skew", "selected_by"]
    assert list(schema.PROBE_NEURONS_TABLE) == [*about, "training_accuracy", *ESTIMATE]
    shard = ["document", "training", "label", "top1", "log_probability", "activations"]
    assert list(schema.probe_shard(3)) == shard

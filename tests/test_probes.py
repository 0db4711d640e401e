"""The probes' shards hold what the model does, their tables what was counted; controls control."""

import io
import json

import numpy as np
import polars as pl
import pytest
import torch
from test_probing import data

from depthscope.data.corpus import Corpus
from depthscope.errors import DataError, UnsupportedError
from depthscope.experiments import probes as study
from depthscope.experiments.probe_tables import Pools, probe_tables
from depthscope.experiments.probes import Probes, class_prediction
from depthscope.schema import probes as schema
from depthscope.schema.estimates import ESTIMATE

SHELF = Corpus()


@pytest.mark.parametrize(("family", "reason"), [("mamba", "no separate attention and MLP"), ("mixtral", "experts")])
def test_models_without_neurons_to_read_are_refused(tiny_of, family, reason):
    with pytest.raises(UnsupportedError, match=reason):
        Probes(tiny_of(family), SHELF)


def test_nothing_cannot_be_counted(gpt2):
    with pytest.raises(DataError, match="at least 1 neuron, draw and context per class, got 0, 5 and 1000"):
        Probes(gpt2, SHELF, neurons=0)


def test_class_prediction_is_that_of_whole_distributions(tiny, monkeypatch):
    monkeypatch.setattr(study, "SLICE", 7)
    tokens = torch.arange(97) % 5 == 1
    residual = torch.randn(4, 9, 32, generator=torch.Generator().manual_seed(0)) * 3
    with torch.inference_mode():
        hidden = tiny.unembedding.hidden(residual)
        top1, log_probability = class_prediction(tiny.unembedding, hidden, tokens)
        logits = tiny.unembedding.logits(hidden).double()
    torch.testing.assert_close(log_probability, logits.softmax(-1)[:, tokens].sum(-1).log(), atol=1e-4, rtol=1e-4)
    assert torch.equal(top1, tokens[logits.argmax(-1)])
    assert 0 < top1.sum() < 36


def constructed(shuffled, last=None, see=False):
    """Examples where neuron 3 decides the label, or where labels are drawn again.

    `last`: the context's last two tokens, by default of few kinds and without relation to the label. `see`: neurons 0 to 7 say
    which token is last.

    The model's probability says yes rightly for a fifth of the training examples and is blind for the others; among the
    test examples it is always right, but lower.
    """
    x, split, generator = data(40, examples=2_000, documents=60, seed=5)
    labels = split.labels if shuffled else x[:, 3] > 1
    known = labels & (generator.random(2_000) < 0.4)
    if last is None:
        last = generator.integers(0, 9, (2_000, 2))
    if see:
        x[:, :8] = last[:, -1:] == np.arange(8)
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
    groups = dict(zip(("prediction", "suppression"), neurons, strict=True))
    return probe_tables("ing", frame, last, pools, groups, controls=2, seed=0), float(labels[~split.training].mean())


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
    assert table.height == 3 * 4 * 4 + 4
    assert ((table["ci_low"] <= 0.5) & (table["ci_high"] >= 0.5)).mean() > 0.8
    assert abs(table["mean"].mean() - 0.5) < 0.02


def test_probes_that_only_recognise_tokens_have_no_selectivity():
    last = np.random.default_rng(1).integers(0, 8, (2_000, 2))
    table = constructed(shuffled=False, last=last, see=True)[0]["probes"]
    row = of(table, "both", 4, "control_accuracy")
    assert row["mean"] > 0.7, "four tokens of eight are recognised by four neurons"
    assert of(table, "layer", 40, "control_accuracy")["mean"] > 0.99
    decided = constructed(shuffled=False, last=last)[0]["probes"]
    control = of(decided, "prediction", 1, "control_accuracy")
    assert control["ci_low"] - 0.03 < 0.5 < control["ci_high"] + 0.03, "neuron 3 knows nothing of tokens"
    selective = of(decided, "prediction", 1, "selectivity")
    assert selective["ci_low"] > 0.4
    assert decided.filter(metric="selectivity", group="prediction")["k"].to_list() == [1, 2, 4]


def test_an_ensemble_that_knows_the_last_token_does_not_beat_the_baseline():
    """Labels by the last token: n-grams are always right, and the pair of tokens adds nothing but rare pairs."""
    generator = np.random.default_rng(2)
    _, split, _ = data(40, examples=2_000, documents=60, seed=5)
    last = np.stack([generator.integers(0, 3, 2_000), generator.integers(0, 4, 2_000) + 4 * split.labels], 1)
    table = constructed(shuffled=True, last=last, see=True)[0]["probes"]
    for group in ("unigram", "bigram"):
        assert of(table, group, 0)["mean"] == 1
        over = of(table, "both", 4, f"accuracy_over_{group}")
        assert over["ci_high"] <= 0
    assert of(table, "layer", 40, "accuracy_over_unigram")["mean"] == 0


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
    with pytest.raises(UnsupportedError, match="65 neurons of layer 1 are selected, and only 63 are left"):
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
        assert row["selectivity"] == pytest.approx(row["accuracy"] - row["control_accuracy"])
        one = of(table, group, 1)["mean"]
        random = table.filter(pl.col("draw").is_not_null(), group=schema.RANDOM[group], k=6)["mean"]
        assert random.len() == 2
        assert of(table, schema.RANDOM[group], 6)["mean"] == pytest.approx(random.mean())
        against = {
            "accuracy_over_single": one,
            "accuracy_over_random": random.mean(),
            "accuracy_over_model": top1["mean"],
            "accuracy_over_threshold": of(table, "model_threshold", 0)["mean"],
            "accuracy_over_unigram": of(table, "unigram", 0)["mean"],
            "accuracy_over_bigram": of(table, "bigram", 0)["mean"],
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

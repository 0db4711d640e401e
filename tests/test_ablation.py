"""Heads and neurons ablated one at a time: tables against models rebuilt by hand and naive definitions, laws, bad input."""

import naive
import numpy as np
import polars as pl
import pytest
import torch
from families import DEPTH, tiny_model
from rebuilt import logits_of, without_component, without_inputs
from report_runs import all_tables, make_run
from scipy import stats
from test_sweep import run, save

import depthscope as ds
from depthscope.cli.console import console
from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline
from depthscope.errors import DepthscopeError, RouteError, UnsupportedError
from depthscope.experiments.ablation import Ablations, ablation_routes, every_head, top_neurons
from depthscope.models.load import load
from depthscope.report.figures import FIGURES
from depthscope.routes import HEAD
from depthscope.schema.ablation import (
    ABLATION_LAYERS_TABLE,
    EXTREMES,
    HEAD_ABLATION_BEST_TABLE,
    HEAD_ABLATION_TABLE,
    HEADS,
    NEURON_ABLATION_TABLE,
    NEURONS,
)
from depthscope.studies.settings import study_settings

HEAD_COUNT, WIDTH, DOCUMENTS = 4, 8, 12
FAMILIES = ("gpt2", "llama", "gpt_neox", "qwen3", "opt")


def windows(count=24, length=10):
    """Windows of several documents, two each."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 97, (count, length + 1), generator=generator).numpy().astype(np.int32)
    document = np.repeat(np.arange(count // 2), 2)
    return Windows(ids, document, start=np.tile([0, length], count // 2), bos="none")


def tables(model, reading, text, cuts=None):
    """The tables from units that end at `cuts`."""
    shards, before = [], 0
    with model.measuring():
        for stop in cuts or [len(text)]:
            part = text.part(before, stop)
            shards.append(reading.read(Baseline(model, *part.batch(), keep=reading.keep), part))
            before = stop
    return reading.tables(shards)


def share_of(above, below):
    """A ratio of sums over documents and its interval, by the definition."""
    ratio = sum(above) / sum(below)
    spread = sum((a - ratio * b) ** 2 for a, b in zip(above, below, strict=True))
    error = np.sqrt(len(above) / (len(above) - 1) * spread) / sum(below)
    half = stats.t.ppf(0.975, len(above) - 1) * error
    return ratio, ratio - half, ratio + half


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tables_are_their_naive_definitions(tiny_of, family):
    model, text = tiny_of(family), windows()
    found = tables(model, Ablations(model, HEADS, every_head(model)[0], ("zero",), {}), text)
    assert dict(found[HEADS].schema) == HEAD_ABLATION_TABLE
    assert dict(found["head_ablation_layers"].schema) == ABLATION_LAYERS_TABLE
    assert dict(found["head_ablation_best"].schema) == HEAD_ABLATION_BEST_TABLE
    ids, targets = text.batch()
    own = logits_of(model.hf, ids)
    base = naive.measures(own, own, targets)["loss"]

    def measured(rebuilt):
        values = naive.measures(own, logits_of(rebuilt, ids), targets)
        return {"kl": values["kl"], "agreement": values["agreement"], "loss_change": values["loss"] - base}

    def same(rows, expected, clip):
        low, high = clip
        got = rows.select("mean", "ci_low", "ci_high").row(0)
        assert got == pytest.approx([np.clip(value, low, high) for value in expected], abs=3e-4)

    for layer in range(DEPTH):
        alone = []
        for head in range(HEAD_COUNT):
            inputs = [head * WIDTH + i for i in range(WIDTH)]
            values = measured(without_inputs(model.hf, layer, "attention", inputs))
            alone.append(values["kl"].numpy())
            for metric, clip in (("kl", (0, None)), ("agreement", (0, 1)), ("loss_change", (None, None))):
                rows = found[HEADS].filter(layer=layer, head=head, metric=metric, mode="zero")
                same(rows, naive.estimate(values[metric].numpy(), text.document), clip if clip[0] == 0 else (-9, 9))
        summed = np.sum(alone, axis=0)
        per_document = [[one[text.document == d].sum() for d in range(DOCUMENTS)] for one in (*alone, summed)]
        for head in range(HEAD_COUNT):
            rows = found[HEADS].filter(layer=layer, head=head, metric="layer_share")
            same(rows, share_of(per_document[head], per_document[-1]), (0, 1))
        every = measured(without_inputs(model.hf, layer, "attention", slice(None)))["kl"].numpy()
        dropped = measured(without_component(model.hf, layer, "attention"))["kl"].numpy()
        by_layer = {"kl_apart": summed, "kl_together": every, "kl_interaction": every - summed, "kl_component": dropped}
        for metric, values in by_layer.items():
            rows = found["head_ablation_layers"].filter(layer=layer, metric=metric)
            same(rows, naive.estimate(values, text.document), (-9, 9) if metric == "kl_interaction" else (0, None))


def test_neurons_are_those_that_write_the_most_and_are_measured_alike(tiny_of):
    model, text = tiny_of("llama"), windows()
    parts, not_done = top_neurons(model, 3)
    assert not_done == {}
    ids = model.reference_ids()
    for layer in range(DEPTH):
        mlp, seen = model.hf.model.layers[layer].mlp, []
        handle = mlp.down_proj.register_forward_pre_hook(lambda _module, args, seen=seen: seen.append(args[0]))
        logits_of(model.hf, ids)
        handle.remove()
        sizes = mlp.down_proj.weight.norm(dim=0) * seen[0].square().mean((0, 1)).sqrt()
        assert parts[layer] == sizes.argsort(descending=True)[:3].tolist()
    found = tables(model, Ablations(model, NEURONS, parts, ("zero",), {}), text)
    assert dict(found[NEURONS].schema) == NEURON_ABLATION_TABLE
    inputs, targets = text.batch()
    own = logits_of(model.hf, inputs)
    edited = logits_of(without_inputs(model.hf, 2, "mlp", [parts[2][1]]), inputs)
    expected = naive.estimate(naive.measures(own, edited, targets)["kl"].numpy(), text.document)
    row = found[NEURONS].filter(layer=2, neuron=parts[2][1], metric="kl")
    assert row["rank"].item() == 2
    assert row.select("mean", "ci_low", "ci_high").row(0) == pytest.approx([max(0, one) for one in expected], abs=1e-4)


def test_the_size_of_units_changes_nothing(tiny_of):
    model, text = tiny_of("qwen3"), windows(20)
    parts = {1: [0, 2], 3: [1]}
    modes = ("zero", "mean", "resample")
    whole = tables(model, Ablations(model, HEADS, parts, modes, {}), text)
    pieces = tables(model, Ablations(model, HEADS, parts, modes, {}), text, cuts=[3, 11, 20])
    for name, table in whole.items():
        for column in ("mean", "ci_low", "ci_high"):
            assert pieces[name][column].to_list() == pytest.approx(table[column].to_list(), rel=1e-4, abs=2e-5)
    by_mode = [whole[HEADS].filter(mode=mode, metric="kl")["mean"].to_list() for mode in modes]
    assert by_mode[0] != by_mode[1] != by_mode[2]


def test_the_best_are_those_of_the_table_with_wider_intervals(tiny_of):
    model, text = tiny_of("gpt2"), windows()
    found = tables(model, Ablations(model, HEADS, every_head(model)[0], ("zero", "mean"), {}), text)
    best, table = found["head_ablation_best"], found[HEADS]
    assert len(best) == 2 * len(EXTREMES)
    for row in best.iter_rows(named=True):
        among = table.filter(mode=row["mode"], metric=row["metric"])
        assert row["measured"] == len(among) == DEPTH * HEAD_COUNT
        assert row["mean"] == (among["mean"].min() if row["extreme"] == "lowest" else among["mean"].max())
        one = among.filter(layer=row["layer"], head=row["head"])
        assert one["mean"].item() == row["mean"]
        assert row["ci_high"] > one["ci_high"].item()
        assert row["ci_low"] <= row["mean"] <= row["ci_high"]


def test_what_cannot_be_done_is_said_in_one_line(tiny_of):
    with pytest.raises(UnsupportedError, match="no separate attention and MLP"):
        every_head(tiny_of("mamba"))
    with pytest.raises(UnsupportedError, match=r"neurons of block 0 .* made of experts"):
        top_neurons(tiny_of("mixtral"), 2)
    parts, not_done = every_head(load(tiny_model("minimax")))
    assert sorted(parts) == [1, 3]
    assert "2 of 4 blocks: " in not_done["heads"]
    assert "heads of block 0" in not_done["heads"]
    for given, says in (
        ({"ablation": "median"}, "unknown ablation 'median': expected some of zero, mean, resample"),
        ({"ablation": ()}, "unknown ablation"),
        ({"top_neurons": 0}, "0 neurons of each layer: expected 1 to 1,024"),
    ):
        with pytest.raises(DepthscopeError, match=says):
            study_settings(experiments="head_ablation,neuron_ablation", **given)
    with pytest.raises(RouteError, match="expected at most 65,536"):
        ablation_routes(HEAD, {block: [*range(700)] for block in range(100)}, ("zero",), 100)


def test_the_command_measures_every_head_and_says_which_matters_most(tmp_path, monkeypatch):
    monkeypatch.setattr(console, "width", 160)
    folder = save("llama", tmp_path / "model")
    said = run(
        "head-ablation", folder, "--tokens", 240, "--window", 20, "--ablation", "zero", "--out", tmp_path / "run"
    )
    assert "highest KL" in said
    study = ds.Study(tmp_path / "run")
    table = study.table("head_ablation")
    assert len(table) == DEPTH * HEAD_COUNT * 4
    kl = table.filter(metric="kl").sort("mean").row(-1, named=True)
    assert f"L{kl['layer']}H{kl['head']}" in said
    assert {"head_ablation", "neuron_ablation"} <= set(study_settings(experiments="deep").experiments)


def test_the_section_has_a_map_per_mode_and_says_what_the_intervals_allow(tmp_path):
    given = all_tables(6)
    section = FIGURES[HEADS].build(make_run(tmp_path / "run", 6, tables=given))
    assert [panel.name for panel in section.panels] == [
        *("head_ablation-zero", "head_ablation-mean"),
        *("head_ablation-layers-zero", "head_ablation-layers-mean"),
    ]
    said = " ".join(section.sentences)
    assert "Zero ablation of no head is shown to lower the loss" in said
    assert "in 6 of 6 layers the heads cost more together" in said
    lowered = given["head_ablation_best"].with_columns(
        pl.when(pl.col("metric") == "loss_change").then(pl.lit(value)).otherwise(pl.col(name)).alias(name)
        for name, value in (("mean", -0.02), ("ci_low", -0.03), ("ci_high", -0.01))
    )
    run_ = make_run(tmp_path / "lower", 6, tables=given | {"head_ablation_best": lowered})
    assert "lowers the loss, by 0.0200 nats (0.0100 to 0.0300)" in " ".join(
        FIGURES[HEADS].build(run_).sentences
    ).replace("\u00a0", " ")
    neurons = FIGURES[NEURONS].build(make_run(tmp_path / "neurons", 6, tables=given))
    assert len(neurons.panels) == 4

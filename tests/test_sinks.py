"""Attention sinks and massive activations against loops over their definitions; how the text is cut; what a model lacks."""

import copy

import naive
import numpy as np
import polars as pl
import pytest
import torch
from families import DEPTH, WIDTH, tiny_model
from polars.testing import assert_frame_equal
from report_runs import make_run
from test_readings import DOCUMENTS, IDS, LENGTH, TEXT, check, tables
from test_weights import spread_norms
from transformers import AutoModelForCausalLM

from depthscope.engine.baseline import Baseline
from depthscope.errors import DataError, UnsupportedError
from depthscope.experiments import massive, sinks
from depthscope.experiments.massive import Massive, state_measures
from depthscope.experiments.sinks import Sinks
from depthscope.models.load import load
from depthscope.report.figures import FIGURES
from depthscope.schema.massive import (
    MASSIVE_BLOCKS_TABLE,
    MASSIVE_DIMENSIONS_TABLE,
    MASSIVE_EXTREMES_TABLE,
    MASSIVE_SHARD,
    MASSIVE_TABLE,
    MASSIVE_TOKENS_TABLE,
)
from depthscope.schema.sinks import SINK_HEADS_TABLE, SINKS_MODEL_TABLE, SINKS_TABLE

FAMILIES = ["gpt2", "gpt_neox", "llama", "gemma2", "bloom"]
WINDOWS = len(DOCUMENTS)
EPSILON = 0.2
"""A share of attention that some heads of random models give to the first token."""
DIMENSION = 5
LEAST = 0.4
"""A magnitude that some values of random models exceed."""


@pytest.mark.parametrize("family", FAMILIES)
def test_sinks(family, monkeypatch):
    monkeypatch.setattr(sinks, "QUERIES", 16)  # of windows of 20 tokens
    monkeypatch.setattr(sinks, "THRESHOLD", EPSILON)
    model = spread_norms(tiny_model(family))
    found = tables(Sinks(model, LENGTH), model)
    schemas = {"sinks": SINKS_TABLE, "sinks_model": SINKS_MODEL_TABLE, "sink_heads": SINK_HEADS_TABLE}
    assert {name: dict(table.schema) for name, table in found.items()} == schemas
    eager = AutoModelForCausalLM.from_config(model.hf.config, attn_implementation="eager").double().eval()
    eager.load_state_dict(copy.deepcopy(model.hf).double().state_dict())
    with torch.no_grad():
        patterns = [p.numpy() for p in eager(input_ids=IDS[:, :16], output_attentions=True, use_cache=False).attentions]
    expected = {name: np.array([naive_sinks(p)[name] for p in patterns]) for name in naive_sinks(patterns[0])}
    assert 0 < expected["sink"].mean() < 1
    for metric, values in expected.items():  # layers × windows × heads
        for layer in range(DEPTH):
            for head in range(values.shape[2]):
                check(found["sink_heads"], {"layer": layer, "head": head}, metric, values[layer, :, [head]].T, 1e-5)
            check(found["sinks"], {"layer": layer}, metric, values[layer].mean(1, keepdims=True), 1e-5)
        check(found["sinks_model"], {}, metric, values.mean((0, 2))[:, None], 1e-5)
    count = found["sinks_model"].row(by_predicate=pl.col("metric") == "sink_heads", named=True)
    means = [
        naive.estimate(to_first[:, None], DOCUMENTS)[0]
        for layer in expected["attention_to_first"]
        for to_first in layer.T
    ]
    assert count["mean"] == sum(mean > EPSILON for mean in means)
    assert count["ci_low"] <= count["mean"] <= count["ci_high"] <= len(means)


def naive_sinks(pattern: np.ndarray) -> dict[str, np.ndarray]:
    """Per window and head: α_k by its definition, compared with ε."""
    windows, heads, queries, _ = pattern.shape
    found = {name: np.zeros((windows, heads)) for name in ("sink", "later_sink", "attention_to_first")}
    for w in range(windows):
        for h in range(heads):
            alpha = [np.mean([pattern[w, h, i, k] for i in range(k, queries)]) for k in range(queries)]
            found["sink"][w, h] = alpha[0] > EPSILON
            found["later_sink"][w, h] = any(alpha[k] > EPSILON for k in range(1, queries) if queries - k >= queries / 2)
            found["attention_to_first"][w, h] = alpha[0]
    return found


def is_massive(state: np.ndarray, magnitude: float, ratio: float) -> np.ndarray:
    """Of one window's x_l, by loops."""
    ranked = sorted(abs(value) for value in state.flat)
    median = ranked[(len(ranked) - 1) // 2]
    return np.array([[abs(v) > magnitude and abs(v) >= ratio * median for v in row] for row in state])


@pytest.mark.parametrize("family", [*FAMILIES, "opt"])
def test_massive_activations(family, monkeypatch):
    monkeypatch.setattr(massive, "MAGNITUDE", LEAST)
    monkeypatch.setattr(massive, "RATIO", 3.0)
    hf = tiny_model(family)
    model = load(hf)
    streams = [x.numpy() for x in naive.residuals(copy.deepcopy(hf).double(), IDS)]
    masks = np.array([[is_massive(state, LEAST, 3.0) for state in stream] for stream in streams])
    assert 0 < masks.sum() < masks.size / 4
    found = tables(Massive(model, LENGTH), model)
    check_depths(found["massive"], streams, masks)
    check_blocks(found["massive_blocks"], masks)
    check_dimensions(found["massive_dimensions"], streams, masks)
    check_extremes(found["massive_extremes"], streams)
    check_tokens(found["massive_tokens"], masks.any((0, 3)))


def check_depths(table, streams, masks):
    assert dict(table.schema) == MASSIVE_TABLE
    for depth, (stream, mask) in enumerate(zip(streams, masks, strict=True)):
        ranked = np.sort(np.abs(stream).reshape(WINDOWS, -1), axis=1)
        median = ranked[:, (ranked.shape[1] - 1) // 2]
        values = {"largest": ranked[:, -1], "second": ranked[:, -2], "third": ranked[:, -3], "median": median}
        values["largest_ratio"] = ranked[:, -1] / median
        values["largest_first"] = np.abs(stream[:, 0]).max(1) >= np.abs(stream[:, 1:]).max((1, 2))
        values["massive_windows"] = mask.any((1, 2))
        values["massive_first"], values["massive_later"] = mask[:, 0].sum(1), mask[:, 1:].sum((1, 2))
        values["relative"] = (ranked >= 3 * median[:, None]).sum(1)
        for metric, expected in values.items():
            check(table, {"layer": depth}, metric, expected[:, None], 1e-3)


def check_blocks(table, masks):
    assert dict(table.schema) == MASSIVE_BLOCKS_TABLE
    for layer in range(DEPTH):
        for position, part in (("first", slice(0, 1)), ("later", slice(1, None))):
            before, after = masks[layer][:, part], masks[layer + 1][:, part]
            for metric, mask in (("written", after & ~before), ("removed", before & ~after)):
                keys, number = {"layer": layer, "position": position}, mask.sum((1, 2))[:, None]
                check(table, keys, metric, number, 1e-6)
                check(table, keys, f"{metric}_windows", number > 0, 1e-6)


def check_dimensions(table, streams, masks):
    assert dict(table.schema) == MASSIVE_DIMENSIONS_TABLE
    expected = set()
    for depth, (stream, mask) in enumerate(zip(streams, masks, strict=True)):
        for position, part in (("first", slice(0, 1)), ("later", slice(1, None))):
            for dimension in np.flatnonzero(mask[:, part].any((0, 1))).tolist():
                inside, values = mask[:, part, dimension], stream[:, part, dimension]
                keys = {"layer": depth, "dimension": dimension, "position": position}
                expected.add((depth, dimension, position))
                check(table, keys, "massive_share", inside.any(1)[:, None], 1e-6)
                row = table.row(
                    by_predicate=pl.all_horizontal(pl.col(k) == v for k, v in keys.items())
                    & (pl.col("metric") == "massive_value"),
                    named=True,
                )
                assert row["mean"] == pytest.approx(values[inside].mean(), rel=1e-4)
                assert row["tokens"] == inside.sum()
                assert row["documents"] == len(set(DOCUMENTS[inside.any(1)]))
    assert set(table.select("layer", "dimension", "position").rows()) == expected


def check_extremes(table, streams):
    assert dict(table.schema) == MASSIVE_EXTREMES_TABLE
    for row, stream in zip(table.iter_rows(named=True), streams, strict=True):
        window, place, dimension = np.unravel_index(np.abs(stream).argmax(), stream.shape)
        assert row["value"] == pytest.approx(stream[window, place, dimension], rel=1e-4)
        assert (row["dimension"], row["place"], row["document"]) == (dimension, place, DOCUMENTS[window])
        assert row["token"] == IDS[window, place]
        assert (row["windows"], row["tokens"]) == (WINDOWS, WINDOWS * LENGTH)


def check_tokens(table, carriers):
    assert dict(table.schema) == MASSIVE_TOKENS_TABLE
    for position, part in (("first", slice(0, 1)), ("later", slice(1, None))):
        tokens, counts = np.unique(IDS.numpy()[:, part][carriers[:, part]], return_counts=True)
        expected = sorted(zip((-counts).tolist(), tokens.tolist(), strict=True))[:20]
        rows = table.filter(position=position).sort("rank").select("count", "token").rows()
        assert [(-count, token) for count, token in rows] == expected


def planted():
    """gpt2 whose block 1 writes 1e5 to a dimension of every position, which block 3 takes away."""
    hf = tiny_model("gpt2")
    with torch.no_grad():
        hf.transformer.h[1].mlp.c_proj.bias[DIMENSION] += 1e5
        hf.transformer.h[3].mlp.c_proj.bias[DIMENSION] -= 1e5
    return load(hf)


def test_what_a_layer_writes_and_another_removes(tmp_path):
    model = planted()
    found = tables(Massive(model, LENGTH), model)
    blocks = found["massive_blocks"].filter(pl.col("mean") > 0)
    numbers = {"first": 1.0, "later": LENGTH - 1.0}
    assert set(blocks.select("layer", "position", "metric", "mean").rows()) == {
        (layer, position, name, mean)
        for layer, metric in ((1, "written"), (3, "removed"))
        for position, number in numbers.items()
        for name, mean in ((metric, number), (f"{metric}_windows", 1.0))
    }
    dimensions = found["massive_dimensions"]
    assert set(dimensions["dimension"]) == {DIMENSION}
    assert set(dimensions["layer"]) == {2, 3}
    assert dimensions.filter(metric="massive_value")["mean"].to_list() == pytest.approx([1e5] * 4, rel=1e-3)
    said = said_of(tmp_path, found, model.depth)
    assert "in x_l for l = 2 and 3" in said
    assert (
        "At the first position, layer 1 writes some in 100.0% (100.0 to 100.0) of the windows; layer 3 removes" in said
    )
    assert f"At later positions, in at least half of the windows: dimension {DIMENSION} (x_l for l = 2 and 3)." in said


def said_of(path, found, depth):
    run = make_run(path / "run", depth, tables=found, experiments=("massive",))
    return " ".join(FIGURES["massive"].build(run).sentences).replace("\u00a0", " ")


def test_without_massive_activations_the_page_says_so(tmp_path, tiny_of):
    found = tables(Massive(tiny_of("llama"), LENGTH), tiny_of("llama"))
    assert found["massive_dimensions"].is_empty()
    assert found["massive_tokens"].is_empty()
    said = said_of(tmp_path, found, DEPTH)
    assert "No activation is massive" in said
    assert f"The largest magnitude seen in {WINDOWS * LENGTH} tokens is" in said


def test_how_the_text_is_cut_into_units_and_parts_changes_no_number():
    model = planted()
    for reading in (Sinks(model, LENGTH), Massive(model, LENGTH)):
        whole = tables(reading, model)
        for name, table in tables(reading, model, cuts=(1, 2, 5)).items():
            assert_frame_equal(table, whole[name], rel_tol=1e-6)
    reading = Massive(model, LENGTH)
    with torch.inference_mode():
        one, *parts = (
            reading.read(Baseline(model, *part.batch()), part)
            for part in (TEXT, TEXT.part(0, 1), TEXT.part(1, 4), TEXT.part(4, WINDOWS))
        )
    assert dict(one.schema) == MASSIVE_SHARD
    assert_frame_equal(reading.joined(parts), one, rel_tol=1e-6)


def test_a_state_of_zeros_has_no_ratio_and_nothing_massive():
    state = state_measures(torch.zeros(1, 4, WIDTH))
    assert state.massive is None
    assert np.isnan(state.metrics[4, 0])
    assert not np.delete(state.metrics[:, 0], [4, 5]).any()


def test_what_a_model_or_text_lacks_is_said():
    mamba = load(tiny_model("mamba"))
    with pytest.raises(UnsupportedError, match="no attention patterns"):
        Sinks(mamba, LENGTH)
    assert tables(Massive(mamba, LENGTH), mamba)["massive_extremes"].height == DEPTH + 1
    with pytest.raises(DataError, match="windows of 8 tokens are too short for attention sinks: expected at least 16"):
        Sinks(load(tiny_model("gpt2")), 8)
    one = TEXT.part(2, 3)
    model = load(tiny_model("gpt2"))
    alone = tables(Sinks(model, LENGTH), model, one, cuts=())["sinks_model"]
    assert alone["ci_low"].null_count() == len(alone)

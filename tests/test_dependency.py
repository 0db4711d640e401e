"""Layer dependency against forwards of the model with hooks, in float64; its laws; what it refuses."""

import copy

import naive
import numpy as np
import polars as pl
import pytest
import torch
from families import tiny_model
from rebuilt import block_list, logits_of
from test_sweep import save

import depthscope as ds
from depthscope.data.windows import Windows, make_windows
from depthscope.engine.baseline import Baseline
from depthscope.errors import DataError, DepthscopeError, UnsupportedError
from depthscope.experiments.dependency import Dependency
from depthscope.models.load import load
from depthscope.schema.dependency import (
    DEPENDENCY_DEPTH_TABLE,
    DEPENDENCY_EFFECTS_TABLE,
    DEPENDENCY_SHARD,
    DEPENDENCY_TABLE,
    VARIANTS,
)
from depthscope.studies.settings import study_settings

DEPTH, LENGTH, SPLITS = 4, 15, 2
PLACES = (5, 10)


def read(model, windows: Windows, experiment: Dependency) -> pl.DataFrame:
    with model.measuring():
        return experiment.read(Baseline(model, *windows.batch()), windows)


def hooked(model, ids, changed):
    """(inputs, outputs) of all blocks in float64, and logits; `changed(block, input, output)` may replace an output."""
    holder, name = block_list(model)
    inputs, outputs = [], []

    def after(block):
        def hook(_module, args, kwargs, output):
            given = args[0] if args else kwargs["hidden_states"]
            found = output[0] if isinstance(output, tuple) else output
            new = changed(block, given, found)
            inputs.append(given)
            outputs.append(new)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return hook

    handles = [
        block.register_forward_hook(after(place), with_kwargs=True) for place, block in enumerate(getattr(holder, name))
    ]
    logits = logits_of(model, ids)
    for handle in handles:
        handle.remove()
    return inputs, outputs, logits


def definition(model, ids, variant, skipped, keep_first):
    """Values [windows, measured positions] by later layer, and of the output: one forward per skip, or per later layer."""
    own_in, own_out, own_logits = hooked(model, ids, lambda _block, _given, output: output)
    writes = [after - before for before, after in zip(own_in, own_out, strict=True)]
    position = torch.arange(ids.shape[1])
    found: dict[int, list] = {}
    for place in PLACES if "future" in variant else (None,):
        at = (position >= keep_first) if place is None else (position >= keep_first) & (position < place)
        where = (position >= keep_first) if place is None else position >= place

        def keep(layer, change, where=where):
            ratio = change.norm(dim=-1) / writes[layer].norm(dim=-1)
            found.setdefault(layer, []).append(ratio[:, where])

        if "local" in variant:
            for layer in range(skipped + 1, DEPTH):

                def replace(block, _given, output, layer=layer, at=at):
                    if block == layer - 1:
                        return torch.where(at[:, None], output - writes[skipped], output)
                    return output

                inputs, outputs, _ = hooked(model, ids, replace)
                keep(layer, outputs[layer] - inputs[layer] - writes[layer])
            continue

        def skip(block, given, output, at=at):
            return torch.where(at[:, None], given, output) if block == skipped else output

        inputs, outputs, logits = hooked(model, ids, skip)
        for layer in range(skipped + 1, DEPTH):
            keep(layer, outputs[layer] - inputs[layer] - writes[layer])
        distance = (logits.softmax(-1) - own_logits.softmax(-1)).square().sum(-1).sqrt()
        found.setdefault(DEPTH, []).append(distance[:, where])
    return {layer: torch.cat(parts, 1).numpy() for layer, parts in found.items()}


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi", "llama", "gemma2", "opt"])
def test_the_tables_are_their_definition(family, tmp_path):
    model = load(save(family, tmp_path / "model"))
    windows = make_windows(ds.corpus(tokens=90), model, length=LENGTH)
    exact = copy.deepcopy(model.hf).double()
    keep_first = family in ("phi", "llama")
    experiment = Dependency(model, LENGTH, list(VARIANTS), SPLITS, keep_first)
    shard = read(model, windows, experiment)
    assert dict(shard.schema) == DEPENDENCY_SHARD
    tables = experiment.tables([shard])
    for name, schema in (
        ("dependency", DEPENDENCY_TABLE),
        ("dependency_effects", DEPENDENCY_EFFECTS_TABLE),
        ("dependency_depth", DEPENDENCY_DEPTH_TABLE),
    ):
        assert dict(tables[name].schema) == schema
    ids, documents = windows.batch()[0], windows.document
    for variant in VARIANTS:
        effects, outputs = {}, {}
        for skipped in range(DEPTH):
            values = definition(exact, ids, variant, skipped, keep_first)
            if later := [values[layer] for layer in range(skipped + 1, DEPTH)]:
                effects[skipped] = np.mean(later, 0)
            for layer, one in values.items():
                rows = tables["dependency"].filter(variant=variant, layer=skipped, other=layer)
                if layer == DEPTH:
                    outputs[skipped] = one
                    rows = tables["dependency_effects"].filter(variant=variant, layer=skipped, metric="output_change")
                (row,) = rows.iter_rows(named=True)
                expected = naive.estimate(one, documents)
                assert [row["mean"], row["ci_low"], row["ci_high"]] == pytest.approx(expected, rel=1e-3, abs=1e-5)
                assert row["largest"] == pytest.approx(one.max(), rel=1e-3, abs=1e-6)
                assert row["tokens"] == one.size
        for skipped, one in effects.items():
            row = tables["dependency_effects"].filter(variant=variant, layer=skipped, metric="later_change")
            assert row["mean"].item() == pytest.approx(one.mean(), rel=1e-3)
        scores = {"depth_score": score(effects, documents)}
        halves = [{0: np.mean([effects[s] for s in some], 0)} for some in ((2,), (0, 1))]
        scores["second_half"] = ratio(halves[0][0], halves[1][0], documents)
        if outputs:
            scores["output_depth_score"] = score(outputs, documents)
        found = tables["dependency_depth"].filter(variant=variant)
        assert set(found["metric"]) == set(scores)
        for metric, expected in scores.items():
            row = found.filter(metric=metric).select("mean", "ci_low", "ci_high").row(0)
            assert row == pytest.approx([expected[0], max(expected[1], 0), expected[2]], rel=2e-3)


def score(effects, documents):
    return ratio(sum(s * one for s, one in effects.items()), sum(effects.values()), documents)


def ratio(above, below, documents):
    """A ratio of sums over documents with the interval of its linearisation, which is that of a mean of differences."""
    value = above.sum() / below.sum()
    _, low, high = naive.estimate(above - value * below, documents)
    return value, value + low / below.mean(), value + high / below.mean()


def test_parts_are_the_whole_and_skipping_nowhere_changes_nothing(tmp_path):
    model = load(save("gpt2", tmp_path / "model"))
    windows = make_windows(ds.corpus(tokens=150), model, length=LENGTH)
    experiment = Dependency(model, LENGTH, ["all", "future"], SPLITS)
    whole = experiment.tables([read(model, windows, experiment)])
    shards = [read(model, windows.part(*ends), experiment) for ends in ((0, 3), (3, 7), (7, len(windows)))]
    for tables in (experiment.tables(shards), experiment.tables([experiment.joined(shards)])):
        for name, table in tables.items():
            assert table.drop("mean", "ci_low", "ci_high", "largest", strict=False).equals(
                whole[name].drop("mean", "ci_low", "ci_high", "largest", strict=False)
            )
            for column in ("mean", "ci_low", "ci_high"):
                assert table[column].to_numpy() == pytest.approx(whole[name][column].to_numpy(), rel=1e-4)
    nowhere = torch.zeros(LENGTH, dtype=torch.bool)
    experiment.places = {variant: [(nowhere, ~nowhere)] for variant in experiment.variants}
    assert experiment.tables([read(model, windows, experiment)])["dependency"]["largest"].max() == 0


def test_a_future_does_not_depend_on_a_skip_that_attention_cannot_see(tmp_path):
    """In a model without attention, nothing before t reaches the positions from t on."""
    model = load(save("llama", tmp_path / "model"))
    for block in model.hf.model.layers:
        torch.nn.init.zeros_(block.self_attn.o_proj.weight)
    windows = make_windows(ds.corpus(tokens=90), model, length=LENGTH)
    model.kernels.forget()
    experiment = Dependency(model, LENGTH, ["all", "future"], SPLITS)
    tables = experiment.tables([read(model, windows, experiment)])
    largest = tables["dependency"].group_by("variant").agg(pl.max("largest")).sort("variant")
    assert largest["largest"][0] > 0.01
    assert largest["largest"][1] == pytest.approx(0, abs=1e-5)


def test_what_it_refuses(tmp_path):
    for given, says in (
        ({"variant": "past"}, "unknown variant of dependency past: expected some of all, future, local, local-future"),
        ({"splits": 0}, "0 positions to split windows at: expected 1 to 64"),
    ):
        with pytest.raises(DepthscopeError, match=says):
            study_settings(experiments="dependency", **given)
    assert "dependency" in study_settings(experiments="deep").experiments
    assert "dependency" not in study_settings().experiments
    model = load(save("gpt2", tmp_path / "model"))
    Dependency(model, 3, ["all"], 4)
    with pytest.raises(DataError, match="windows of 3 tokens cannot be split at 4 positions"):
        Dependency(model, 3, ["future"], 4)
    with pytest.raises(UnsupportedError, match="one block: there are no later ones"):
        Dependency(ds.load(tiny_model("gpt2", n_layer=1)), LENGTH)

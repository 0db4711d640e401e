"""Neurons by their output weights (E8): moments against naive definitions, kinds against planted neurons and the cards."""

import copy
import io
import re
from importlib.resources import files

import numpy as np
import polars as pl
import pytest
import torch
from families import DEPTH, tiny_model
from scipy import stats
from test_moments import naive_cosines

from depthscope.data.token_classes import token_classes, vocabulary_of
from depthscope.errors import DataError, UnsupportedError
from depthscope.experiments.experiment import OwnUnits
from depthscope.experiments.neuron_kinds import Thresholds, with_kinds
from depthscope.experiments.neurons import Neurons, counted, parse_neuron
from depthscope.models.load import load
from depthscope.models.model import Model
from depthscope.models.weights import mlp_output_weights, unembedding
from depthscope.schema.neurons import (
    KINDS,
    METRICS,
    NEURON_COUNTS_TABLE,
    NEURON_SHARD,
    NEURON_TOKENS_TABLE,
    NEURONS_TABLE,
)


def tables_of(experiment: Neurons) -> dict[str, pl.DataFrame]:
    return experiment.tables(experiment.work(unit) for unit in range(experiment.units))


def counts_of(tables: dict[str, pl.DataFrame], kind: str) -> list[int]:
    return tables["neuron_counts"].filter(kind=kind).sort("layer")["count"].to_list()


@pytest.mark.parametrize("processed", [True, False])
def test_counts_are_those_of_the_models_cards(shelf, processed):
    """The cards were written by training/neurons.py, float64 throughout, on the same weights."""
    card = files("depthscope.models").joinpath(f"bookshelf/{shelf.name}/README.md").read_text()
    which = "processed as in the paper" if processed else "as they are"
    [line] = [row for row in card.splitlines() if "kurtosis over 10" in row and f"weights {which}" in row]
    prediction, suppression, largest = re.search(
        r"prediction ([\d ]+); suppression ([\d ]+) \(.*kurtosis is ([\d.]+),", line
    ).groups()
    tables = tables_of(Neurons(shelf, processed=processed))
    assert counts_of(tables, "prediction") == [int(n) for n in prediction.split()]
    assert counts_of(tables, "suppression") == [int(n) for n in suppression.split()]
    assert tables["neuron_counts"]["largest_kurtosis"].max() == pytest.approx(float(largest), abs=0.005)


def with_rows(model: Model, block: int, rows: dict[int, torch.Tensor]) -> Model:
    """A copy of a GPT-2 with other output weights for some neurons."""
    hf = copy.deepcopy(model.hf)
    with torch.no_grad():
        for neuron, row in rows.items():
            hf.transformer.h[block].mlp.c_proj.weight[neuron] = row
    return Model(hf, model.tokenizer, "planted")


def singled_out(weight: torch.Tensor) -> int:
    """The token that a direction can single out best: of largest leverage."""
    inverse = torch.linalg.pinv(weight.T @ weight, rtol=1e-6)
    return int(((weight @ inverse) * weight).sum(1).argmax())


@pytest.fixture(scope="module")
def planted(gpt2):
    """Neurons whose kind is known by how they are made, in layer 6 of the embedded GPT-2."""
    weight, _ = unembedding(gpt2)
    classes = token_classes(vocabulary_of(gpt2))
    spaced = torch.from_numpy(classes.member[classes.names.index("leading space")])
    inverse = torch.linalg.pinv(weight.T @ weight, rtol=1e-6)
    one = inverse @ weight[singled_out(weight)]  # of all that give this token 1 the direction that gives the rest least
    _, singular, vectors = torch.linalg.svd(weight - weight.mean(0), full_matrices=False)
    quiet = vectors[singular > 1e-3 * singular[0]][-1]  # the least of the directions the centred weights span
    apart = vectors[0]
    rows = {1: one, 2: -one, 3: quiet * 20, 4: apart, 5: torch.zeros(192), 6: torch.full((192,), 0.3)}
    rows[7] = inverse @ (weight[spaced].mean(0) - weight[~spaced].mean(0))  # Fisher's discriminant
    return with_rows(gpt2, 6, rows)


def test_planted_neurons_are_told_apart(planted):
    neurons = tables_of(Neurons(planted))["neurons"].filter(layer=6).sort("neuron")
    kinds = neurons["kind"].to_list()
    assert kinds[1:7] == ["prediction", "suppression", "entropy", "partition", "dead", "dead"]
    assert neurons["token_class"][7] == "leading space"
    assert neurons["class_difference"][7] > 0


def test_tokens_of_planted_neurons(planted):
    tokens = tables_of(Neurons(planted, strongest=2, tokens=3))["neuron_tokens"].filter(layer=6)
    prediction = tokens.filter(neuron=1).row(0, named=True)
    suppression = tokens.filter(neuron=2).row(0, named=True)
    assert prediction["promoted_ids"][0] == suppression["suppressed_ids"][0] == singled_out(unembedding(planted)[0])
    shown = [vocabulary_of(planted).shown(token) for token in prediction["promoted_ids"]]
    assert prediction["promoted"] == shown
    assert prediction["promoted_cosines"] == sorted(prediction["promoted_cosines"], reverse=True)
    assert (prediction["kind"], suppression["kind"]) == ("prediction", "suppression")


def test_dead_neurons_have_no_shape_and_no_class(planted):
    tables = tables_of(Neurons(planted))
    dead = tables["neurons"].filter(kind="dead")
    assert dead.select("layer", "neuron").rows() == [(6, 5), (6, 6)]
    for column in ("skew", "kurtosis", "token_class", "class_share", "variance_z", "norm_z", "effect_z"):
        assert dead[column].null_count() == 2, column
    assert counts_of(tables, "dead") == [2 if layer == 6 else 0 for layer in range(12)]
    numbers = tables["neurons"].select(pl.col(pl.Float64).is_nan().sum()).row(0)
    assert not any(numbers)
    assert tables["neuron_counts"]["largest_kurtosis"].is_finite().all()


def test_kinds_do_not_depend_on_the_scale_of_weights(gpt2):
    experiment = Neurons(gpt2)
    rows = pl.concat([experiment.work(unit) for unit in range(3)])
    scaled = rows.with_columns(norm=pl.col("norm") * 100, effect_variance=pl.col("effect_variance") * 1e5)
    thresholds = Thresholds(entropy_norm_z=0.5, entropy_effect_z=-0.5, partition_variance_z=1.0)
    kinds = [with_kinds(frame, thresholds)["kind"] for frame in (rows, scaled)]
    assert kinds[0].equals(kinds[1])
    assert kinds[0].n_unique() == 3


def test_every_family_has_its_neurons(tiny):
    """With random weights, no tokenizer, and kinds that do not depend on one."""
    if tiny.components is None:
        with pytest.raises(UnsupportedError, match="no separate MLP"):
            Neurons(tiny)
        return
    experiment = Neurons(tiny, strongest=2, tokens=3)
    shards = [experiment.work(unit) for unit in range(experiment.units)]
    assert all(shard.schema == pl.Schema(NEURON_SHARD) for shard in shards)
    tables = experiment.tables(shards)
    neurons, counts = tables["neurons"], tables["neuron_counts"]
    per_block = len(mlp_output_weights(tiny, 0))
    assert len(neurons) == DEPTH * per_block
    assert neurons["token_class"].null_count() == len(neurons)
    weight, _ = unembedding(tiny)
    cosines = naive_cosines(mlp_output_weights(tiny, 2)[5:6], weight)
    row = neurons.filter(layer=2, neuron=5).row(0, named=True)
    assert row["kurtosis"] == pytest.approx(stats.kurtosis(cosines[0], fisher=False), rel=1e-4)
    assert row["skew"] == pytest.approx(stats.skew(cosines[0]), abs=1e-4)
    assert counts.group_by("layer").agg(pl.col("count").sum())["count"].to_list() == [per_block] * DEPTH
    assert len(counts) == DEPTH * len(KINDS)
    assert tables["neuron_tokens"]["promoted"].list.len().unique().to_list() == [3]


def test_all_neurons_of_all_experts_count(tiny_of):
    assert len(Neurons(tiny_of("mixtral")).work(0)) == 4 * 48
    assert len(Neurons(tiny_of("qwen3_moe")).work(0)) == 4 * 24


def test_how_the_neurons_of_experts_are_counted_is_said(tiny_of):
    counts = pl.DataFrame({"layer": [DEPTH - 1], "neurons": [4 * 24]})
    said = counted(tiny_of("qwen3_moe").facts, counts)
    assert (said.experts, said.neurons_of_an_expert, said.neurons_of_shared_experts) == (4, 24, 0)
    assert counted(tiny_of("qwen3_moe").facts, counts.with_columns(neurons=120)).neurons_of_shared_experts == 24
    assert counted(tiny_of("llama").facts, counts).to_json() == {"rows": "one per neuron of the MLP"}


def test_tables_have_their_columns_and_come_out_the_same_again(gpt2):
    experiment = Neurons(gpt2)
    assert isinstance(experiment, OwnUnits)
    assert experiment.units == 12
    stored = []
    for unit in range(experiment.units):
        buffer = io.BytesIO()
        experiment.work(unit).write_parquet(buffer)
        stored.append(pl.read_parquet(io.BytesIO(buffer.getvalue())))
    tables, again = experiment.tables(iter(stored)), tables_of(Neurons(gpt2))
    schemas = {
        "neurons": NEURONS_TABLE,
        "neuron_counts": NEURON_COUNTS_TABLE,
        "neuron_tokens": NEURON_TOKENS_TABLE,
    }
    assert {name: table.schema for name, table in tables.items()} == {k: pl.Schema(v) for k, v in schemas.items()}
    for name, table in tables.items():
        assert table.equals(again[name]), name
    strongest = tables["neuron_tokens"].filter(kind="other")
    others = tables["neurons"].filter(kind="other")
    assert strongest["strength"].to_list() == others["kurtosis"].sort(descending=True).head(10).to_list()


def test_a_single_neuron_is_its_row_of_the_table(shelf):
    experiment = Neurons(shelf, tokens=7)
    report = experiment.neuron(*parse_neuron("10.345"))
    row = tables_of(experiment)["neurons"].filter(layer=10, neuron=345).row(0, named=True)
    assert report.kind == row["kind"]
    assert list(report.numbers) == list(METRICS)
    for name, value in report.numbers.items():
        assert value == pytest.approx(row[name], rel=1e-5, abs=1e-6), name
    assert report.classes[0].name == row["token_class"]
    assert [effect.share for effect in report.classes] == sorted([e.share for e in report.classes], reverse=True)
    cosines = naive_cosines(mlp_output_weights(shelf, 10)[345:346], unembedding(shelf)[0])[0]
    assert [token.token for token in report.promoted] == np.argsort(-cosines)[:7].tolist()
    assert [token.token for token in report.suppressed] == np.argsort(cosines)[:7].tolist()
    np.testing.assert_allclose([t.cosine for t in report.promoted], np.sort(cosines)[::-1][:7], rtol=1e-5)


def test_reports_on_dead_neurons_and_without_a_tokenizer(planted):
    report = Neurons(planted).neuron(6, 5)
    assert (report.kind, report.numbers["kurtosis"], report.classes) == ("dead", None, [])
    report = Neurons(load(tiny_model("llama"))).neuron(0, 0)
    assert report.classes == []
    assert re.fullmatch(r"#\d+", report.promoted[0].text)


@pytest.mark.parametrize("text", ["10", "10.", ".3", "10.3.4", "-1.3", "L10.N3", "10.³", ""])
def test_neurons_that_cannot_be_read(text):
    with pytest.raises(DataError, match=r"expected LAYER.NEURON"):
        parse_neuron(text)


def test_what_cannot_be_asked(gpt2):
    with pytest.raises(UnsupportedError, match="no layer 12: expected 0 … 11"):
        Neurons(gpt2).neuron(12, 0)
    with pytest.raises(UnsupportedError, match="no neuron 768 in layer 3: expected 0 … 767"):
        Neurons(gpt2).neuron(3, 768)
    with pytest.raises(DataError, match="at least 1"):
        Neurons(gpt2, tokens=0)
    with pytest.raises(DataError, match="expected kurtosis of at least 1"):
        Thresholds(kurtosis=0.5)
    assert Neurons(gpt2, thresholds=Thresholds(kurtosis=4.0)).settings["kurtosis"] == 4

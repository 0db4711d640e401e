"""Stages: found where they were planted, named by direction, not where there are none; signatures against their words."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import depthscope as ds
from depthscope.models.load import load
from depthscope.schema.found_stages import Stages
from depthscope.schema.stages import CANNOT_TELL, NOT_SUPPORTED, SIGNALS, STAGES, SUPPORTED, TRANSITIONS
from depthscope.stages.effects import EFFECTS
from depthscope.stages.find import find_stages
from depthscope.stages.signals import ResampledLayers, signals
from depthscope.stages.signatures import verdicts
from depthscope.stages.transitions import Interior

EXPERIMENTS = ("sweep", "lens", "norms", "attention", "neurons", "stages")
LAYERS = 32
SEGMENTS = (6, 16, 26)


def levels(*values: float) -> np.ndarray:
    """A value per stage, laid over the layers."""
    edges = (0, *SEGMENTS, LAYERS)
    return np.repeat(values, np.diff(edges)).astype(float)


def model_with_stages(noise: float = 0.1, documents: int = 40, replicates: int = 50, seed: int = 0) -> ResampledLayers:
    """What the hypothesis says of a model of 32 layers, with noise over layers and less over replicates."""
    generator = np.random.default_rng(seed)

    def scattered(row: np.ndarray) -> np.ndarray:
        own = row * np.exp(noise * generator.standard_normal(row.shape))
        values = own * np.exp(noise / 10 * generator.standard_normal((1 + replicates, len(row))))
        values[0] = own
        return values

    progress = scattered(levels(0.02, 0.02, 0.6, 0.5))
    moves = scattered(levels(0.05, 0.05, 0.1, 0.9))
    start = np.zeros((1 + replicates, 1))
    lens_kl = progress.sum(1, keepdims=True) - np.hstack([start, np.cumsum(progress, 1)])
    first = levels(3.0, 0.1, 0.1, 1.0)
    first[0] = 300.0
    values = {
        "drop.kl": scattered(first),
        "drop.agreement": np.minimum(scattered(levels(0.4, 0.9, 0.85, 0.5)), 1),
        "swap.kl": scattered(levels(2.0, 0.05, 0.06, 0.8)[:-1]),
        "drop_attn.kl": scattered(levels(0.5, 0.2, 0.05, 0.05)),
        "drop_mlp.kl": scattered(levels(0.6, 0.08, 0.2, 0.5)),
        "attention.local": scattered(levels(0.6, 0.25, 0.2, 0.2)),
        "norms.norm_ratio": scattered(levels(1.5, 1.6, 0.6, 0.4)),
        "norms.mlp_norm": scattered(levels(4.0, 5.0, 8.0, 25.0)),
        "lens.kl": lens_kl,
        "lens.entropy": 30 - np.hstack([start, np.cumsum(moves, 1)]),
        "lens.loss": lens_kl + 3.0,
        "neurons.prediction": scattered(levels(0.001, 0.001, 0.06, 0.02))[:1],
        "neurons.suppression": scattered(levels(0.001, 0.001, 0.01, 0.09))[:1],
    }
    return ResampledLayers(LAYERS, documents, token_entropy=6.0, values=values)


@pytest.fixture(scope="module")
def found() -> Stages:
    return find_stages(model_with_stages())


def test_planted_stages_are_found_and_named(found):
    assert found.structure.beyond_smooth
    assert [(b.before, b.after) for b in found.boundaries] == list(TRANSITIONS), [t.reason for t in found.transitions]
    for boundary, transition, place in zip(found.boundaries, found.transitions, SEGMENTS, strict=True):
        assert abs(boundary.layer - place) <= 1
        assert boundary.low <= boundary.layer <= boundary.high
        assert boundary.low <= place <= boundary.high
        assert transition.absent < 0.5
        assert sum(transition.places) == pytest.approx(1 - transition.absent)
        assert max(transition.p_readings, transition.p_hypotheses) <= 0.05
    assert [stage.name for stage in found.stages] == list(STAGES)
    assert (found.stages[0].first, found.stages[-1].last) == (0, LAYERS - 1)
    assert "3 of the hypothesis's three transitions are found" in found.summary
    assert found.unnamed_changes == []
    assert [edge.exceptional for edge in found.edges if (edge.end, edge.signal) == ("first", "drop")] == [True]
    assert {shape.smooth for shape in found.shapes} == {True, False}


def test_the_same_changes_the_other_way_are_not_the_same_transitions():
    """Turned round, a cost that rises at the end falls there: steps, but none of the hypothesis's."""
    measured = model_with_stages()
    lens = {name: values for name, values in measured.values.items() if name.startswith("lens")}
    turned = {name: values[:, ::-1] for name, values in measured.values.items() if not name.startswith("lens")}
    found = find_stages(replace(measured, values=turned | lens))
    planted = dict(zip(SEGMENTS, TRANSITIONS, strict=True))
    assert all(planted.get(one.layer) != (one.before, one.after) for one in found.boundaries)


def test_a_transition_that_is_not_there_leaves_its_stages_together():
    measured = model_with_stages()
    for name, values in measured.values.items():
        if not name.startswith("lens"):
            values[:, 16:26] = values[:, 6:16]
    found = find_stages(measured)
    absent = found.transitions[1]
    assert not absent.named
    assert absent.reason
    assert absent.absent > 0.5
    assert any("feature_engineering+prediction_ensembling" in stage.name for stage in found.stages)
    assert found.transitions[2].named
    assert "Feature engineering to prediction ensembling" in found.summary


def test_a_name_needs_the_defining_signature():
    measured = model_with_stages()
    measured.values["neurons.suppression"] = measured.values["neurons.prediction"] * 1.001
    found = find_stages(measured)
    assert not found.transitions[2].named
    assert found.transitions[2].absent == 1
    assert found.transitions[0].named, "the others do not depend on it"


@pytest.mark.parametrize("seed", range(5))
def test_noise_and_drift_have_no_stages(seed):
    generator = np.random.default_rng(seed)
    measured = model_with_stages()
    slope = np.linspace(0, 1, LAYERS + 1)
    for name, values in measured.values.items():
        if name != "lens.loss":
            drift = 1 + generator.choice([-0.8, 0.8]) * slope[: values.shape[1]]
            noise = values.mean() * drift * np.exp(0.2 * generator.standard_normal(values.shape[1]))
            measured.values[name] = np.broadcast_to(noise, values.shape).copy()
    assert not find_stages(measured).found


def test_too_few_layers_are_said_to_be_too_few():
    measured = model_with_stages()
    places = [0, 1, *range(4, LAYERS - 3, 3), LAYERS - 2, LAYERS - 1]
    shallow = {
        name: values[:, [*places, LAYERS] if values.shape[1] > LAYERS else places[: values.shape[1]]]
        for name, values in measured.values.items()
        if name != "swap.kl"
    }
    found = find_stages(replace(measured, depth=len(places), values=shallow))
    assert not found.found
    assert f"{len(places)} layers are too few to tell stages from smooth change" in found.summary
    assert {f"{len(places)} layers are too few" in one.reason for one in found.transitions} == {True}


def test_what_cannot_be_told_is_said():
    measured = model_with_stages()
    untrained = replace(measured, token_entropy=2.9)
    found = find_stages(untrained)
    assert not found.found
    assert found.structure is None
    assert "no better than token frequencies do (loss 3.00 nats, frequencies 2.90)" in found.summary
    few = find_stages(replace(measured, documents=3))
    assert all(boundary.low is None for boundary in few.boundaries)
    sampled = [one for one in few.signatures if one.name in EFFECTS and "neurons" not in EFFECTS[one.name][0][0]]
    assert {one.verdict for one in sampled} == {CANNOT_TELL}
    assert "3 documents are too few" in sampled[0].reason
    lens_only = {name: values for name, values in measured.values.items() if name.startswith("lens")}
    assert (
        "only 2 signals were measured that are not flat (progress, entropy_move)"
        in find_stages(replace(measured, values=lens_only)).summary
    )
    missing = {one.name: one for one in verdicts(replace(measured, values=lens_only))}
    assert missing["robust_middle"].verdict == CANNOT_TELL
    assert missing["robust_middle"].reason == "not measured: drop.agreement"


def test_the_same_measurements_give_the_same_answer(found):
    assert find_stages(model_with_stages()) == found


def test_signals_are_what_their_sentences_say():
    measured = model_with_stages()
    found, values = signals(measured), {name: rows[0] for name, rows in measured.values.items()}
    assert list(found) == list(SIGNALS)
    assert found["swap"].shape[1] == LAYERS - 1
    for layer in range(LAYERS - 1):
        read = max(layer, 1)
        expected = {
            "drop": np.log10(max(values["drop.kl"][layer], 0.01)),
            "swap": np.log10(max(values["swap.kl"][layer], 0.01)),
            "drop_attention": np.log10(max(values["drop_attn.kl"][layer], 0.01)),
            "drop_mlp": np.log10(max(values["drop_mlp.kl"][layer], 0.01)),
            "local_attention": values["attention.local"][layer],
            "norm_ratio": np.log2(values["norms.norm_ratio"][layer]),
            "progress": values["lens.kl"][read] - values["lens.kl"][read + 1],
            "prediction": np.sqrt(values["neurons.prediction"][layer]),
            "suppression": values["neurons.suppression"][layer] - values["neurons.prediction"][layer],
            "mlp_norm": np.log2(values["norms.mlp_norm"][layer]),
            "entropy_move": abs(values["lens.entropy"][read + 1] - values["lens.entropy"][read]),
        }
        for name, value in expected.items():
            assert found[name][0, layer] == pytest.approx(value), name


def test_every_transition_has_signals_of_both_halves_to_find_and_to_confirm():
    interior = Interior(24, list(SIGNALS))
    assert all(interior.testable(place) for place in range(len(TRANSITIONS)))


def test_an_untrained_model_has_no_stages(shelf, tmp_path):
    torch.manual_seed(0)
    fresh = AutoModelForCausalLM.from_config(shelf.hf.config).eval()
    model = load(fresh, tokenizer=shelf.tokenizer)
    study = ds.study(model, ds.corpus(tokens=384), out=tmp_path, window=24, experiments=EXPERIMENTS, progress=False)
    assert study.stages.found is False
    assert study.stages.stages == []
    assert "there is no inference to divide" in study.stages.summary


def test_trained_models_show_the_first_stage_and_say_what_they_do_not(shelf, tmp_path):
    study = ds.study(shelf, ds.corpus(tokens=640), out=tmp_path, window=64, experiments=EXPERIMENTS, progress=False)
    found = study.stages
    assert found.stages == []
    assert "12 layers are too few to tell stages" in found.summary
    assert {(edge.end, edge.signal) for edge in found.edges if edge.exceptional} == {
        ("first", "drop"),
        ("first", "swap"),
    }
    verdict = {one.name: one.verdict for one in found.signatures}
    assert verdict["first_layer_sensitivity"] == SUPPORTED
    assert verdict["mlp_norm_peaks_last"] == SUPPORTED
    assert verdict["local_attention_early"] == NOT_SUPPORTED
    assert verdict["prediction_neurons_emerge"] == NOT_SUPPORTED
    assert json.loads((tmp_path / "stages.json").read_text())["summary"] == found.summary


def test_stages_are_objects_that_hold_what_the_file_does(found):
    content = json.loads(json.dumps(found.to_json()))
    assert Stages.from_json(content) == found
    plain = {"format": Stages.format} | asdict(found)
    for one in plain["signatures"]:  # omitted where false, so that earlier files are written back unchanged
        if not one["defining"]:
            del one["defining"]
    assert plain == content
    said = repr(found).splitlines()
    assert said[0] == content["summary"]
    assert said[1].startswith("  layers 0–")
    assert any(line.startswith("  before layer ") and "detokenization → feature_engineering" in line for line in said)
    assert said[-1].startswith("  signatures: ")
    assert str(found.signatures[0]).startswith("The first layer is catastrophic to lose: supported (")
    del content["method"], content["boundaries"][0]["support"]
    content["later"] = 1
    content["method"] = {}
    assert Stages.from_json(content).boundaries[0].support is None, "runs of other versions are read too"


def test_a_signal_that_is_flat_but_for_one_catastrophic_layer_is_flat():
    measured = model_with_stages()
    measured.values["drop.kl"] = np.full_like(measured.values["drop.kl"], 0.1)
    measured.values["drop.kl"][:, 12] = 5.0
    found = find_stages(measured)
    assert [signal.name for signal in found.signals if signal.flat] == ["drop"]
    assert all(np.isfinite(shape.error) for shape in found.shapes)

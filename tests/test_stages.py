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
from depthscope.schema.signatures import SIGNATURES
from depthscope.schema.stages import NOT_SUPPORTED, SIGNALS, STAGES, SUPPORTED, TRANSITIONS
from depthscope.stages.find import find_stages
from depthscope.stages.signals import ResampledLayers, signals

LAYERS = 16
SEGMENTS = (2, 8, 14)


def levels(*values: float) -> np.ndarray:
    """A value per stage, laid over the layers."""
    edges = (0, *SEGMENTS, LAYERS)
    return np.repeat(values, np.diff(edges)).astype(float)


def model_with_stages(noise: float = 0.02, documents: int = 40, replicates: int = 50) -> ResampledLayers:
    """What the hypothesis says of a model of 16 layers, with some noise over layers and less over replicates."""
    progress = levels(0.05, 0.05, 0.6, 0.5)
    entropy = np.concatenate([[8.0], 8.0 - np.cumsum(levels(0.02, 0.02, 0.1, 0.9))])
    lens_kl = np.concatenate([[0.0], -np.cumsum(progress)])
    true = {
        "drop.kl": levels(3.0, 0.1, 0.1, 1.0),
        "drop.agreement": levels(0.1, 0.9, 0.85, 0.5),
        "swap.kl": levels(2.0, 0.05, 0.06, 0.8)[:-1],
        "drop_attn.kl": levels(0.5, 0.1, 0.05, 0.1),
        "drop_mlp.kl": levels(0.6, 0.08, 0.2, 0.5),
        "attention.local": levels(0.6, 0.25, 0.2, 0.2),
        "norms.norm_ratio": levels(1.5, 1.6, 0.6, 0.4),
        "norms.mlp_norm": levels(4.0, 5.0, 8.0, 25.0),
        "lens.kl": lens_kl - lens_kl[-1],
        "lens.entropy": entropy,
        "lens.loss": lens_kl - lens_kl[-1] + 3.0,
    }
    generator = np.random.default_rng(0)
    values = {}
    for name, row in true.items():
        own = row * (1 + noise * generator.standard_normal(row.shape))
        values[name] = own * (1 + noise / 10 * generator.standard_normal((1 + replicates, len(row))))
        values[name][0] = own
    values["neurons.prediction"] = levels(0, 0, 0.06, 0.02)[None]
    values["neurons.suppression"] = levels(0, 0, 0.01, 0.09)[None]
    return ResampledLayers(LAYERS, documents, token_entropy=6.0, values=values)


def test_planted_stages_are_found_and_named():
    found = find_stages(model_with_stages())
    assert [boundary.layer for boundary in found.boundaries] == list(SEGMENTS)
    assert [(b.before, b.after) for b in found.boundaries] == list(TRANSITIONS)
    assert [stage.name for stage in found.stages] == list(STAGES)
    assert [(s.first, s.last) for s in found.stages] == [(0, 1), (2, 7), (8, 13), (14, 15)]
    assert {one.verdict for one in found.signatures if SIGNATURES[one.name].measured} == {SUPPORTED}
    for boundary in found.boundaries:
        assert boundary.low <= boundary.layer <= boundary.high
        assert boundary.support > 0.5
        assert all(vote == boundary.layer for vote in boundary.votes.values())
    assert found.found
    assert "3 of the hypothesis's three transitions are found" in found.summary


def test_the_same_changes_the_other_way_are_not_the_same_transitions():
    """Turned round, a cost that rises at the end is one that falls there: no change keeps its name."""
    measured = model_with_stages()
    turned = {
        name: (2 * values.mean() - values if name.startswith(("attention", "neurons")) else 1 / (values + 0.01))
        for name, values in measured.values.items()
        if not name.startswith("lens")
    }
    lens = {name: values for name, values in measured.values.items() if name == "lens.loss"}
    found = find_stages(replace(measured, values=turned | lens))
    planted = dict(zip(SEGMENTS, TRANSITIONS, strict=True))
    assert all(planted.get(one.layer) != (one.before, one.after) for one in found.boundaries)
    assert len(found.unnamed_changes) > 0


def test_a_transition_that_is_not_there_leaves_its_stages_together():
    measured = model_with_stages()
    same = levels(0, 1, 1, 2)
    for values in measured.values.values():
        if values.shape[1] == LAYERS:
            values[:, 8:14] = values[:, 2:8]
    measured.values["lens.kl"] = np.linspace(5, 0, LAYERS + 1)[None].repeat(51, 0)
    found = find_stages(measured)
    assert [stage.name for stage in found.stages] == [
        "detokenization",
        "feature_engineering+prediction_ensembling",
        "residual_calibration",
    ]
    assert [(s.first, s.last) for s in found.stages] == [
        (int(np.argmax(same == level)), LAYERS - 1 - int(np.argmax(same[::-1] == level))) for level in (0, 1, 2)
    ]
    assert "Not found: Feature engineering to prediction ensembling" in found.summary


@pytest.mark.parametrize("seed", range(5))
def test_noise_has_no_stages(seed):
    generator = np.random.default_rng(seed)
    measured = model_with_stages()
    for name, values in measured.values.items():
        if name != "lens.loss":
            noise = np.abs(values.mean() * (1 + 0.3 * generator.standard_normal(values.shape[1])))
            measured.values[name] = np.broadcast_to(noise, values.shape).copy()
    assert not find_stages(measured).found


def test_what_cannot_be_told_is_said():
    measured = model_with_stages()
    untrained = replace(measured, token_entropy=2.9)
    found = find_stages(untrained)
    assert not found.found
    assert "no better than token frequencies do (loss 2.95 nats, frequencies 2.90)" in found.summary
    few = find_stages(replace(measured, documents=3))
    assert all(boundary.low is None for boundary in few.boundaries)
    assert few.found
    lens_only = {name: values for name, values in measured.values.items() if name.startswith("lens")}
    assert (
        "only 2 signals were measured (progress, entropy_move)"
        in find_stages(replace(measured, values=lens_only)).summary
    )


def test_signals_are_what_their_sentences_say():
    measured = model_with_stages()
    found, values = signals(measured), {name: rows[0] for name, rows in measured.values.items()}
    assert set(found) == set(SIGNALS)
    for layer in range(LAYERS):
        expected = {
            "drop": np.log10(max(values["drop.kl"][layer], 0.01)),
            "swap": np.log10(max(values["swap.kl"][min(layer, LAYERS - 2)], 0.01)),
            "local_attention": values["attention.local"][layer],
            "norm_ratio": np.log2(values["norms.norm_ratio"][layer]),
            "importance": np.log10(values["drop_mlp.kl"][layer] / values["drop_attn.kl"][layer]),
            "progress": values["lens.kl"][layer] - values["lens.kl"][layer + 1],
            "prediction": values["neurons.prediction"][layer],
            "suppression": values["neurons.suppression"][layer] - values["neurons.prediction"][layer],
            "mlp_norm": np.log2(values["norms.mlp_norm"][layer]),
            "entropy_move": abs(values["lens.entropy"][layer + 1] - values["lens.entropy"][layer]),
        }
        for name, value in expected.items():
            assert found[name][0, layer] == pytest.approx(value), name


EXPERIMENTS = ("sweep", "lens", "norms", "attention", "neurons", "stages")


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
    assert (found.stages[0].name, found.stages[0].first, found.stages[0].last) == ("detokenization", 0, 0)
    verdict = {one.name: one.verdict for one in found.signatures}
    assert verdict["first_layer_sensitivity"] == SUPPORTED
    assert verdict["mlp_norm_peaks_last"] == SUPPORTED
    assert verdict["local_attention_early"] == NOT_SUPPORTED
    assert verdict["prediction_neurons_emerge"] == NOT_SUPPORTED
    assert json.loads((tmp_path / "stages.json").read_text())["summary"] == found.summary


def test_stages_are_objects_that_hold_what_the_file_does():
    found = find_stages(model_with_stages())
    content = json.loads(json.dumps(found.to_json()))
    assert Stages.from_json(content) == found
    assert {"format": 1} | asdict(found) == content
    said = repr(found).splitlines()
    assert said[0] == content["summary"]
    assert said[1] == "  layers 0–1: Detokenization (3 of 3 signatures supported)"
    assert "  before layer 2: detokenization → feature_engineering (95% interval 2 to 2)" in said
    assert said[-1].startswith("  signatures: ")
    assert str(found.signatures[0]).startswith("The first layer is catastrophic to lose: supported (")
    del content["method"], content["boundaries"][0]["support"]
    content["later"] = 1
    content["method"] = {}
    assert Stages.from_json(content).boundaries[0].support is None, "runs of other versions are read too"

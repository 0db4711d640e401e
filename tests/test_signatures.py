"""Signatures: every cell of table 1, effects that stay on their scale and equal their words, verdicts that follow intervals."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from depthscope.schema import depth_probes, patching, signatures
from depthscope.schema.found_stages import SignatureVerdict
from depthscope.schema.signatures import SIGNATURES, TABLE_1, THRESHOLDS
from depthscope.schema.stages import CANNOT_TELL, NOT_SUPPORTED, STAGES, SUPPORTED
from depthscope.stages.effects import EFFECTS
from depthscope.stages.readable import lens_to_read, monotone_enough
from depthscope.stages.signals import ResampledLayers
from depthscope.stages.signatures import verdicts

LAYERS = 16
CELLS = {
    "detokenization": {"first_layer_sensitivity", "first_swap_sensitivity"},
    "feature_engineering": {
        "little_early_progress",
        "probing_accuracy_rises",
        "patching_importance_rises",
        "attention_heavy",
    },
    "prediction_ensembling": {"mlp_importance_rises", "prediction_neurons_emerge", "progress_sets_in"},
    "residual_calibration": {"suppression_outnumbers"},
}
"""The observable signatures of table 1, stage by stage."""


def levels(*values: float) -> np.ndarray:
    """A value per stage, in layers 0 to 1, 2 to 7, 8 to 13 and 14 to 15."""
    return np.repeat(values, (2, 6, 6, 2)).astype(float)


def hypothesised(documents: int = 40, replicates: int = 60) -> ResampledLayers:
    """A model of 16 layers that has every signature, with some noise over layers and less over replicates."""
    lens_kl = np.concatenate([[0.0], -np.cumsum(levels(0.05, 0.05, 0.6, 0.5))])
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
        "lens.entropy": np.concatenate([[8.0], 8.0 - np.cumsum(levels(0.02, 0.02, 0.1, 0.9))]),
    }
    generator = np.random.default_rng(0)
    values = {}
    for name, row in true.items():
        own = row * (1 + 0.02 * generator.standard_normal(row.shape))
        values[name] = own * (1 + 0.002 * generator.standard_normal((1 + replicates, len(row))))
        values[name][0] = own
    values["neurons.prediction"] = levels(0, 0, 0.06, 0.02)[None]
    values["neurons.suppression"] = levels(0, 0, 0.01, 0.09)[None]
    return ResampledLayers(LAYERS, documents, token_entropy=6.0, values=values)


def verdict_of(name: str, measured: ResampledLayers):
    return next(one for one in verdicts(measured) if one.name == name)


def test_every_cell_of_table_1_is_a_signature_and_each_stage_has_one_that_defines_it():
    for stage, names in CELLS.items():
        assert {one.name for one in SIGNATURES.values() if one.stage == stage and one.source == TABLE_1} == names
    defining = [one for one in SIGNATURES.values() if one.defining]
    assert [one.stage for one in defining] == list(STAGES)
    assert all(not one.shown_by and one.name in CELLS[one.stage] for one in defining)
    assert set(EFFECTS) == {name for name, one in SIGNATURES.items() if not one.shown_by}


def test_every_signature_has_a_threshold_on_its_scale_with_a_reason_and_a_date():
    assert set(THRESHOLDS) == set(SIGNATURES)
    for name, one in SIGNATURES.items():
        assert one.lowest < one.threshold < one.highest, name
        assert len(THRESHOLDS[name].reason) > 20
        assert one.unit in {"times", "share", "points", "nats"}
        assert one.definition.startswith(one.effect)
    assert {one.threshold_date for one in verdicts(hypothesised())} == {signatures.THRESHOLDS_DATE.isoformat()}
    assert signatures.THRESHOLDS_DATE.isoformat() >= "2026-11-27"


@st.composite
def layer_values(draw, share: bool, columns: int) -> np.ndarray:
    """Any non-negative measurements by layer, with zeros, ties, jumps of many orders of magnitude."""
    largest = 1.0 if share else 1e6
    numbers = st.one_of(st.just(0.0), st.floats(0, largest), st.floats(0, min(largest, 1e-3)))
    return draw(arrays(np.float64, (3, columns), elements=numbers))


@given(st.data(), st.integers(4, 13), st.sampled_from(sorted(EFFECTS)))
def test_an_effect_cannot_leave_its_scale(data, depth, name):
    needs, effect = EFFECTS[name]
    columns = {"lens": depth + 1, "swap": depth - 1}
    rows = []
    for need in needs:
        source, _, metric = need.partition(".")
        share = source in ("attention", "neurons") or metric == "agreement"
        rows.append(data.draw(layer_values(share, columns.get(source, depth))))
    with np.errstate(all="ignore"):
        effects = effect(*rows)
    assert effects.shape == (3,)
    known = effects[~np.isnan(effects)]  # 0 / 0 norms: the verdict is inconclusive
    rounding = 1e-9
    assert np.all(known >= SIGNATURES[name].lowest - rounding)
    assert np.all(known <= SIGNATURES[name].highest + rounding)


def test_effects_are_what_their_words_say():
    """Each effect again, from the row of the documents as they are, in plain steps."""
    measured = hypothesised()
    v = {name: rows[0] for name, rows in measured.values.items()}
    middle = slice(1, LAYERS - 1)
    progress = [max(v["lens.kl"][depth:]) for depth in range(1, LAYERS + 1)]
    whole = progress[0] - progress[-1]
    ratio = v["norms.norm_ratio"]
    moves = [abs(v["lens.entropy"][depth + 1] - v["lens.entropy"][depth]) for depth in range(1, LAYERS)]
    importance = np.log(v["drop_mlp.kl"] / v["drop_attn.kl"])
    expected = {
        "first_layer_sensitivity": v["drop.kl"][0] / np.median(v["drop.kl"][middle]),
        "first_swap_sensitivity": v["swap.kl"][0] / np.median(v["swap.kl"][1 : LAYERS - 2]),
        "local_attention_early": v["attention.local"][:4].mean() - v["attention.local"][4:].mean(),
        "little_early_progress": (progress[7] - progress[15]) / whole,
        "attention_heavy": np.mean([r / (1 + r) for r in ratio[1:8]]),
        "robust_middle": v["drop.agreement"][middle].mean(),
        "mlp_importance_rises": np.exp(importance[8:].mean()) / np.exp(importance[1:8].mean()),
        "prediction_neurons_emerge": v["neurons.prediction"][8:].mean() - v["neurons.prediction"][:8].mean(),
        "progress_sets_in": after_the_knee(progress),
        "mlp_over_attention": ratio[1:8].mean() / ratio[8:].mean(),
        "prediction_neurons_subside": v["neurons.prediction"][8:15].max() - v["neurons.prediction"][15],
        "suppression_outnumbers": v["neurons.suppression"][15] - v["neurons.prediction"][15],
        "last_layer_sensitivity": v["drop.kl"][15] / np.median(v["drop.kl"][middle]),
        "last_swap_sensitivity": v["swap.kl"][14] / np.median(v["swap.kl"][1 : LAYERS - 2]),
        "mlp_norm_peaks_last": v["norms.mlp_norm"][14:].mean() / np.median(v["norms.mlp_norm"][1:14]),
        "entropy_moves_last": moves[-1] - np.median(moves[:-1]),
    }
    found = {one.name: one for one in verdicts(measured)}
    assert set(expected) == set(EFFECTS)
    for name, effect in expected.items():
        assert found[name].effect == pytest.approx(effect, rel=1e-9), name
    assert {found[name].verdict for name in EFFECTS} == {SUPPORTED}


def after_the_knee(progress: list[float]) -> float:
    """The two rates at the depth where progress is farthest behind an even pace."""
    steps, whole = len(progress) - 1, progress[0] - progress[-1]
    lags = [place / steps - (progress[0] - progress[place]) / whole for place in range(1, steps)]
    knee = 1 + lags.index(max(lags))
    before, after = (progress[0] - progress[knee]) / knee, (progress[knee] - progress[-1]) / (steps - knee)
    return after / (before + after)


@pytest.mark.parametrize(
    ("curve", "late", "knee"),
    [
        (lambda t: 1 - t, 0.5, 0.5),
        (lambda t: 1 - t**2, 0.75, 0.75),
        (lambda t: np.minimum(1, 2 - 2 * t), 1.0, 1.0),
        (lambda t: np.maximum(0, 1 - 2 * t), 0.0, 0.5),
    ],
)
def test_shares_of_progress_on_curves_whose_shares_are_known(curve, late, knee):
    """An even pace, the square of depth, all in the second half, all in the first (whose knee is not behind an even pace)."""
    kl = 10 * curve(np.linspace(0, 1, 201))
    rows = np.concatenate([[99.0], kl])[None]
    assert EFFECTS["little_early_progress"][1](rows)[0] == pytest.approx(late, abs=0.02)
    if late >= 0.5:
        assert EFFECTS["progress_sets_in"][1](rows)[0] == pytest.approx(knee, abs=0.02)
    else:
        assert EFFECTS["progress_sets_in"][1](rows)[0] <= knee


def test_a_lens_is_read_only_where_its_kl_falls():
    falls, rises = np.array([5.0, 4, 3, 2, 1, 0]), np.array([50.0, 4, 6, 7, 3, 0])
    assert monotone_enough(falls)
    assert monotone_enough(np.array([0.0, *falls])), "x_0 is left out"
    assert not monotone_enough(rises)
    assert monotone_enough(np.array([9, 10.0, 11, 1, 0])), "a rise of 1 in 11"
    assert not monotone_enough(np.array([9, 10.0, 11.5, 1, 0]))
    assert lens_to_read({"lens.kl": falls[None]}) == "lens"
    assert lens_to_read({"lens.kl": rises[None], "tuned.kl": falls[None]}) == "tuned"
    assert lens_to_read({"lens.kl": rises[None], "tuned.kl": rises[None]}) is None
    assert lens_to_read({"lens.kl": rises[None]}) is None

    measured = hypothesised()
    read_by = verdict_of("little_early_progress", measured)
    bent = measured.values["lens.kl"] + 9 * np.sin(np.linspace(0, np.pi, LAYERS + 1))
    unreadable = replace(measured, values=measured.values | {"lens.kl": bent})
    for name in ("little_early_progress", "progress_sets_in", "entropy_moves_last"):
        refused = verdict_of(name, unreadable)
        assert (refused.verdict, refused.effect) == (CANNOT_TELL, None)
        assert refused.reason == "the KL of the lens does not fall with depth, so it cannot be read (no fitted lens)"
    tuned = {"tuned.kl": measured.values["lens.kl"], "tuned.entropy": measured.values["lens.entropy"]}
    instead = verdict_of("little_early_progress", replace(measured, values=unreadable.values | tuned))
    assert instead.reason.endswith("read by the tuned lens")
    assert instead.effect == read_by.effect


def test_verdicts_follow_the_interval():
    measured = hypothesised()
    threshold = SIGNATURES["robust_middle"].threshold
    for centre, spread, verdict in (
        (threshold + 0.1, 0.01, SUPPORTED),
        (threshold - 0.1, 0.01, NOT_SUPPORTED),
        (threshold + 0.001, 0.05, CANNOT_TELL),
    ):
        rows = centre + spread * np.random.default_rng(0).standard_normal((61, 1)) * np.ones((1, LAYERS))
        rows[0] = centre
        measured.values["drop.agreement"] = rows
        assert verdict_of("robust_middle", measured).verdict == verdict


def test_what_was_not_measured_is_inconclusive_and_says_why():
    measured = hypothesised()
    nothing = verdicts(replace(measured, values={}))
    assert {one.verdict for one in nothing} == {CANNOT_TELL}
    assert all(one.effect is None and one.reason.startswith(("not measured", "not tested")) for one in nothing)
    for name, experiment in (
        ("probing_accuracy_rises", depth_probes.EXPERIMENT),
        ("patching_importance_rises", patching.EXPERIMENT),
    ):
        assert f"the experiment {experiment.name} shows it" in verdict_of(name, measured).reason
    shallow = verdicts(replace(measured, depth=3))
    assert {one.verdict for one in shallow} == {CANNOT_TELL}
    assert "3 layers leave no middle" in shallow[0].reason
    few = [one for one in verdicts(replace(measured, documents=3)) if one.effect is not None]
    sampled = [one for one in few if "neurons" not in EFFECTS[one.name][0][0]]
    assert {one.verdict for one in sampled} == {CANNOT_TELL}
    assert "3 documents are too few" in sampled[0].reason


def test_each_stage_s_defining_verdict_follows_what_was_measured():
    def defining(of: ResampledLayers) -> dict[str, bool]:
        return {one.stage: one.verdict == SUPPORTED for one in verdicts(of) if one.defining}

    measured = hypothesised()
    assert defining(measured) == dict.fromkeys(STAGES, True)
    fewer = replace(measured, values=measured.values | {"neurons.suppression": np.zeros((1, LAYERS))})
    assert defining(fewer) == dict.fromkeys(STAGES, True) | {"residual_calibration": False}
    assert defining(replace(measured, values={})) == dict.fromkeys(STAGES, False)
    found = verdicts(measured)
    assert all(math.isfinite(one.threshold) for one in found)


def test_verdicts_of_files_from_before_defining_signatures_are_read():
    found = verdict_of("suppression_outnumbers", hypothesised())
    assert found.defining
    stored = found.to_json()
    assert SignatureVerdict.from_json(stored) == found
    del stored["defining"], stored["threshold_date"]
    earlier = SignatureVerdict.from_json(stored)
    assert (earlier.defining, earlier.threshold_date) == (False, None)
    assert earlier.effect == found.effect

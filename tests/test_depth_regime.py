"""Depth regime: tables against the definitions in float64, exact cases, the verdict, parts, bad input, the page."""

import copy
from dataclasses import replace

import naive
import numpy as np
import polars as pl
import pytest
import torch
from families import DEPTH, tiny_model
from rebuilt import logits_of, with_order
from test_readings import IDS, TARGETS, TEXT, check, tables
from test_sweep import run, save
from test_weights import spread_norms

import depthscope as ds
from depthscope.cli.console import console
from depthscope.engine.baseline import Baseline
from depthscope.errors import RouteError, UnsupportedError
from depthscope.experiments.depth_regime import DepthRegime, angle, participation, path_geometry
from depthscope.experiments.depth_regime_tables import above_line, sides_of, verdict_of
from depthscope.models.load import load
from depthscope.schema import depth_regime as schema
from depthscope.schema.linearity import ALL, NOT_FIRST

FAMILIES = [
    ("gpt2", {"n_layer": 7}),
    *((name, {}) for name in ("gpt_neox", "llama", "gemma2", "bloom", "mamba")),
]
POSITIONS = {ALL: slice(0, None), NOT_FIRST: slice(1, None)}


def degrees(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The published code's: the arc cosine of the cosine."""
    return torch.nn.functional.cosine_similarity(a, b, dim=-1).clamp(-1, 1).acos().rad2deg()


def naive_curves(exact, depth: int) -> dict[str, list[torch.Tensor]]:
    """Every curve as values [windows, positions] of each layer, in float64."""
    x = naive.residuals(exact, IDS)
    own = range(depth)
    writes = [x[layer + 1] - x[layer] for layer in own]
    whole = x[depth] - x[0]
    losses = [logits_of(with_order(exact, [*range(layer), depth - 1]), IDS) for layer in own]
    return {
        "step_angle": [degrees(x[layer], x[layer + 1]) for layer in own],
        "write_angle": [degrees(writes[layer], writes[layer + 1]) for layer in range(depth - 1)],
        "end_angle": [degrees(x[layer], x[depth]) for layer in own],
        "progress": [((x[layer] - x[0]) * whole).sum(-1) / whole.square().sum(-1) for layer in own],
        "straight_loss": [naive.measures(one, one, TARGETS)["loss"] for one in losses],
    }


def naive_above(curve: list[torch.Tensor]) -> torch.Tensor:
    """The mean over depths 2 … L − 2 of the height above the line from depth 1 to L − 1, in a loop."""
    last, total = len(curve) - 1, torch.zeros_like(curve[0])
    for depth in range(2, last):
        total = total + curve[depth] - curve[1] - (curve[last] - curve[1]) * (depth - 1) / (last - 1)
    return total / (last - 2)


@pytest.mark.parametrize(("family", "changes"), FAMILIES)
def test_the_tables_are_the_naive_definition(family, changes):
    model = spread_norms(tiny_model(family, **changes))
    depth = model.depth
    curves = naive_curves(copy.deepcopy(model.hf).double(), depth)
    found = tables(DepthRegime(model), model)
    assert {name: dict(table.schema) for name, table in found.items()} == {
        "depth_regime": schema.DEPTH_REGIME_TABLE,
        "depth_regime_readings": schema.DEPTH_REGIME_READINGS_TABLE,
        "depth_regime_verdict": schema.DEPTH_REGIME_VERDICT_TABLE,
    }
    steps = torch.stack(curves["step_angle"][1:-1])
    share = steps.sum(0) ** 2 / (len(steps) * (steps**2).sum(0))
    losses = curves["straight_loss"]
    readings = {
        "participation": share,
        "even_updates": (share > 0.5).double(),
        "middle_write_angle": sum(curves["write_angle"][1 : depth - 2]) / (depth - 3),
        "loss_below_line": -naive_above(losses),
        "loss_fall": losses[1] - losses[-1],
        "progress_above_line": naive_above(curves["progress"]),
    }
    for positions, part in POSITIONS.items():
        for metric, by_layer in curves.items():
            for layer, values in enumerate(by_layer):
                keys = {"layer": layer, "positions": positions}
                check(found["depth_regime"], keys, metric, values.numpy()[:, part], atol=1e-3)
        for metric, values in readings.items():
            check(found["depth_regime_readings"], {"positions": positions}, metric, values.numpy()[:, part], atol=1e-3)
    assert found["depth_regime"].filter(metric="write_angle")["layer"].max() == depth - 2
    assert found["depth_regime"].filter(layer=0, metric="progress", positions=ALL)["mean"].item() == 0
    own = naive.measures(logits_of(model.hf, IDS), logits_of(model.hf, IDS), TARGETS)["loss"].mean().item()
    last = found["depth_regime"].filter(layer=depth - 1, metric="straight_loss", positions=ALL)["mean"].item()
    assert last == pytest.approx(own, rel=1e-5)


def test_angles_of_known_paths_and_of_vectors_that_hardly_differ():
    axes = torch.eye(6)
    orthogonal = [axes[:layer].sum(0).reshape(1, 1, 6) for layer in range(7)]
    steps, writes, ends, progress = path_geometry(orthogonal)[..., 0, 0]
    np.testing.assert_allclose(steps[0], 90)  # with a zero vector
    np.testing.assert_allclose(steps[1:], np.rad2deg(np.arccos(np.sqrt(np.arange(1, 6) / np.arange(2, 7)))), rtol=1e-6)
    np.testing.assert_allclose(writes, [90] * 5 + [np.nan], rtol=1e-6)
    np.testing.assert_allclose(progress, np.arange(6) / 6, rtol=1e-6)
    assert ends[1] == pytest.approx(np.rad2deg(np.arccos(1 / np.sqrt(6))))
    straight = [axes[0].reshape(1, 1, 6) + layer * axes[1].reshape(1, 1, 6) for layer in range(7)]
    np.testing.assert_allclose(path_geometry(straight)[1, :-1], 0, atol=1e-6)
    still = path_geometry([axes[:1].reshape(1, 1, 6)] * 5)
    assert np.isfinite(still[[0, 2, 3]]).all()
    # In float32 the cosine of these is 1.
    near = torch.tensor([1.0, 1e-5])
    assert angle(near, torch.tensor([1.0, 0.0])).item() == pytest.approx(np.rad2deg(1e-5), rel=1e-3)
    assert angle(3e20 * near, -near).item() == pytest.approx(180)


def test_participation_and_the_line():
    one = np.zeros((5, 1, 1))
    assert participation(one).item() == 0
    one[2] = 7.0
    assert participation(one).item() == pytest.approx(1 / 5)
    assert participation(np.full((5, 1, 1), 3.0)).item() == 1
    # An ensemble's 1 / l falls early, a last step late.
    ensemble, late = 1 / np.arange(1.0, 9.0)[:, None], np.array([[4.0] * 7 + [1.0]]).T
    assert above_line(ensemble) < 0 < above_line(late)
    np.testing.assert_allclose(above_line(np.linspace(4, 1, 8)[:, None]), 0, atol=1e-12)


EARLY = {
    "even_updates": (0.9, 0.95),
    "middle_write_angle": (80, 85),
    "loss_below_line": (0.1, 0.2),
    "loss_fall": (1, 2),
}


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({}, "ensemble"),
        ({"middle_write_angle": (20, 30)}, "procedural"),
        ({"middle_write_angle": (20, 50)}, "not resolved"),
        ({"middle_write_angle": (140, 150)}, "not resolved"),
        ({"even_updates": (0.1, 0.2), "loss_below_line": (-0.2, -0.1)}, "composition"),
        ({"even_updates": (0.1, 0.2)}, "not resolved"),
        ({"even_updates": (0.4, 0.6)}, "not resolved"),
        ({"loss_below_line": (-0.1, 0.2)}, "not resolved"),
        ({"loss_fall": (-0.1, 0.2)}, "not resolved"),
        ({"even_updates": (None, None)}, "not resolved"),
    ],
)
def test_a_regime_needs_every_interval_on_its_side(changes, verdict):
    sides = sides_of({**EARLY, **changes})
    deciding = [sides.get(name) for name in ("even_updates", "middle_write_angle", "loss_below_line")]
    found, reason = verdict_of(deciding, 10)
    assert found == verdict
    assert (reason is None) == (verdict != "not resolved")
    if verdict != "procedural":  # it needs no loss
        sides = sides_of({**EARLY, **changes}, readable=False)
        found, reason = verdict_of([*deciding[:2], sides.get("loss_below_line")], 10, readable=False)
        assert found == "not resolved"
        assert reason is not None
        if "even_updates" not in changes and "middle_write_angle" not in changes:
            assert "some streams predict worse than a uniform guess" in reason
    assert verdict_of(deciding, 3) == ("not resolved", "the model has 3 middle layers: expected at least 4")


def test_untrained_models_have_no_regime_that_needs_a_falling_loss():
    for seed in range(3):
        torch.manual_seed(seed)
        model = load(tiny_model("gpt2", n_layer=8))
        verdicts = tables(DepthRegime(model), model)["depth_regime_verdict"]
        assert not set(verdicts["verdict"]) & {"ensemble", "composition"}


def test_a_last_block_that_cannot_read_early_streams_decides_nothing():
    model = load(tiny_model("gpt2", n_layer=8))
    with torch.no_grad():
        model.hf.lm_head.weight.mul_(200)  # logits so large that every wrong guess costs more than log(vocabulary)
    found = tables(DepthRegime(model), model)
    assert found["depth_regime"].filter(metric="straight_loss")["mean"].min() > np.log(
        model.unembedding.weight.shape[0]
    )
    assert set(found["depth_regime_readings"].filter(metric="loss_below_line")["side"]) == {None}
    assert set(found["depth_regime_verdict"]["verdict"]) == {"not resolved"}


def test_parts_are_the_whole_and_the_model_is_left_as_it_was(tiny_of):
    model = tiny_of("llama")
    before = copy.deepcopy(model.hf.state_dict())
    one, other = (tables(DepthRegime(model), model, cuts=cuts) for cuts in ((), (1, 2, 5)))
    for name in ("depth_regime", "depth_regime_readings"):
        for column in ("mean", "ci_low", "ci_high"):
            a, b = (found[name][column].to_numpy() for found in (one, other))
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    assert one["depth_regime_verdict"].equals(other["depth_regime_verdict"])
    reading = DepthRegime(model)
    with torch.inference_mode():
        parts = [reading.read(Baseline(model, *part.batch()), part) for part in (TEXT.part(0, 1), TEXT.part(1, 6))]
        whole = reading.read(Baseline(model, *TEXT.batch()), TEXT)
    joined = reading.joined(parts)
    assert joined["tokens"].to_list() == whole["tokens"].to_list()
    np.testing.assert_allclose(joined["straight_loss"], whole["straight_loss"], rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[key]) for key, value in model.hf.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules())


def test_too_few_blocks_too_few_documents_and_a_block_that_cannot_be_skipped(tiny_of, monkeypatch):
    with pytest.raises(UnsupportedError, match="has 3 blocks: expected at least 4, so that two follow each other"):
        DepthRegime(load(tiny_model("gpt2", n_layer=3)))
    model = tiny_of("gpt2")
    single = replace(TEXT.part(0, 2))
    found = tables(DepthRegime(model), model, text=single, cuts=())
    assert found["depth_regime"]["ci_low"].null_count() == len(found["depth_regime"])
    assert set(found["depth_regime_readings"]["side"]) == {None}
    assert set(found["depth_regime_verdict"]["verdict"]) == {"not resolved"}
    check_route = model.check_route

    def refuse(route):
        if len(route.visits) == 2:
            raise RouteError("block 3 reads what block 2 stores")
        check_route(route)

    monkeypatch.setattr(model, "check_route", refuse)
    reading = DepthRegime(model)
    assert reading.not_done == {"depth_regime(1)": "block 3 reads what block 2 stores"}
    found = tables(reading, model)
    losses = found["depth_regime"].filter(metric="straight_loss", positions=ALL)
    assert losses["layer"].to_list() == [layer for layer in range(DEPTH) if layer != 1]
    readings = found["depth_regime_readings"].filter(positions=ALL)
    assert readings.filter(metric="loss_fall")["mean"].item() is None
    assert readings.filter(pl.col("metric") == "middle_write_angle")["side"].item() is not None


def test_the_command_and_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(console, "width", 160)
    folder = save("gpt2", tmp_path / "model")
    terminal = run("depth-regime", folder, "--tokens", 160, "--window", 20, "--out", tmp_path / "run")
    assert "not resolved" in terminal
    study = ds.Study(tmp_path / "run")
    assert study.table("depth_regime_verdict")["verdict"].to_list() == ["not resolved"] * 2
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "The depth regime is not resolved" in page
    assert "the model has 2 middle layers: expected at least 4" in page

"""The Jacobian lens: its Jacobians against torch's own, the fit and its interruption, its file, what a study makes of it."""

from dataclasses import replace
from functools import partial

import numpy as np
import polars as pl
import pytest
import torch
from families import DEPTH, VOCABULARY, WIDTH, tiny_model

import depthscope as ds
from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline
from depthscope.engine.stream_jacobians import stream_jacobians
from depthscope.errors import DepthscopeError, UnsupportedError
from depthscope.experiments import fit_jacobian
from depthscope.experiments.fit_jacobian import JacobianRecipe, fit_jacobian_lens
from depthscope.experiments.jacobian_lens import JacobianLens
from depthscope.experiments.lens import LensReading
from depthscope.experiments.lens_text import LensText
from depthscope.experiments.lenses import LogitLens
from depthscope.experiments.read_lenses import PLACES
from depthscope.experiments.tuned_lens import CONFIG, PARAMS, TunedLens
from depthscope.models.load import load
from depthscope.models.state import copied
from depthscope.routes import Step
from depthscope.schema.lens import BIT, lens_names
from depthscope.stages.readable import lens_to_read
from depthscope.stages.signals import SOURCES, ResampledLayers

LENGTH = 16
IDS = torch.tensor([[5, 9, 3, 40, 7]])
PLACE = PLACES["jacobian"]


def windows(documents: int, first: int = 0, each: int = 2) -> Windows:
    ids = np.random.default_rng(first).integers(1, VOCABULARY, (documents * each, LENGTH + 1)).astype(np.int32)
    document = np.repeat(np.arange(first, first + documents), each)
    return Windows(ids, document, np.tile(np.arange(each) * LENGTH, documents), "none")


TEXT = LensText("made up", 0, windows(4), windows(1, first=4))


def naive(model, ids: torch.Tensor, depth: int, skip: int) -> torch.Tensor:
    """From the whole Jacobian [positions, d_model, positions, d_model] of blocks `depth` … L−1, by torch."""
    with torch.no_grad():
        entry = model.stack.enter(ids)
    state, stream = copied(entry.state), entry.residual
    for block in range(depth):
        state = copied(state)
        with torch.no_grad():
            stream = model.visit(Step(block), stream, entry.arguments, state)

    def rest(here: torch.Tensor) -> torch.Tensor:
        own = copied(state)
        for block in range(depth, model.depth):
            here = model.visit(Step(block), here, entry.arguments, own)
        return here[0]

    whole = torch.autograd.functional.jacobian(rest, stream)[:, :, 0]
    length, total = ids.shape[1], torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    for source in range(skip, length):
        for target in range(source, length):
            total += whole[target, :, source].double()
    return total / (length - skip)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "gemma2", "bloom", "falcon", "mamba"])
def test_the_jacobians_are_torchs_summed_over_later_positions(family):
    model = load(tiny_model(family, dtype=torch.float64))
    flags = [parameter.requires_grad for parameter in model.hf.parameters()]
    with torch.inference_mode():  # as readings are, which must not matter
        found = stream_jacobians(model, IDS, skip=1, at_once=7 * IDS.shape[1])
    for depth in (0, 2, DEPTH - 1):
        expected = naive(model, IDS, depth, 1)
        # Some families compute parts of a block in float32 whatever the dtype.
        assert (found[depth] - expected).abs().max() < 3e-6 * expected.abs().max()
    assert [parameter.requires_grad for parameter in model.hf.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.hf.parameters())


def test_however_many_rows_are_computed_at_once(tiny_of):
    model = tiny_of("gpt2")
    one, all_at_once = (stream_jacobians(model, IDS, at_once=tokens) for tokens in (1, 10**6))
    torch.testing.assert_close(one, all_at_once, rtol=1e-4, atol=1e-5)


def test_the_lens_of_two_texts_is_the_mean_of_theirs(tiny_of, tmp_path):
    model, recipe = tiny_of("llama"), JacobianRecipe(skip=2)
    parts = [TEXT.training.part(0, 2), TEXT.training.part(2, 8)]
    lenses = [
        fit_jacobian_lens(model, replace(TEXT, training=part), tmp_path / str(index), recipe=recipe)
        for index, part in enumerate([*parts, TEXT.training])
    ]
    joined = (2 * lenses[0].jacobian + 6 * lenses[1].jacobian) / 8
    torch.testing.assert_close(lenses[2].jacobian, joined, rtol=1e-5, atol=1e-6)
    assert [lens.config["training"]["windows"] for lens in lenses] == [2, 6, 8]


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "mamba"])
def test_after_the_last_block_it_is_the_model_itself_and_with_unit_matrices_the_logit_lens(family):
    model = load(tiny_model(family))
    unit = JacobianLens(model, torch.eye(WIDTH).expand(DEPTH, -1, -1))
    logit = LogitLens(model)
    with model.measuring():
        residuals = Baseline(model, IDS, IDS).residuals
        for depth, residual in enumerate(residuals):
            found, plain = (lens.decode(residual, depth, residuals[-1]) for lens in (unit, logit))
            torch.testing.assert_close(found, plain)
        doubled = JacobianLens(model, 2 * unit.jacobian)
        ends = [lens.decode(residuals[-1], DEPTH, residuals[-1]) for lens in (doubled, logit)]
        assert torch.equal(*ends)


def kill(at: int, what: str, done: int, units: int) -> None:
    if done == at:
        raise KeyboardInterrupt


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_interrupted_fit_gives_the_same_bytes(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_jacobian, "STORE_EVERY", 0.0)
    monkeypatch.setattr(fit_jacobian, "STORE_SHARE", 1e9)
    model = load(tiny_model("llama", dtype=dtype))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    lens = fit_jacobian_lens(model, TEXT, whole)
    for at in (1, 4):
        with pytest.raises(KeyboardInterrupt):
            fit_jacobian_lens(model, TEXT, killed, tell=partial(kill, at))
        assert not (killed / CONFIG).exists()
    fit_jacobian_lens(model, TEXT, killed)
    assert {file.name for file in killed.iterdir()} == {PARAMS, CONFIG}
    assert all((whole / name).read_bytes() == (killed / name).read_bytes() for name in (PARAMS, CONFIG))
    assert torch.equal(JacobianLens.load(whole, model).jacobian, lens.jacobian)
    assert lens.config["training"]["ended"] == "all windows of the text"
    with pytest.raises(
        DepthscopeError, match=r"a Jacobian lens made with other settings:\n  text.data: 'made up' stored"
    ):
        fit_jacobian_lens(model, replace(TEXT, source="other"), whole)


def test_it_ends_when_it_no_longer_changes(tiny_of, tmp_path):
    model = tiny_of("gpt2")
    recipe = JacobianRecipe(fewest=3, smoothing=2, change=1e9)
    lens = fit_jacobian_lens(model, TEXT, tmp_path / "loose", recipe=recipe)
    assert lens.config["training"]["windows"] == 3
    assert lens.config["training"]["ended"] == "the change is small enough"
    assert len(lens.config["training"]["change"]) == 2
    lens = fit_jacobian_lens(model, TEXT, tmp_path / "most", recipe=replace(recipe, fewest=2, most=2, change=0.0))
    assert lens.config["training"]["ended"] == "the most windows"


def test_a_lens_of_another_model_kind_or_dtype_is_refused(tiny_of, tmp_path):
    model = tiny_of("gpt2")
    fit_jacobian_lens(model, TEXT, tmp_path, recipe=JacobianRecipe(most=1))
    with pytest.raises(DepthscopeError, match=r"the Jacobian lens in .* is for another model, .*: its weights is"):
        JacobianLens.load(tmp_path, load(tiny_model("gpt2", seed=1)))
    with pytest.raises(DepthscopeError, match="its dtype is float32"):
        JacobianLens.load(tmp_path, load(tiny_model("gpt2", dtype=torch.bfloat16)))
    with pytest.raises(DepthscopeError, match=r"its depth is 4, that of .* 2"):
        JacobianLens.load(tmp_path, load(tiny_model("gpt2", n_layer=2)))
    with pytest.raises(DepthscopeError, match="holds a lens of the kind 'jacobian': expected a tuned lens"):
        TunedLens.load(tmp_path, model)
    with pytest.raises(DepthscopeError, match="the Jacobian lens is fitted to a model: expected the directory"):
        ds.lens(model, [1, 2, 3], lens="jacobian")
    with pytest.raises(DepthscopeError, match="'logit' is no lens that is fitted: expected tuned or jacobian"):
        ds.tune_lens(model, ["a"], out=tmp_path, lens="logit")
    with pytest.raises(DepthscopeError, match="most_windows is for a Jacobian lens"):
        ds.tune_lens(model, ["a"], out=tmp_path, lens="tuned", most_windows=3)
    with pytest.raises(DepthscopeError, match="most_windows is 0: expected a whole number from 1 on"):
        ds.tune_lens(model, ["a"], out=tmp_path, lens="jacobian", most_windows=0)


def test_a_model_that_torch_cannot_differentiate_is_one_clear_line(tiny_of, monkeypatch):
    model = tiny_of("gpt2")
    monkeypatch.setattr(model.stack, "residency", object())
    with pytest.raises(UnsupportedError, match="is streamed, and the Jacobian lens needs all of its weights in memory"):
        stream_jacobians(model, IDS)
    monkeypatch.setattr(model.stack, "residency", None)
    real = model.visit
    monkeypatch.setattr(model, "visit", lambda *given: real(*given).detach())
    with pytest.raises(
        UnsupportedError, match=r"torch cannot differentiate its blocks \(.*\), which the Jacobian lens needs"
    ):
        stream_jacobians(model, IDS)


def test_it_takes_its_turn_after_the_tuned_lens():
    assert lens_names("jacobian,logit,tuned") == ("logit", "tuned", "jacobian")
    assert lens_names("jacobian") == ("logit", "jacobian")
    rising, falling = np.array([[9.0, 2, 5, 1, 0]]), np.array([[9.0, 4, 3, 1, 0]])
    assert lens_to_read({"lens.kl": rising, "jacobian.kl": falling}) == "jacobian"
    assert lens_to_read({"lens.kl": rising, "tuned.kl": falling, "jacobian.kl": falling}) == "tuned"


def test_the_gain_is_paired(tiny_of):
    """Against the mean over tokens of the differences, and their spread over documents."""
    model, text = tiny_of("gpt2"), windows(5)
    generator = torch.Generator().manual_seed(0)
    lens = JacobianLens(model, torch.eye(WIDTH) + 0.1 * torch.randn(DEPTH, WIDTH, WIDTH, generator=generator))
    reading = LensReading(model, jacobian=lens)
    with model.measuring():
        shards = [
            reading.read(Baseline(model, *text.part(a, b).batch()), text.part(a, b)) for a, b in ((0, 4), (4, 10))
        ]
    table = reading.tables(shards)["jacobian_lens"]
    gain = table.filter(pl.col("metric") == "kl_gain").sort("layer")
    shard = pl.concat(shards)
    difference = (shard["kl"] - shard["jacobian_kl"]).to_numpy().reshape(5, DEPTH + 1) / (2 * LENGTH * BIT)
    np.testing.assert_allclose(gain["mean"].to_numpy(), difference.mean(0), rtol=1e-6, atol=1e-9)
    assert gain["mean"][DEPTH] == 0
    width = (gain["ci_high"] - gain["ci_low"]).to_numpy()
    spread = difference.std(0, ddof=1)
    np.testing.assert_allclose(width[:-1] / width[0], spread[:-1] / spread[0], rtol=0.02)


def test_a_study_fits_it_and_measures_it_next_to_the_other_lenses(gpt2, tmp_path, monkeypatch):
    from test_tuned_lens import documents

    monkeypatch.setattr("depthscope.experiments.fit_jacobian.JacobianRecipe", lambda: JacobianRecipe(most=2))
    text = ds.corpus(documents(24), tokens=4 * 16)
    asked = {"window": 16, "experiments": ["lens", "effective_depth"], "progress": False}
    study = ds.study(gpt2, text, out=tmp_path / "run", lens="jacobian", **asked)
    assert {"lens", "jacobian_lens"} <= set(study.run.tables())
    assert study.run.settings.of("lens")["lens"] == "logit,jacobian"
    assert study.run.settings.of("lens")["jacobian_lens"]["first_document"] == 4
    assert {"logit", "jacobian"} <= set(study.table("effective_depth_curves")["lens"].to_list())
    again = ds.study(gpt2, text, out=tmp_path / "run", lens="jacobian", **asked)
    assert again.table("jacobian_lens").equals(study.table("jacobian_lens"))
    measured = ResampledLayers(gpt2.depth, 4, 8.0)
    SOURCES["lens"](measured, study.run.shards("lens", 1))
    kl = study.table("jacobian_lens").filter(pl.col("metric") == "kl").sort("layer")["mean"].to_numpy()
    np.testing.assert_allclose(measured.values["jacobian.kl"][0], kl, rtol=1e-6, atol=1e-9)
    assert "Jacobian lens" in {trace.name for trace in study.figure("lens").data}
    prompt = ds.lens(gpt2, "It was the", top=1, lens="jacobian", jacobian_lens=study.path / PLACE)
    plain = ds.lens(gpt2, "It was the", top=1)
    last = pl.col("layer") == gpt2.depth
    assert prompt.filter(last).equals(plain.filter(last))
    assert not prompt["kl"].equals(plain["kl"])

"""The tuned lens: its gradient, its start, training and its interruption, its file, and what a study makes of it."""

import json
from dataclasses import replace
from functools import partial
from itertools import islice

import numpy as np
import polars as pl
import pytest
import torch
from families import DEPTH, VOCABULARY, WIDTH, tiny_model

import depthscope as ds
from depthscope.data.corpus import Corpus
from depthscope.data.windows import Windows, make_windows
from depthscope.engine.baseline import Baseline
from depthscope.engine.lens_gradient import kl_gradient, log_probabilities
from depthscope.errors import DataError, DepthscopeError
from depthscope.experiments import lens_state
from depthscope.experiments.lens import LensReading
from depthscope.experiments.lens_sums import LensSums
from depthscope.experiments.lens_text import LensText, lens_text
from depthscope.experiments.lenses import LogitLens
from depthscope.experiments.read_lenses import WHERE
from depthscope.experiments.tune_lens import Recipe, tune_lens
from depthscope.experiments.tuned_lens import CONFIG, PARAMS, TunedLens
from depthscope.models.load import load
from depthscope.stages.readable import lens_to_read, monotone_enough
from depthscope.stages.signals import SOURCES, ResampledLayers

LENGTH = 16
SHORT = Recipe(steps=6, evaluate_every=2)


def windows(documents: int, first: int = 0, each: int = 2) -> Windows:
    ids = np.random.default_rng(first).integers(1, VOCABULARY, (documents * each, LENGTH + 1)).astype(np.int32)
    document = np.repeat(np.arange(first, first + documents), each)
    return Windows(ids, document, np.tile(np.arange(each) * LENGTH, documents), "none")


TEXT = LensText("made up", 0, windows(12), windows(2, first=12))
IDS, TARGETS = windows(3, first=20).batch()


def batch(model, text: Windows | None = None) -> Baseline:
    with torch.inference_mode():
        return Baseline(model, *(text.batch() if text else (IDS, TARGETS)))


def test_the_gradient_is_autograds(family_in_float64):
    """Over the whole computation, norm, unembedding, logit map and softmax, in float64."""
    model = family_in_float64
    head, residuals = model.unembedding, [x.flatten(0, 1).clone() for x in batch(model).residuals]
    log_p = log_probabilities(head, head.hidden(residuals[-1][None])).detach()
    for stream in residuals[:-1]:
        kl, gradient = kl_gradient(head, log_p, stream)
        leaf = stream.clone().requires_grad_()
        log_q = head.logits(head.hidden(leaf[None])).log_softmax(-1)
        expected = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
        torch.testing.assert_close(kl, expected.detach())
        torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), leaf)[0])


@pytest.fixture(params=["gpt2", "llama", "gemma2", "granite", "cohere", "opt"])
def family_in_float64(request):
    return load(tiny_model(request.param, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "opt"])
def test_the_identity_is_the_logit_lens_bit_for_bit(family, dtype):
    model = load(tiny_model(family, dtype=dtype))
    tuned, logit, baseline = TunedLens.identity(model), LogitLens(model), batch(model)
    for depth, residual in enumerate(baseline.residuals):
        with torch.inference_mode():
            ours, plain = (lens.decode(residual, depth, baseline.residuals[-1]) for lens in (tuned, logit))
        assert torch.equal(ours, plain)


def test_the_start_is_weighted_least_squares(tiny_of):
    """Against numpy's, from all streams at once: sums over pieces, shifts and standardisation change nothing."""
    model = tiny_of("gpt2")
    sums, streams = LensSums.empty(model), [[] for _ in range(DEPTH + 1)]
    for start in (0, 7, 24):
        part = TEXT.training.part(start, {0: 7, 7: 24, 24: 24}[start])
        if len(part):
            residuals = [x.flatten(0, 1) for x in batch(model, part).residuals]
            sums.add(residuals)
            for kept, x in zip(streams, residuals, strict=True):
                kept.append(x.double().numpy())
    coordinates, matrix, bias = sums.solved(torch.float64)
    a, b = coordinates.plain(matrix, bias)
    x, last = np.concatenate(streams[1]), np.concatenate(streams[-1])
    weight = np.sqrt(WIDTH / (last**2).sum(-1, keepdims=True))
    mean, spread = (np.average(f, 0, weight[:, 0] ** 2) for f in (x, last))
    spread = np.sqrt(np.average((x - mean) ** 2, 0, weight[:, 0] ** 2))
    design = np.concatenate([(x - mean) / spread, np.ones((len(x), 1))], 1)
    total = (weight**2).sum()
    ridge = np.diag([WIDTH / len(x)] * WIDTH + [0.0]) * total
    wide = design * weight
    solved = np.linalg.solve(wide.T @ wide + ridge, wide.T @ ((last - x) * weight))
    expected = (x - mean) / spread @ solved[:-1] + solved[-1]
    np.testing.assert_allclose(x @ a[1].numpy().T + b[1].numpy(), expected, rtol=1e-3, atol=1e-3)


def kill(at: tuple[str, int], what: str, done: int, units: int) -> None:
    if (what, done) == at:
        raise KeyboardInterrupt


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_interrupted_training_gives_the_same_bytes(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(lens_state, "STORE_EVERY", 0.0)
    monkeypatch.setattr("depthscope.experiments.tune_lens.UNIT", 4 * LENGTH)
    model = load(tiny_model("llama", dtype=dtype))
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    tune_lens(model, TEXT, whole, recipe=SHORT)

    for at in (("tuned lens, sums", 1), ("tuned lens, steps", 1), ("tuned lens, steps", 3), ("tuned lens, steps", 4)):
        with pytest.raises(KeyboardInterrupt):
            tune_lens(model, TEXT, killed, recipe=SHORT, tell=partial(kill, at))
        assert not (killed / CONFIG).exists()
    tune_lens(model, TEXT, killed, recipe=SHORT)
    assert {f.name for f in killed.iterdir()} == {PARAMS, CONFIG}
    assert all((whole / name).read_bytes() == (killed / name).read_bytes() for name in (PARAMS, CONFIG))


def test_streamed_sums_are_those_of_one_piece(tiny_of):
    model, found = tiny_of("gpt2"), []
    for unit in (LENGTH, 10**6):
        sums = LensSums.empty(model)
        each = max(1, unit // LENGTH)
        for start in range(0, len(TEXT.training), each):
            part = TEXT.training.part(start, start + each)
            sums.add([x.flatten(0, 1) for x in batch(model, part).residuals])
        coordinates, matrix, bias = sums.solved(torch.float64)
        found.append(coordinates.plain(matrix, bias))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    """A lens of an embedded model on little text, and the text it is measured on."""
    model, out = load("bookshelf-gpt2"), tmp_path_factory.mktemp("lens")
    corpus = ds.corpus([text[:600] for text in islice(Corpus().documents(), 22)], tokens=6 * 32)
    measured = make_windows(corpus, model, length=32)
    text = lens_text(corpus, model, length=32, bos="auto", measured=measured)
    return model, tune_lens(model, text, out, recipe=Recipe(steps=2, evaluate_every=1)), measured, out


def test_training_lowers_kl_on_held_out_and_on_measured_documents(embedded):
    model, tuned, measured, _ = embedded
    curve = tuned.config["training"]["curve"]
    logit, start, *trained = (np.array(row["held_out_kl"]) for row in curve)
    assert [row["maps"] for row in curve] == ["logit", "least_squares", "trained", "trained"]
    assert trained[-1].mean() < start.mean() < logit.mean()
    assert (np.array(tuned.config["training"]["held_out_kl"]) <= logit).all()
    kl = {}
    for name, lens in (("logit", None), ("tuned", tuned)):
        reading = LensReading(model, tuned=lens)
        with model.measuring():
            tables = reading.tables([reading.read(Baseline(model, *measured.batch()), measured)])
        table = tables["tuned_lens" if lens else "lens"]
        kl[name] = table.filter(pl.col("metric") == "kl").sort("layer")["mean"].to_numpy()
    assert (kl["tuned"][:-1] < 1.05 * kl["logit"][:-1]).all()
    assert kl["tuned"][-1] == kl["logit"][-1] == 0


def test_a_stored_lens_is_the_same_lens(embedded):
    model, tuned, _, out = embedded
    again = TunedLens.load(out, model)
    assert torch.equal(again.matrix, tuned.matrix)
    assert torch.equal(again.bias, tuned.bias)
    assert again.sha256 == tuned.sha256 == json.loads((out / CONFIG).read_text())["params_sha256"]


def test_a_lens_of_another_model_or_a_damaged_one_is_refused(embedded, tmp_path):
    model, tuned, _, out = embedded
    with pytest.raises(DepthscopeError, match=r"is for another model, bookshelf-gpt2: its depth is 12, that of .* 4"):
        TunedLens.load(out, load(tiny_model("gpt2")))
    with pytest.raises(DepthscopeError, match="its dtype is float32, that of bookshelf-gpt2 bfloat16"):
        TunedLens.load(out, load("bookshelf-gpt2", dtype="bfloat16"))
    with pytest.raises(DepthscopeError, match=r"holds no trained lens: expected a directory with params.safetensors"):
        TunedLens.load(tmp_path, model)
    tuned.save(tmp_path)
    content = bytearray((tmp_path / PARAMS).read_bytes())
    content[-1] ^= 1
    (tmp_path / PARAMS).write_bytes(content)
    with pytest.raises(DepthscopeError, match=r"is not the file that config.json describes"):
        TunedLens.load(tmp_path, model)
    (tmp_path / PARAMS).write_bytes(content[:100])
    with pytest.raises(DepthscopeError, match=r"is not the file that config.json describes"):
        TunedLens.load(tmp_path, model)
    with pytest.raises(
        DepthscopeError, match=r"made with other settings:\n  text.data: '22 documents in memory' stored"
    ):
        tune_lens(model, replace(TEXT, source="other"), out)


def documents(count: int) -> list[str]:
    return [f"{number}: {text[:300]}" for number, text in zip(range(count), Corpus().documents(), strict=False)]


def test_documents_that_train_that_are_held_out_and_that_are_measured_are_disjoint(gpt2):
    corpus = ds.corpus(documents(40), tokens=3 * 16)
    measured = make_windows(corpus, gpt2, length=16)
    text = lens_text(corpus, gpt2, length=16, bos="auto", measured=measured)
    parts = [set(part.document.tolist()) for part in (measured, text.training, text.held_out)]
    assert [len(part) for part in parts] == [3, 33, 4]
    assert len(set.union(*parts)) == 40
    assert parts[2] == {3 + 7, 3 + 15, 3 + 23, 3 + 31}
    assert text.first_document == 3


def test_too_little_text_and_measured_text_are_refused(gpt2, tmp_path):
    corpus = ds.corpus(documents(20), tokens=8 * 16)
    measured = make_windows(corpus, gpt2, length=16)
    after = "after document 7, the last that is measured, 20 documents in memory has 12 documents"
    with pytest.raises(DataError, match=f"too little text to train a tuned lens: {after}"):
        lens_text(corpus, gpt2, length=16, bos="auto", measured=measured)
    everything = make_windows(replace(corpus, tokens=10**6), gpt2, length=16)
    with pytest.raises(DataError, match=r"after document 19, .* has 0 documents .* name other text with --lens-data"):
        lens_text(corpus, gpt2, length=16, bos="auto", measured=everything)
    (tmp_path / "same.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in documents(20)))
    with pytest.raises(DataError, match=r"8 of the \d+ windows of .*same.jsonl for the tuned lens are also measured"):
        lens_text(corpus, gpt2, length=16, bos="auto", measured=measured, lens_data=str(tmp_path / "same.jsonl"))


def test_a_study_trains_the_lens_and_measures_it_next_to_the_logit_lens(gpt2, tmp_path, monkeypatch):
    monkeypatch.setattr("depthscope.experiments.tune_lens.Recipe", lambda: replace(SHORT, steps=2))
    text = ds.corpus(documents(24), tokens=4 * 16)
    asked = {"window": 16, "experiments": ["lens"], "progress": False}
    plain = ds.study(gpt2, text, out=tmp_path / "plain", **asked)
    both = ds.study(gpt2, text, out=tmp_path / "both", lens="logit,tuned", **asked)
    assert plain.run.tables() == ["lens"]
    assert both.run.tables() == ["lens", "tuned_lens"]
    assert plain.table("lens").equals(both.table("lens"))
    assert plain.run.settings.of("lens") == {"protocol": "text"}
    assert both.run.settings.of("lens")["tuned_lens"]["first_document"] == 4
    given = ds.study(gpt2, text, out=tmp_path / "given", lens="tuned", tuned_lens=str(both.path / WHERE), **asked)
    assert given.table("tuned_lens").equals(both.table("tuned_lens"))
    assert (given.path / WHERE / PARAMS).read_bytes() == (both.path / WHERE / PARAMS).read_bytes()
    measured = ResampledLayers(gpt2.depth, 4, 8.0)
    SOURCES["lens"](measured, both.run.shards("lens", 1))
    for table, name in (("lens", "lens"), ("tuned_lens", "tuned")):
        for metric in ("kl", "entropy", "loss"):
            means = both.table(table).filter(pl.col("metric") == metric).sort("layer")["mean"].to_numpy()
            np.testing.assert_allclose(measured.values[f"{name}.{metric}"][0], means, rtol=1e-6, atol=1e-9)
    section = both.figure("lens")
    assert {"Logit lens", "Tuned lens"} <= {trace.name for trace in section.data}
    prompt = ds.lens(gpt2, "It was the", top=1, lens="tuned", tuned_lens=both.path / WHERE)
    assert not prompt["kl"].equals(ds.lens(gpt2, "It was the", top=1)["kl"])
    with pytest.raises(DepthscopeError, match="the tuned lens is trained for a model: expected the directory"):
        ds.lens(gpt2, "It was the", lens="tuned")
    with pytest.raises(DepthscopeError, match="expected one of logit, frozen_scale, tuned, jacobian, or one"):
        ds.study(gpt2, text, out=tmp_path / "no", lens="logit,frozen_scale", **asked)


@pytest.mark.parametrize(
    ("falls", "readable"),
    [
        ([99, 5, 4, 3, 0], True),
        ([0, 5, 4, 3, 0], True),  # x_0 is left out
        ([9, 5, 5.5, 3, 0], True),  # rises by 0.5, falls by 5.5
        ([9, 5, 5.6, 3, 0], False),  # by 0.6 and 5.6
        ([109, 12, 14, 18, 0], False),
        ([9, 3, 3, 3, 3], False),
        ([9, 3, float("nan"), 1, 0], False),
    ],
)
def test_the_rule_for_a_readable_lens(falls, readable):
    assert monotone_enough(np.array(falls, dtype=np.float64)) is readable


def test_the_tuned_lens_is_read_where_the_raw_one_rises():
    rising, falling = np.array([[9.0, 2, 5, 1, 0]] * 3), np.array([[9.0, 4, 3, 1, 0]] * 3)
    assert lens_to_read({"lens.kl": falling, "tuned.kl": falling}) == "lens"
    assert lens_to_read({"lens.kl": rising, "tuned.kl": falling}) == "tuned"
    assert lens_to_read({"lens.kl": rising, "tuned.kl": rising}) is None
    assert lens_to_read({"lens.kl": rising}) is None
    assert lens_to_read({}) is None
    rows = np.concatenate([falling[:1], rising])
    assert lens_to_read({"lens.kl": rows}) == "lens", "the original documents decide"

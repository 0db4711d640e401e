"""Effective depth against its definition, in loops; the lens that it shares; what happens where a depth does not exist."""

import copy
from dataclasses import replace

import naive
import numpy as np
import polars as pl
import pytest
import torch
from families import DEPTH, tiny_model
from rebuilt import logits_of
from test_readings import IDS, TEXT, check, cosine, own_head, tables
from test_weights import spread_norms

from depthscope.engine.baseline import Baseline
from depthscope.engine.top_tokens import TopTokens
from depthscope.errors import NumericError
from depthscope.experiments import read_lenses
from depthscope.experiments.effective_depth import EffectiveDepth
from depthscope.experiments.lens import LensReading
from depthscope.experiments.read_lenses import ReadLenses, own_top_tokens
from depthscope.experiments.tuned_lens import TunedLens
from depthscope.models.load import load
from depthscope.report.sections.effective_depth import reading_rows
from depthscope.schema.effective_depth import EFFECTIVE_DEPTH_CURVES_TABLE, EFFECTIVE_DEPTH_TABLE, READINGS
from depthscope.statistics.crossings import NONE, crossing, first_above, first_below, last_turn
from depthscope.studies.read_windows import read_windows


def effective_depth(model, **more) -> EffectiveDepth:
    return EffectiveDepth(model, ReadLenses(model, **more))


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma2", "falcon", "opt"])
def test_curves_are_those_of_the_definition(family):
    model = spread_norms(tiny_model(family))
    exact = copy.deepcopy(model.hf).double()
    found = tables(effective_depth(model), model)
    curves = found["effective_depth_curves"]
    assert dict(curves.schema) == EFFECTIVE_DEPTH_CURVES_TABLE
    assert dict(found["effective_depth"].schema) == EFFECTIVE_DEPTH_TABLE
    streams, own = naive.residuals(exact, IDS), logits_of(exact, IDS)
    for layer in range(DEPTH):
        attention, mlp = naive.contributions(exact, IDS, layer)
        stream, parallel = streams[layer], model.require_components().parallel
        expected = {
            "write_cosine": cosine(streams[layer + 1] - stream, stream),
            "attention_cosine": cosine(attention, stream),
            "mlp_cosine": cosine(mlp, stream if parallel else stream + attention),
        }
        expected["component_cosine"] = sum(expected.values()) / 3
        for metric, values in expected.items():
            check(curves, {"layer": layer}, metric, values, atol=1e-3)
    kl = []
    for depth, stream in enumerate(streams):
        logits = own_head(exact, stream)
        top = [
            len({*p.topk(5).indices.tolist()} & {*q.topk(5).indices.tolist()}) / 5
            for p, q in zip(own.flatten(0, 1), logits.flatten(0, 1), strict=True)
        ]
        check(curves, {"layer": depth}, "top5_overlap", np.array(top).reshape(IDS.shape), atol=5e-3)
        values = naive.measures(own, logits, IDS)["kl"].numpy()
        check(curves, {"layer": depth}, "kl", values)
        kl.append(values.mean())
    shares = curves.filter(metric="kl_share")["mean"].to_numpy()
    np.testing.assert_allclose(shares, np.array(kl) / max(kl[:-1]), rtol=1e-3, atol=1e-4)
    last = curves.filter(layer=DEPTH)
    assert last.filter(metric="top5_overlap").select("mean", "ci_low", "ci_high").row(0) == (1, 1, 1)
    assert last.filter(metric="kl")["mean"].item() == 0
    assert curves.filter(pl.col("metric").str.ends_with("cosine"))["layer"].max() == DEPTH - 1


def naive_depth(reading: str, threshold: float, curve: list[float]) -> int:
    """As in the published code, with x_{L−1} searched too."""
    found = NONE
    for depth in range(len(curve)):
        if reading.startswith(("kl", "overlap")):
            if curve[depth] < threshold * max(curve) if reading.startswith("kl") else curve[depth] > threshold:
                return depth
        elif depth + 1 < len(curve) and curve[depth] < 0 <= curve[depth + 1]:
            found = depth
    return found


def test_crossings_are_those_of_loops():
    curves = np.random.default_rng(0).normal(0.2, 0.4, (300, 6))
    for name, found in (("write", last_turn(curves)), ("overlap", first_above(curves, 0.9))):
        assert found.tolist() == [naive_depth(name, 0.9, curve) for curve in curves.tolist()]
    positive = np.abs(curves) + 0.2
    assert first_below(positive, 0.3).tolist() == [naive_depth("kl", 0.3, curve) for curve in positive.tolist()]
    assert {NONE} < set(first_below(positive, 0.3))
    assert last_turn(np.ones((2, 1))).tolist() == [NONE, NONE]
    drawn = np.array([True] * 9 + [False])
    found = crossing(np.array([3, 2, 3, 3, 3, 3, 3, 4, NONE, 5]), drawn, 9)
    assert (found.depth, found.low, found.high, found.exists) == (3, 2, 4, 7 / 8)
    none = crossing(np.array([NONE, 2, NONE]), np.ones(3, dtype=bool), 9)
    assert (none.depth, none.low, none.exists) == (None, None, 0.5)


def test_depths_and_their_intervals_are_those_of_resampled_documents(gpt2):
    text = replace(TEXT, ids=np.random.default_rng(3).integers(1, 900, TEXT.ids.shape).astype(np.int32))
    reading = effective_depth(gpt2)
    with gpt2.measuring():
        shards = [
            reading.read(Baseline(gpt2, *part.batch(), keep=reading.keep), part)
            for part in (text.part(0, 4), text.part(4, 6))
        ]
    found = reading.tables(shards)["effective_depth"]
    sums = pl.concat(shards).group_by("document", "layer").sum().sort("document", "layer")
    names = {"kl": "logit_kl", "overlap": "logit_top5_overlap", "write_cosine": "write_cosine"}
    counts = {d: np.random.default_rng([0, d]).poisson(1.0, 1000) for d in (0, 1, 2, 5)}
    for name, column in names.items():
        one = found.filter(reading=name).row(0, named=True)
        of = {d: sums.filter(document=d)[column].to_numpy()[:12] for d in counts}
        tokens = {d: sums.filter(document=d)["tokens"][0] for d in counts}
        depths = []
        for replicate in range(-1, 1000):
            weight = {d: 1 if replicate < 0 else counts[d][replicate] for d in counts}
            total = sum(weight[d] * tokens[d] for d in counts)
            curve = sum(weight[d] * of[d] for d in counts) / total if total else None
            depths.append(None if curve is None else naive_depth(name, one["threshold"], curve.tolist()))
        again = sorted(depth for depth in depths[1:] if depth not in (None, NONE))
        assert one["depth"] == depths[0]
        assert one["exists"] == pytest.approx(len(again) / sum(depth is not None for depth in depths[1:]))
        assert one["ci_low"] == again[int(0.025 * (len(again) - 1))]
        assert one["ci_high"] == again[-1 - int(0.025 * (len(again) - 1))]
        assert one["share"] == (one["depth"] + 1) / 12


def test_the_lens_is_decoded_once_for_all_and_gives_what_it_gives_alone(tiny_of, monkeypatch):
    model = tiny_of("llama")
    alone, calls, compare = LensReading(model), [], read_lenses.compare
    first = read_windows(model, [alone], TEXT)["lens"]
    monkeypatch.setattr(read_lenses, "compare", lambda *given: calls.append(1) or compare(*given))
    lenses = ReadLenses(model, tuned=TunedLens.identity(model))
    both = [LensReading(model, lenses=lenses), EffectiveDepth(model, lenses)]
    shards = read_windows(model, both, TEXT)
    assert len(calls) == 2 * (DEPTH + 1)
    assert shards["lens"].select(first.columns).equals(first)
    # An identity map is the logit lens, bit for bit, so both lenses have the same rows.
    found = both[1].tables([shards["effective_depth"]])
    for name, table in found.items():
        logit, tuned = (table.filter(lens=lens).drop("lens") for lens in ("logit", "tuned"))
        assert len(logit) > 0, name
        assert logit.equals(tuned), name


def test_how_the_text_is_cut_changes_no_depth(tiny_of):
    model = tiny_of("gpt_neox")
    one, other = (tables(effective_depth(model), model, cuts=cuts) for cuts in ((4,), (1, 2, 5)))
    assert one["effective_depth"].equals(other["effective_depth"])
    for column in ("mean", "ci_low", "ci_high"):
        a, b = (found["effective_depth_curves"][column].to_numpy() for found in (one, other))
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    shards = {
        name: read_windows(model, [effective_depth(model)], part)
        for name, part in (("a", TEXT.part(0, 2)), ("b", TEXT.part(2, 6)))
    }
    joined = effective_depth(model).joined([one["effective_depth"] for one in shards.values()])
    assert joined.height == 4 * (DEPTH + 1)


def test_what_does_not_exist_has_a_reason():
    mamba = load(tiny_model("mamba"))
    found = tables(effective_depth(mamba), mamba)["effective_depth"]
    (row,) = found.filter(reading="component_cosine").to_dicts()
    assert row["depth"] is None
    assert "no separate attention and MLP" in row["reason"]
    assert set(found["reading"]) == set(READINGS)
    single = load(tiny_model("gpt2", n_layer=1))
    for row in (
        tables(effective_depth(single), single)["effective_depth"].filter(pl.col("reading") != "overlap").to_dicts()
    ):
        assert (row["depth"] is None) == (row["reason"] is not None)
    (turn,) = tables(effective_depth(single), single)["effective_depth"].filter(reading="write_cosine").to_dicts()
    assert turn["reason"].startswith("the mean cosine never turns from negative to at least 0: it is")
    assert turn["exists"] == 0
    assert reading_rows(found.head(0).vstack(pl.DataFrame([turn], schema=found.schema)))[0][2:] == ("none", "–", "0.0%")
    one = replace(TEXT.part(0, 2))
    reading = effective_depth(mamba)
    table = reading.tables([read_windows(mamba, [reading], one)["effective_depth"]])["effective_depth"]
    assert table["ci_low"].null_count() == table["exists"].null_count() == len(table)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocabulary", [3, 97, 700])
def test_most_likely_tokens_are_those_of_a_stable_sort(dtype, vocabulary):
    logits = torch.randn(40, vocabulary, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[0] = 0
    logits[1, ::2] = -0.0
    top = TopTokens(5)
    for rows in (slice(0, 25), slice(25, 40)):
        for start in range(0, vocabulary, 350):
            top.look(start, logits[rows, start : start + 350])
    assert torch.equal(top.found, logits.float().sort(stable=True, dim=-1, descending=True).indices[:, :5])


def test_a_lens_that_overflows_is_an_error_and_own_tokens_need_no_lens(tiny_of):
    model = tiny_of("gpt2")

    class Broken:
        def decode(self, residual, depth, last):
            hidden = model.unembedding.hidden(residual)
            return hidden * (float("nan") if depth == 2 else 1.5)

    with torch.inference_mode():
        reading = effective_depth(model)
        baseline = Baseline(model, *TEXT.batch(), keep=reading.keep)
        own = own_top_tokens(baseline)
        assert torch.equal(own, baseline.part(0, 6).model.unembedding.logits(baseline.hidden).topk(5).indices)
        reading.lenses.lens = Broken()
        with pytest.raises(
            NumericError, match=r"the lens gives NaN or infinity at depth 2 of .* in window 0 of the batch"
        ):
            reading.read(baseline, TEXT)

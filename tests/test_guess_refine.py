"""Guess, then refine: bands and counts against loops over the definition, what must hold at x_L, little text, other lenses."""

import copy
from collections import Counter
from dataclasses import replace

import naive
import numpy as np
import polars as pl
import pytest
import torch
from families import DEPTH, VOCABULARY, tiny_model
from rebuilt import logits_of
from test_readings import IDS, TEXT, check, own_head, tables
from test_weights import spread_norms

from depthscope.data.corpus import Corpus
from depthscope.data.frequency_bands import FrequencyBands, counted_text, frequency_bands
from depthscope.data.windows import make_windows
from depthscope.errors import DataError
from depthscope.experiments import read_lenses
from depthscope.experiments.effective_depth import EffectiveDepth
from depthscope.experiments.guess_refine import GuessRefine
from depthscope.experiments.read_lenses import ReadLenses
from depthscope.experiments.tuned_lens import TunedLens
from depthscope.models.load import load
from depthscope.report.sections.guess_refine import HEAD, table_rows
from depthscope.schema.guess_refine import ALL, BANDS, GUESS_REFINE_TABLE
from depthscope.studies.read_windows import read_windows

EVERY = FrequencyBands(np.arange(VOCABULARY) % 4, 0, 0)
"""Bands that a tiny vocabulary has all of; the last one is not only rare tokens."""


def guess_refine(model, bands: FrequencyBands = EVERY, **more) -> GuessRefine:
    return GuessRefine(model, ReadLenses(model, **more), bands)


def test_bands_are_ranks_of_counts_in_the_whole_text():
    ids = np.random.default_rng(1).zipf(1.3, (300, 65)) % 3000
    text = replace(TEXT, ids=ids.astype(np.int32), document=np.arange(300), start=np.zeros(300, dtype=np.int64))
    bands = frequency_bands(text, 5000)
    counted = Counter(ids[:, 1:].ravel().tolist())
    ranked = sorted(counted, key=lambda token: (-counted[token], token))
    assert len(ranked) > 1000
    for token in range(5000):
        rank = ranked.index(token) + 1 if token in counted else 10**6
        assert bands.of[token] == sum(rank > last for last in (10, 100, 1000)), (token, rank)
    assert (bands.tokens, bands.distinct) == (300 * 64, len(counted))
    assert bands.record() == frequency_bands(text.take(np.arange(300)[::-1].copy()), 5000).record()


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma2", "falcon"])
def test_shares_and_overturned_are_those_of_the_definition(family):
    model = spread_norms(tiny_model(family))
    exact = copy.deepcopy(model.hf).double()
    table = tables(guess_refine(model), model)["guess_refine"]
    assert dict(table.schema) == GUESS_REFINE_TABLE
    own = logits_of(exact, IDS).argmax(-1).numpy()
    for depth, stream in enumerate(naive.residuals(exact, IDS)):
        top = own_head(exact, stream).argmax(-1).numpy()
        check(table, {"layer": depth, "band": ALL}, "overturned", (top != own).astype(float), atol=1e-2)
        for place, band in enumerate(BANDS):
            inside = top % 4 == place
            check(table, {"layer": depth, "band": band}, "share", inside.astype(float), atol=1e-2)
            (row,) = table.filter(layer=depth, band=band, metric="overturned").to_dicts()
            of = {d: (TEXT.document == d) for d in (0, 1, 2, 5)}
            counts = np.array([inside[rows].sum() for rows in of.values()])
            replaced = np.array([(inside & (top != own))[rows].sum() for rows in of.values()])
            if row["tokens"] != counts.sum():  # two logits that are equal in float32
                continue
            mean = replaced.sum() / counts.sum()
            used = counts > 0
            error = np.sqrt(used.sum() / (used.sum() - 1) * ((replaced - mean * counts) ** 2).sum()) / counts.sum()
            assert row["mean"] == pytest.approx(mean, abs=1e-9)
            assert row["documents"] == used.sum()
            if row["ci_low"] > 0:
                assert mean - row["ci_low"] == pytest.approx(error * naive.stats.t.ppf(0.975, used.sum() - 1), abs=1e-9)


def test_at_the_end_nothing_is_overturned_and_shares_sum_to_one(tiny_of):
    model = tiny_of("gpt2")
    table = tables(guess_refine(model), model)["guess_refine"]
    last = table.filter(layer=DEPTH, metric="overturned")
    assert last.select("mean", "ci_low", "ci_high").to_numpy().tolist() == [[0.0, 0.0, 0.0]] * 5
    shares = table.filter(metric="share").group_by("layer").agg(pl.col("mean").sum())
    np.testing.assert_allclose(shares["mean"].to_numpy(), 1)
    # Of all bands together: the mean of the bands weighted by their positions.
    rates = table.filter(metric="overturned")
    for depth in range(DEPTH + 1):
        bands = rates.filter(pl.col("band") != ALL, layer=depth)
        whole = rates.filter(band=ALL, layer=depth)
        assert bands["tokens"].sum() == whole["tokens"].item() == IDS.numel()
        assert (bands["tokens"] * bands["mean"]).sum() / IDS.numel() == pytest.approx(whole["mean"].item())
    other = tables(guess_refine(model), model, cuts=(1, 2, 5))["guess_refine"]
    assert other.equals(table)


def test_a_band_that_is_never_predicted_has_no_rate(tiny_of):
    model = tiny_of("llama")
    one_band = FrequencyBands(np.zeros(VOCABULARY, dtype=np.int64), 0, 0)
    table = tables(guess_refine(model, one_band), model)["guess_refine"]
    (row,) = table.filter(layer=1, band="rest", metric="overturned").to_dicts()
    assert (row["mean"], row["ci_low"], row["tokens"], row["documents"]) == (None, None, 0, 0)
    assert table.filter(layer=1, band="rest", metric="share")["mean"].item() == 0
    assert len(table_rows(table)) == DEPTH + 1
    assert all(len(row) == len(HEAD) for row in table_rows(table))


def test_lenses_are_shared_and_an_identity_map_is_the_logit_lens(tiny_of, monkeypatch):
    model, calls, compare = tiny_of("gpt_neox"), [], read_lenses.compare
    monkeypatch.setattr(read_lenses, "compare", lambda *given: calls.append(1) or compare(*given))
    lenses = ReadLenses(model, tuned=TunedLens.identity(model))
    both = [GuessRefine(model, lenses, EVERY), EffectiveDepth(model, lenses)]
    shards = read_windows(model, both, TEXT)
    assert len(calls) == 2 * (DEPTH + 1)
    table = both[0].tables([shards["guess_refine"]])["guess_refine"]
    logit, tuned = (table.filter(lens=lens).drop("lens") for lens in ("logit", "tuned"))
    assert logit.equals(tuned)
    alone = read_windows(model, [guess_refine(model)], TEXT)["guess_refine"]
    assert alone.equals(shards["guess_refine"].filter(lens="logit"))


def test_too_little_text_is_said_and_models_without_components_have_shares():
    few = replace(TEXT, ids=TEXT.ids % 10)
    with pytest.raises(DataError, match=r"the text has 10 different tokens: expected more than 10.* Use more --tokens"):
        frequency_bands(few, VOCABULARY)
    mamba = load(tiny_model("mamba"))
    reading = guess_refine(mamba)
    with torch.inference_mode():
        joined = reading.joined(
            [read_windows(mamba, [reading], TEXT.part(*part))["guess_refine"] for part in ((0, 1), (1, 6))]
        )
    assert reading.tables([joined])["guess_refine"].equals(tables(reading, mamba)["guess_refine"])


def test_bands_do_not_depend_on_how_much_is_measured(gpt2, monkeypatch):
    monkeypatch.setattr("depthscope.data.frequency_bands.COUNTED_TOKENS", 32_768)
    found = []
    for tokens in (200, 2000):
        corpus = Corpus(tokens=tokens)
        windows = make_windows(corpus, gpt2, length=64)
        counted = counted_text(corpus, gpt2, windows, "auto")
        assert counted.tokens == 32_768
        found.append(frequency_bands(counted, gpt2.unembedding.vocabulary))
    assert found[0].record() == found[1].record()
    assert [int((found[0].of == band).sum()) for band in range(3)] == [10, 90, 900]

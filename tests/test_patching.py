"""Residual patching against hooks on plain forwards in float64; its laws; pairs of prompts; ratios and crossings; bad input."""

import copy

import naive
import numpy as np
import polars as pl
import pytest
import torch
from families import DEPTH, VOCABULARY, tiny_model
from rebuilt import block_list, logits_of
from report_runs import make_run, patching_tables
from test_sweep import save

import depthscope as ds
from depthscope.data.token_classes import vocabulary_of
from depthscope.data.token_properties import FUNCTION_WORDS
from depthscope.data.windows import make_windows
from depthscope.data.word_exchanges import FEWEST_PAIRS, PAIRS_PER_DOCUMENT, word_kinds, word_pairs
from depthscope.errors import DataError, DepthscopeError
from depthscope.experiments import patching
from depthscope.experiments.patching import DEPTHS, NAME, Patching, patched_divergences, places
from depthscope.models.load import load
from depthscope.models.model import Model
from depthscope.report.figures import FIGURES
from depthscope.schema.patching import GROUPS, LAST, PATCHING_DEPTHS_TABLE, PATCHING_TABLE, WORD
from depthscope.statistics.crossings import crossing_estimate, interpolated
from depthscope.statistics.ratios import ratio_estimate
from depthscope.studies.settings import study_settings

LENGTH, PLACE = 10, 5
CLEAN = torch.from_numpy(np.random.default_rng(0).integers(1, VOCABULARY, (3, LENGTH)))
CORRUPTED = CLEAN.clone()
CORRUPTED[:, PLACE] = (CLEAN[:, PLACE] + 7) % (VOCABULARY - 1) + 1


def with_patch(model, ids, depth, positions, stream):
    """Logits of a plain forward in which a hook replaces the residual stream at some positions, before block `depth`."""
    holder, name = block_list(model)
    blocks = getattr(holder, name)

    def changed(hidden):
        hidden = hidden.clone()
        hidden[:, positions] = stream[:, positions]
        return hidden

    def before(_module, args, kwargs):
        if args:
            return (changed(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": changed(kwargs["hidden_states"])}

    def after(_module, _args, output):
        return (changed(output[0]), *output[1:]) if isinstance(output, tuple) else changed(output)

    if depth < len(blocks):
        handle = blocks[depth].register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = blocks[-1].register_forward_hook(after)
    try:
        return logits_of(model, ids)
    finally:
        handle.remove()


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma2", "falcon", "mamba", "gemma4_text"])
def test_divergences_are_those_of_hooks_on_plain_forwards(family):
    model = Model(tiny_model(family), None, name=family)
    exact = copy.deepcopy(model.hf).double()
    groups = [[PLACE], list(range(PLACE + 1, LENGTH - 1)), [LENGTH - 1]]
    with model.measuring():
        corrupted, patched = patched_divergences(model, CLEAN, CORRUPTED, groups)
    own = logits_of(exact, CLEAN)[:, -1]

    def kl(logits):
        return naive.measures(own, logits[:, -1], CLEAN[:, -1])["kl"].numpy()

    np.testing.assert_allclose(corrupted, kl(logits_of(exact, CORRUPTED)), rtol=1e-3, atol=1e-5)
    streams = naive.residuals(exact, CLEAN)
    for group, positions in enumerate(groups):
        for depth in range(DEPTH + 1):
            expected = kl(with_patch(exact, CORRUPTED, depth, positions, streams[depth]))
            np.testing.assert_allclose(
                patched[group, depth], expected, rtol=1e-3, atol=1e-5, err_msg=f"{group} {depth}"
            )


@pytest.mark.parametrize("family", ["gpt2", "llama", "mamba"])
def test_laws(family):
    """All positions restore everything at any depth, none nothing; what is before or after the effect moves is exact."""
    model = Model(tiny_model(family), None, name=family)
    groups = [list(range(PLACE, LENGTH)), [], [PLACE], [LENGTH - 1]]
    with model.measuring():
        corrupted, (whole, nothing, word, last) = patched_divergences(model, CLEAN, CORRUPTED, groups)
    assert corrupted.min() > 1e-5
    assert whole.max() < 1e-6
    np.testing.assert_array_equal(nothing, np.tile(corrupted, (DEPTH + 1, 1)))
    assert word[0].max() < 1e-6
    np.testing.assert_array_equal(word[-1], corrupted)
    np.testing.assert_array_equal(last[0], corrupted)
    assert last[-1].max() == 0


@pytest.mark.parametrize("bos", ["none", "window"])
def test_pairs_differ_in_one_word_of_the_same_kind(gpt2, bos):
    windows = make_windows(ds.corpus(tokens=4096), gpt2, length=48, bos=bos)
    pairs, distance = word_pairs(windows, gpt2, 3), 3
    vocabulary = vocabulary_of(gpt2)
    kinds = word_kinds(vocabulary, windows.ids[:, 1:])
    lead = bos == "window"
    assert len(pairs) == len(pairs.corrupted) >= FEWEST_PAIRS
    assert pairs.word == pairs.clean.shape[1] - 1 - distance
    assert places(pairs) == {
        "word": [pairs.word],
        "between": [pairs.word + 1, pairs.word + 2],
        "last": [pairs.word + 3],
    }
    text = {number: windows.ids[windows.document == number] for number in np.unique(windows.document)}
    for clean, corrupted, document in zip(pairs.clean, pairs.corrupted, pairs.document, strict=True):
        assert np.flatnonzero(clean != corrupted).tolist() == [pairs.word]
        a, b = clean[pairs.word], corrupted[pairs.word]
        assert kinds[a] == kinds[b] >= 0
        assert vocabulary.texts[a][1:].casefold() not in FUNCTION_WORDS
        assert not vocabulary.texts[clean[pairs.word + 1]][0].isalpha(), "the word ends there"
        prompt = clean[lead:].tolist()
        rows = [row.tolist() for row in text[document]]
        assert any(row[i : i + len(prompt)] == prompt for row in rows for i in range(lead, len(row) - len(prompt)))
        if lead:
            assert clean[0] == windows.ids[0, 0]
    assert np.unique(pairs.document, return_counts=True)[1].max() <= PAIRS_PER_DOCUMENT
    assert (np.diff(pairs.document) >= 0).all()
    assert (
        word_pairs(windows, gpt2, 3).token_hash() == pairs.token_hash() != word_pairs(windows, gpt2, 3, 1).token_hash()
    )


@pytest.fixture(scope="module")
def patched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("patching")
    model = load(save("llama", folder / "model"))
    asked = {"window": 32, "experiments": "patching", "progress": False}
    return model, ds.study(model, ds.corpus(tokens=512), out=folder / "run", **asked), asked


def test_the_table_is_its_naive_definition_however_pairs_are_cut(patched, monkeypatch):
    model, study, _ = patched
    table = study.table(NAME)
    assert dict(table.schema) == PATCHING_TABLE
    windows = make_windows(ds.corpus(tokens=512), model, length=32)
    pairs = word_pairs(windows, model, 4)
    with model.measuring():
        corrupted, kl = patched_divergences(model, *pairs.batch(slice(None)), list(places(pairs).values()))
    units = np.unique(pairs.document)
    for number, group in enumerate(GROUPS):
        for depth in range(DEPTH + 1):
            rows = {row["metric"]: row for row in table.filter(group=group, layer=depth).iter_rows(named=True)}
            found, row = naive.estimate(kl[number, depth][:, None], pairs.document), rows["kl"]
            assert (row["mean"], row["ci_low"], row["ci_high"]) == pytest.approx(
                np.maximum(found, 0), rel=1e-3, abs=1e-7
            )
            share = 1 - kl[number, depth].sum() / corrupted.sum()
            assert rows["recovered"]["mean"] == pytest.approx(share, abs=1e-4)
            assert (row["tokens"], row["documents"]) == (len(pairs), len(units))
    monkeypatch.setattr(patching, "PER_UNIT", 5)
    other = Patching(model, windows, 4)
    with model.measuring():
        again = other.tables([other.work(unit) for unit in range(other.units)])
    np.testing.assert_allclose(again[NAME]["mean"].to_numpy(), table["mean"].to_numpy(), rtol=1e-3, atol=1e-5)
    assert dict(again[DEPTHS].schema) == PATCHING_DEPTHS_TABLE
    assert again[DEPTHS]["group"].to_list() == ["word", "last", "between"]


def test_it_goes_on_where_it_was(patched):
    model, study, asked = patched
    before = (study.path / "tables" / f"{NAME}.parquet").read_bytes()
    next((study.path / "shards" / NAME).iterdir()).unlink()
    ds.study(model, ds.corpus(tokens=512), out=study.path, **asked)
    assert (study.path / "tables" / f"{NAME}.parquet").read_bytes() == before


def test_words_without_effect_have_no_share_and_no_depth(patched):
    model, study, _ = patched
    experiment = Patching(model, make_windows(ds.corpus(tokens=512), model, length=32), 4)
    shards = [
        shard.with_columns(kl=pl.lit(0.0))
        for shard in map(pl.read_parquet, sorted((study.path / "shards" / NAME).iterdir()))
    ]
    tables = experiment.tables(shards)
    assert tables[DEPTHS].is_empty()
    assert tables[NAME].filter(metric="recovered")["mean"].null_count() == len(GROUPS) * (DEPTH + 1)
    assert set(tables[NAME].filter(metric="kl")["mean"]) == {0.0}


def test_ratios_and_crossings():
    generator = np.random.default_rng(0)
    b = generator.lognormal(0, 1, 40)
    a = b[:, None] * np.array([1.0, 0.8, 0.3, 0.0]) + generator.normal(0, 0.01, (40, 4))
    found = ratio_estimate(a, b, 40)
    ratio = a.sum(0) / b.sum()
    spread = np.array([sum((a[d, c] - ratio[c] * b[d]) ** 2 for d in range(40)) for c in range(4)])
    np.testing.assert_allclose(found.high - found.mean, 2.0226909 * np.sqrt(40 / 39 * spread) / b.sum(), rtol=1e-6)
    rows = np.array([[1, 0.8, 0.3, 0], [0.4, 0.6, 0.2, 0.1], [0.9, 0.5, 0.5, 0.5]])
    np.testing.assert_allclose(interpolated(rows, 0.5, rising=False), [1.6, 0, np.nan])
    np.testing.assert_allclose(interpolated(1 - rows, 0.5, rising=True), [1.6, 0, np.nan])
    fallen = crossing_estimate(a, b, 0.5, False, 40)
    assert fallen.low[0] < fallen.mean[0] < fallen.high[0]
    assert fallen.mean[0] == pytest.approx(1.6, abs=0.05)
    assert np.isnan(crossing_estimate(a[:9], b[:9], 0.5, False, 9).low[0]), "too few documents"


def test_bad_input_is_one_line(gpt2):
    windows = make_windows(ds.corpus(tokens=512), gpt2, length=32)
    with pytest.raises(DataError, match="too short to exchange a word 40 tokens before their end"):
        word_pairs(windows, gpt2, 40)
    with pytest.raises(DataError, match=r"words to exchange were found in 32 tokens: expected at least 8"):
        word_pairs(windows.part(0, 1), gpt2, 4)
    with pytest.raises(DataError, match="without a tokenizer"):
        word_pairs(windows, Model(tiny_model("gpt2"), None, name="gpt2"), 4)
    with pytest.raises(DepthscopeError, match=r"a distance of 1 tokens .* expected 2 to 64"):
        study_settings(experiments="patching", patch_distance=1)


@pytest.mark.parametrize("documents", [1, 7])
def test_the_section_says_where_the_effect_moves(tmp_path, documents):
    tables = patching_tables(4, documents)
    section = FIGURES[NAME].section(make_run(tmp_path / "run", 4, tables=tables))
    assert [panel.title for panel in section.panels] == ["Recovered", "KL of the patched run"]
    assert len(section.sentences) == 3
    assert len(section.tables[0].rows) == 3
    none = {**tables, DEPTHS: tables[DEPTHS].clear()}
    empty = FIGURES[NAME].section(make_run(tmp_path / "none", 4, tables=none))
    assert "nothing to recover" in empty.missing[0]
    assert {WORD, LAST} < set(GROUPS)

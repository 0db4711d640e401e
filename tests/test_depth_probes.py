"""Probes by depth against naive float64 fits; what is a property of the text; controls, cuts of the text, bad input."""

import copy

import naive
import numpy as np
import polars as pl
import pytest
import torch
from families import DEPTH, VOCABULARY, tiny_model
from report_runs import HOSTILE, depth_probe_tables, make_run
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from test_readings import tables
from test_sweep import save

import depthscope as ds
from depthscope.data.token_classes import Vocabulary
from depthscope.data.token_properties import NONE, spelling, suffix_class, word_class, word_position
from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline
from depthscope.errors import DataError, DepthscopeError
from depthscope.experiments.depth_probes import CONTROLS, NAME, DepthProbes
from depthscope.models.load import load
from depthscope.models.model import Model
from depthscope.report.figures import FIGURES
from depthscope.schema.depth_probes import DEPTH_PROBES_TABLE, PROPERTIES, WORD_CLASSES
from depthscope.schema.experiments import experiment_names
from depthscope.statistics.class_probes import ClassSplit, highest_interval
from depthscope.statistics.probe_baselines import classes_by_token, control_classes
from depthscope.studies.settings import study_settings

LENGTH = 12


def text(documents: int = 14, per_document: int = 3, seed: int = 0) -> Windows:
    """Windows in which a few tokens are frequent, and the next one depends on the one before."""
    generator = np.random.default_rng(seed)
    ids = generator.choice([5, 9, 17, 40, 77], (documents * per_document, LENGTH + 1), p=[0.3, 0.3, 0.2, 0.1, 0.1])
    ids[:, 1::3] = generator.integers(1, VOCABULARY, ids[:, 1::3].shape)
    starts = np.tile(np.arange(per_document) * LENGTH, documents)
    return Windows(ids.astype(np.int32), np.repeat(np.arange(documents), per_document), starts, "none")


TEXT = text()


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "opt", "mamba"])
def test_accuracies_are_those_of_probes_fitted_on_plain_forwards(family):
    model = Model(tiny_model(family), None, name=family)
    probes = DepthProbes(model, TEXT, ["ing"])
    assert set(probes.labelled) == {"token", "previous_token"}, "no tokenizer: nothing that needs text"
    assert "came without a tokenizer" in probes.not_done["the probe of word class"]
    found = tables(probes, model, TEXT, cuts=(4, 20))
    table, examples = found[NAME], probes.examples
    assert dict(table.schema) == DEPTH_PROBES_TABLE
    streams = naive.residuals(copy.deepcopy(model.hf).double(), TEXT.batch()[0])
    for name, shift in (("token", 0), ("previous_token", 1)):
        tokens = np.array([TEXT.ids[w, p - shift] for w, p in zip(examples.window, examples.position, strict=True)])
        kinds, counts = np.unique(tokens[examples.training], return_counts=True)
        often = kinds[np.argsort(-counts, kind="stable")][:10]
        enough = [
            kind
            for kind in often
            if (tokens[examples.training] == kind).sum() >= 10 and (tokens[~examples.training] == kind).sum() >= 3
        ]
        used = np.isin(tokens, enough)
        train, test = used & examples.training, used & ~examples.training
        for depth in (0, 1, DEPTH):
            x = np.stack(
                [streams[depth][w, p].numpy() for w, p in zip(examples.window, examples.position, strict=True)]
            )
            scale = StandardScaler().fit(x[train])
            probe = LogisticRegression(C=0.01, max_iter=1000).fit(scale.transform(x[train]), tokens[train])
            right = (probe.predict(scale.transform(x[test])) == tokens[test]).astype(float)
            (row,) = table.filter(property=name, layer=depth, metric="accuracy").to_dicts()
            expected = naive.estimate(right[:, None], examples.document[test])
            assert (row["mean"], row["ci_low"], row["ci_high"]) == pytest.approx(np.clip(expected, 0, 1), abs=0.012)
            assert (row["tokens"], row["documents"]) == (test.sum(), len(np.unique(examples.document[test])))


def test_differences_are_paired_and_the_best_depth_is_that_of_the_table():
    model = Model(tiny_model("gpt2"), None, name="gpt2")
    found = tables(DepthProbes(model, TEXT, ["ing"]), model, TEXT)
    table, best = found[NAME], found["depth_probes_best"]
    other = tables(DepthProbes(model, TEXT, ["ing"]), model, TEXT, cuts=(1, 30, 41))[NAME]
    np.testing.assert_allclose(table["mean"].to_numpy(), other["mean"].to_numpy(), atol=0.012)
    wide = table.pivot(on="metric", index=["property", "layer"], values="mean")
    np.testing.assert_allclose(wide["accuracy"] - wide["control_accuracy"], wide["selectivity"], atol=1e-12)
    for name in ("accuracy_over_majority", "accuracy_over_token"):
        baseline = (wide["accuracy"] - wide[name]).to_numpy().reshape(2, -1)
        np.testing.assert_allclose(baseline, baseline[:, :1].repeat(DEPTH + 1, 1), atol=1e-12)
    first = wide.filter(property="token", layer=0).row(0, named=True)
    assert first["accuracy"] > 0.95
    assert first["accuracy"] - first["accuracy_over_token"] == pytest.approx(1.0), "a token tells which token it is"
    for row in best.iter_rows(named=True):
        of = table.filter(property=row["property"], metric=row["metric"])
        assert row["mean"] == pytest.approx(of["mean"].max())
        assert row["layer"] == of["layer"][int(of["mean"].arg_max())]
        assert row["layer_low"] is None, "four test documents are too few for an interval"


def test_the_most_that_is_drawn_bounds_the_shards():
    model = Model(tiny_model("gpt2"), None, name="gpt2")
    probes = DepthProbes(model, text(60, 5), ["ing"], most=300)
    assert len(probes.examples) == probes.settings["examples"] == 300
    read = TEXT.part(0, 33)
    probes = DepthProbes(model, TEXT, ["ing"])
    with torch.inference_mode():
        first = probes.read(Baseline(model, *read.batch()), read)
    assert probes.tables([first])["depth_probes_classes"]["training"].sum() > 0, "a text of which only a part was read"
    assert probes.tables([first.clear()])[NAME].is_empty()
    train = probes.examples.training
    assert not set(probes.examples.document[train]) & set(probes.examples.document[~train])


def test_control_tasks_have_the_tasks_proportions_and_one_class_per_token():
    generator = np.random.default_rng(3)
    tokens = generator.zipf(1.5, 4000) % 500
    shares = np.array([0.5, 0.3, 0.2])
    tasks = [control_classes(tokens, shares, np.random.default_rng(seed)) for seed in range(30)]
    for task in tasks:
        assert all(len(set(task[tokens == token].tolist())) == 1 for token in np.unique(tokens)[:50])
    largest = np.unique(tokens, return_counts=True)[1].max() / len(tokens)
    for task in tasks:
        # A class has at most two borders, and is off by at most half of a token's examples at each.
        assert (abs(np.bincount(task, minlength=3) / len(task) - shares) <= largest + 1e-9).all()
    assert not np.array_equal(tasks[0], tasks[1])


def test_streams_that_show_only_the_token_have_no_selectivity_and_others_have():
    model = Model(tiny_model("gpt2"), None, name="gpt2")
    probes = DepthProbes(model, TEXT, ["ing"])
    generator, n = np.random.default_rng(0), 1500
    tokens, training = generator.integers(0, 12, n), generator.random(n) < 0.7
    shown = np.eye(12)[tokens] * 3
    streams = np.stack([shown, np.c_[shown, generator.normal(size=(n, 3))][:, 3:]]).astype(np.float32)
    by_token = ClassSplit(tokens % 3, training)
    right, control, selectivity, _, over_token = probes._probed(streams[:1], by_token, tokens)
    assert right.mean() == control.mean() == 1
    assert selectivity.mean() == over_token.mean() == 0
    context = ClassSplit(streams[1, :, -3:].argmax(1), training)
    right, control, selectivity, _, over_token = probes._probed(streams[1:], context, tokens)
    assert right.mean() > 0.9
    assert over_token.mean() > 0.5
    assert CONTROLS > 1


def test_baselines_and_intervals_of_places():
    tokens, labels = np.array([1, 1, 1, 2, 2, 3]), np.array([0, 0, 1, 2, 2, 1])
    training = np.array([True, True, True, True, False, False])
    assert classes_by_token(tokens, labels, training).tolist() == [0, 0, 0, 2, 2, 0]
    assert ClassSplit(np.array([0, 0, 1, 0]), np.array([True, True, False, False])).probe_right(
        np.zeros((4, 2))
    ).tolist() == [False, True]
    sums = np.random.default_rng(0).normal(0, 1, (40, 5)) + np.array([0, 0, 3, 0, 0])
    assert highest_interval(sums, np.ones(40)) == (2, 2)
    assert highest_interval(sums[:9], np.ones(9)) is None


def test_words_are_classed_by_their_spelling():
    texts = (" the", "the", "ing", " Going", ",", " 12", "\n", None, "\ufffd", " —", "'s", " thing", "<end>", "a1")
    vocabulary = Vocabulary(texts, frozenset({12}))
    spelled = spelling(vocabulary)
    at = {text: i for i, text in enumerate(texts)}

    def classed(token, previous):
        pair = np.array([at[token]]), np.array([at[previous]])
        label, place = int(word_class(spelled, *pair)[0]), int(word_position(spelled, *pair)[0])
        return (None if label == NONE else WORD_CLASSES[label]), place

    assert classed(" the", ",") == ("function word", 0)
    assert classed("the", "\n") == ("function word", 0)
    assert classed("the", " Going") == ("other", 1)
    assert classed("ing", " the") == ("other", 1)
    assert classed(" Going", "ing") == ("capitalised", 0)
    assert classed(",", "ing") == ("punctuation", NONE)
    assert classed(" —", "ing") == ("punctuation", NONE)
    assert classed(" 12", "ing") == ("digits", NONE)
    for token in ("\n", None, "\ufffd", "'s", "<end>"):
        assert classed(token, "ing") == (None, NONE)
    ends = suffix_class(vocabulary, ["g", "ing"])
    assert [int(ends[at[text]]) for text in ("ing", " thing", " the", ",", None, "<end>")] == [1, 1, 2, 2, NONE, NONE]


def test_a_study_with_text_has_all_properties_and_can_be_resumed(tmp_path):
    model = load(save("llama", tmp_path / "model"))
    asked = {"window": 32, "experiments": "depth_probes", "progress": False}
    study = ds.study(model, ds.corpus(tokens=1024), out=tmp_path / "run", **asked)
    assert study.table(NAME)["property"].unique(maintain_order=True).to_list() == list(PROPERTIES)
    assert study.table("depth_probes_classes").filter(property="word_class")["label"].to_list()[0] == "function word"
    before = (tmp_path / "run" / "tables" / "depth_probes.parquet").read_bytes()
    next((tmp_path / "run" / "shards" / NAME).iterdir()).unlink()
    ds.study(model, ds.corpus(tokens=1024), out=tmp_path / "run", **asked)
    assert (tmp_path / "run" / "tables" / "depth_probes.parquet").read_bytes() == before
    assert NAME in experiment_names(["deep"])


def test_too_little_text_and_wrong_suffixes_are_one_line(tmp_path):
    model = Model(tiny_model("gpt2"), None, name="gpt2")
    with pytest.raises(DataError, match="need at least two documents"):
        DepthProbes(model, text(1), ["ing"])
    with pytest.raises(DataError, match=r"probes by depth cannot be fitted: of 33 positions .* Use more --tokens"):
        DepthProbes(model, text(3, 1), ["ing"])
    for wrong, said in (
        ("ing,1", "got '1'"),
        (",".join("abcdefghijklmnopq"), "got 17 suffixes"),
        ("a" * 33, "got 'aaa"),
    ):
        with pytest.raises(DepthscopeError, match=said):
            study_settings(experiments="depth_probes", suffixes=wrong)


@pytest.mark.parametrize("documents", [1, 7])
def test_the_section_has_a_panel_and_a_sentence_per_property(tmp_path, documents):
    run = make_run(tmp_path / "run", 4, tables=depth_probe_tables(4, documents))
    section = FIGURES[NAME].section(run)
    assert [panel.title for panel in section.panels] == [one.title for one in PROPERTIES.values()]
    assert len(section.sentences) == len(PROPERTIES)
    assert ("(x_1 to x_4)" in section.sentences[0]) == (documents > 1)
    assert HOSTILE in str(section.tables[1].rows[0][1])
    some = {name: table.filter(pl.col("property") == "token") for name, table in depth_probe_tables(4, 7).items()}
    assert len(FIGURES[NAME].section(make_run(tmp_path / "some", 4, tables=some)).panels) == 1

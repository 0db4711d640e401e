"""A study with a precision as its goal: when it stops, what it says then, and that it resumes and goes on like any other."""

import json
import sys
from itertools import islice

import numpy as np
import polars as pl
import pytest
from killing import KILLED, SAME_BYTES, whole_and_killed
from polars.testing import assert_frame_equal
from scipy import stats
from test_study import contents
from test_sweep import run, save

import depthscope as ds
from depthscope.cli import main
from depthscope.cli.console import console
from depthscope.data.windows import make_windows
from depthscope.errors import DepthscopeError, RunError, RunMismatchError
from depthscope.models.load import load
from depthscope.report.trust import precision_goal
from depthscope.run.units import units_between
from depthscope.schema.manifest import PrecisionOutcome
from depthscope.schema.precision import PRECISION_TABLE
from depthscope.statistics.repeated_intervals import FEWEST, critical_value, look_schedule
from depthscope.studies.run_study import run_study
from depthscope.studies.settings import study_settings

DOCUMENTS = 64
WINDOW = 16
TOKENS = DOCUMENTS * WINDOW
"""A window of each document."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load(save("llama", tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> str:
    """Beginnings of embedded passages, some windows long, not all alike."""
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    rng = np.random.default_rng(0)
    passages = islice(ds.corpus().documents(), DOCUMENTS)
    lines = [json.dumps({"text": passage[: int(rng.integers(200, 400))]}) for passage in passages]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def study(model, text):
    """A study on that text in units of five windows."""

    def made(out, precision, *names, tokens: int | None = TOKENS, of=model, **more) -> ds.Study:
        settings = {"window": WINDOW, "edits": ("drop",), "unit_tokens": 5 * WINDOW} | more
        settings = study_settings(experiments=names or ("sweep",), precision=precision, **settings)
        return ds.Study(run_study(of, ds.corpus(text, tokens=tokens), out, settings).path)

    return made


def relative(study) -> list[float]:
    return study.table("precision")["half_width_relative"].to_list()


def stops(study, out, precision, names=(), **more) -> tuple[ds.Study, PrecisionOutcome]:
    made = study(out, precision, *names, **more)
    return made, made.run.manifest.precision


@pytest.fixture(scope="module")
def widths(study, tmp_path_factory) -> list[float]:
    """How wide the widest row is at the end of the text, and soon after the fewest documents: goals between are reached."""
    last = stops(study, tmp_path_factory.mktemp("last") / "run", 0.0001)[1].widest.half_width_relative
    first = stops(study, tmp_path_factory.mktemp("first") / "run", 0.99)[1].widest.half_width_relative
    return [last, first]


def by_definition(shards, goal, rows, looks) -> tuple[int, pl.DataFrame]:
    """After how many windows all rows are known, and what is known of each when it is, in float64 from values per token."""
    critical = critical_value(looks)
    tokens = pl.concat(shards).with_columns(kl=pl.col("kl").cast(pl.Float64))
    own = tokens.filter(edit="none").with_row_index()
    known = {}
    for look in looks:
        read = own.head(look * WINDOW).select("document", "position")
        for layer in range(rows):
            if layer in known:
                continue
            part = read.join(tokens.filter(edit="drop", layer=layer), on=["document", "position"])
            assert part.height == look * WINDOW, "a row that is not known is measured on everything"
            sums = part.group_by("document").agg(pl.sum("kl"), n=pl.len())
            count, mean = sums.height, part["kl"].mean()
            left = (sums["kl"] - mean * sums["n"]).to_numpy()
            error = np.sqrt(count / (count - 1) * (left**2).sum()) / part.height
            half = error * stats.t.isf(stats.norm.sf(critical), count - 1)
            if half <= goal * mean:
                known[layer] = (layer, mean, mean + half, count, part.height)
        if len(known) == rows:
            break
    columns = ["layer", "mean", "ci_high", "documents", "tokens"]
    return look, pl.DataFrame([known[layer] for layer in range(rows)], schema=columns, orient="row")


def test_every_row_is_measured_until_it_is_precise_enough_and_no_longer(study, model, text, tmp_path, widths):
    goal = float(np.median(relative(study(tmp_path / "first", 0.99, tokens=None))))
    made, said = stops(study, tmp_path / "run", goal, per_token=True, tokens=None)
    assert said.reached
    assert max(relative(made)) <= goal
    shards = [pl.read_parquet(path) for path in sorted((tmp_path / "run" / "shards" / "sweep").iterdir())]
    look, expected = by_definition(shards, goal, model.depth, said.looks)
    assert look * WINDOW == said.tokens == made.run.settings.tokens
    table = made.table("precision")
    assert dict(table.schema) == PRECISION_TABLE
    np.testing.assert_allclose(table["mean"].to_numpy(), expected["mean"].to_numpy(), rtol=1e-9)
    np.testing.assert_allclose(table["ci_high"].to_numpy(), expected["ci_high"].to_numpy(), rtol=1e-6)
    assert table.select("documents", "tokens").rows() == expected.select("documents", "tokens").rows()
    assert len(set(table["tokens"])) > 1, "some rows are known before others, so this test can tell"
    assert said.measured_share == pytest.approx(table["tokens"].mean() / said.tokens)
    swept = made.table("sweep").filter(edit="drop")
    for metric in ("kl", "entropy_change"):
        rows = swept.filter(metric=metric).sort("layer")
        assert rows.select("documents", "tokens").rows() == expected.select("documents", "tokens").rows()
    np.testing.assert_allclose(swept.filter(metric="kl").sort("layer")["mean"], expected["mean"], rtol=1e-9)
    apart = study(tmp_path / "apart", goal, tokens=None, unit_tokens=16 * WINDOW)
    for name in ("sweep", "precision"):
        assert_frame_equal(made.table(name), apart.table(name), rel_tol=1e-5)


def test_a_map_alone_is_read_until_every_cell_is_precise_enough(study, tmp_path, widths):
    asked = {"kind": ("drop_range",), "band": 2}
    made, said = stops(study, tmp_path / "run", widths[1], names=("map",), **asked)
    assert said.reached
    table = made.table("precision")
    assert table["half_width_relative"].max() <= widths[1]
    assert (
        table.select("edit", "layer", "other").rows()
        == made.table("map").filter(metric="kl").select("kind", "layer", "other").rows()
    )
    assert made.table("map")["documents"].unique().to_list() == [said.documents]
    assert made.run.settings.precision_of == "map"
    ranges = [one.row for one in said.missed] + [said.widest.row]
    assert all(name.startswith("drop_range(") for name in ranges)
    assert "KL of every cell within" in precision_goal(made.run.manifest)
    with pytest.raises(RunMismatchError, match="precision_of: 'map' stored, None requested"):
        study(tmp_path / "run", widths[1])
    first, _ = stops(study, tmp_path / "both", widths[1], names=("map", "sweep"), **asked)
    assert first.table("precision")["edit"].unique().to_list() == ["drop"]


def test_windows_are_drawn_from_all_and_each_document_counts_once(study, model, text, tmp_path, widths):
    made, said = stops(study, tmp_path / "run", widths[1], ("sweep", "lens"), tokens=None, window=24, per_token=True)
    shards = sorted((tmp_path / "run" / "shards" / "sweep").iterdir())
    read = pl.concat(pl.read_parquet(path) for path in shards).filter(edit="none")
    windows = make_windows(ds.corpus(text, tokens=1_000_000), model, length=24)
    drawn = windows.take(np.random.default_rng(0).permutation(len(windows))[: said.looks[-1]])
    first = drawn.part(0, read.height // 24)
    places = zip(np.repeat(first.document, 24), (first.start[:, None] + np.arange(24)).ravel(), strict=True)
    assert sorted(read.select("document", "position").rows()) == sorted(places)
    assert said.looks == look_schedule(drawn.document)
    assert FEWEST <= said.documents == first.documents < len(first) < len(windows)
    assert made.run.manifest.text.documents == said.documents
    assert made.table("lens")["documents"].unique().to_list() == [said.documents]
    assert made.run.settings.window_order_seed == 0


READINGS = ("sweep", "map", "lens", "norms", "attention", "similarity", "geometry", "dimension", "sinks", "massive")


def test_all_tables_of_the_whole_text_are_those_of_a_run_without_a_goal(study, tmp_path, widths):
    """The order of reading and of documents in shards changes nothing but rounding."""
    names = (*READINGS, "stages")
    without = study(tmp_path / "without", None, *names, tokens=TOKENS * 2, window=WINDOW)
    whole = study(tmp_path / "whole", widths[0] / 100, *names, tokens=TOKENS * 2, window=WINDOW)
    assert set(whole.run.tables()) == {*without.run.tables(), "precision"}
    for name in without.run.tables():
        assert_frame_equal(without.table(name), whole.table(name), rel_tol=1e-3, abs_tol=1e-5, check_row_order=True)


def test_units_end_at_every_look():
    def units(*looks, most=4):
        made = units_between(looks, most)
        assert [unit.index for unit in made] == list(range(len(made)))
        assert [unit.start for unit in made] == [0, *(unit.stop for unit in made)][: len(made)]
        assert set(looks) <= {unit.stop for unit in made}
        return [unit.stop - unit.start for unit in made]

    assert units(8, 10, 13) == [4, 4, 2, 3]
    assert units(9, 10) == [3, 3, 3, 1]
    assert units(2, 3, most=1) == [1, 1, 1]
    assert units(3) == [3]


def test_windows_in_random_order_are_the_same_windows(model, text):
    windows = make_windows(ds.corpus(text, tokens=9000), model, length=WINDOW)
    turned = windows.in_random_order(3)
    assert windows.token_hash() != turned.token_hash() == windows.in_random_order(3).token_hash()
    assert turned.token_hash() != windows.in_random_order(4).token_hash()
    back = np.lexsort((turned.start, turned.document))
    np.testing.assert_array_equal(turned.ids[back], windows.ids)
    stops = [40, 55, len(turned)]
    parts = turned.ordered_between(stops)
    for start, stop in zip([0, *stops], stops, strict=False):
        drawn, ordered = turned.part(start, stop), parts.part(start, stop)
        np.testing.assert_array_equal(drawn.take(np.lexsort((drawn.start, drawn.document))).ids, ordered.ids)
        assert [document for document, _ in ordered.per_document()] == sorted(set(drawn.document.tolist()))


@pytest.mark.fault(KILLED, SAME_BYTES)
def test_killed_and_rerun_gives_the_same_stop_and_the_same_bytes(text, tmp_path, widths, tries):
    model = save("llama", tmp_path / "model")
    settings = study_settings(
        experiments=("sweep", "lens", "geometry", "stages"),
        precision=float(np.mean(widths)),
        window=WINDOW,
        edits=("drop",),
        unit_tokens=5 * WINDOW,
    )
    about = {"settings": settings, "after": (0, 3, 8), "seed": 2, "kills": tries(3, of=12)}
    whole, killed = whole_and_killed(tmp_path, model, text, TOKENS, **about)
    for one in killed:
        assert contents(whole) == contents(one)
        assert ds.Study(whole).run.manifest == ds.Study(one).run.manifest


def test_a_finer_goal_goes_on_where_the_run_was(study, model, tmp_path, widths):
    coarse, fine = widths[1] * 0.95, widths[0] * 1.05
    first = study(tmp_path / "run", coarse, "sweep", "lens").run.manifest.precision
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "shards" / "lens").iterdir()}
    with pytest.raises(RunError, match="all tables cover the same text: add lens"):
        study(tmp_path / "run", fine)
    second = study(tmp_path / "run", fine, "sweep", "lens")
    assert second.run.manifest.precision.tokens > first.tokens
    assert shards.items() <= {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "shards" / "lens").iterdir()}.items()
    at_once = study(tmp_path / "at_once", fine, "sweep", "lens")
    tables = [{p.name: p.read_bytes() for p in (one.path / "tables").iterdir()} for one in (second, at_once)]
    assert tables[0] == tables[1]
    assert second.run.complete
    assert second.run.settings == at_once.run.settings
    with pytest.raises(RunMismatchError, match=r"precision: 0\.\d+ stored, 0\.99 requested"):
        study(tmp_path / "run", 0.99, "sweep", "lens")
    with pytest.raises(RunMismatchError, match=r"precision: .* stored, None requested"):
        study(tmp_path / "run", None, "sweep", "lens")


def test_experiments_join_a_run_that_has_stopped(study, model, tmp_path, widths):
    goal = float(np.mean(widths))
    study(tmp_path / "apart", goal)
    study(tmp_path / "apart", goal, "sweep", "attention")
    study(tmp_path / "together", goal, "sweep", "attention")
    a, b = ({p.name: p.read_bytes() for p in (tmp_path / n / "tables").iterdir()} for n in ("apart", "together"))
    assert a == b
    assert ds.Study(tmp_path / "apart").table("attention")["documents"].unique().to_list() == [
        ds.Study(tmp_path / "together").run.manifest.precision.documents
    ]


def test_a_goal_that_is_not_reached_is_said_with_the_widths_worst_first(study, model, tmp_path, widths):
    goal = widths[0] / 20
    made, said = stops(study, tmp_path / "run", goal, tokens=None, window=24, unit_tokens=1000)
    assert made.run.complete
    assert said.text_ended
    assert not said.reached
    assert said.documents == DOCUMENTS
    assert said.tokens == made.run.settings.most_tokens
    missed = [row.half_width_relative for row in said.missed]
    assert missed == sorted((w for w in relative(made) if w > goal), reverse=True)


def test_tokens_are_the_most_that_is_read(study, model, tmp_path, widths):
    made, said = stops(study, tmp_path / "run", widths[0] / 2)
    assert (said.tokens, said.reached, said.text_ended) == (TOKENS, False, False)
    sentence = precision_goal(made.run.manifest)
    assert (
        f"not reached after {TOKENS:,} tokens of {DOCUMENTS} documents, when the token limit was reached, for"
        in sentence
    )
    first = said.missed[0]
    assert f": drop({first.layer}) ±" in sentence


def test_too_few_documents_are_said(study, model, tmp_path):
    made, said = stops(study, tmp_path / "run", 0.5, tokens=(FEWEST - 1) * WINDOW)
    assert not said.reached
    assert said.widest is None
    assert made.table("precision")["ci_low"].null_count() == model.depth
    assert f"it needs at least {FEWEST} documents: the text has {FEWEST - 1}" in precision_goal(made.run.manifest)


def test_a_kl_under_the_noise_floor_needs_no_more_text(study, model, tmp_path, widths, monkeypatch):
    from depthscope.models.noise_floor import NoiseFloor
    from depthscope.studies import entries as module

    monkeypatch.setattr(module, "noise_floor", lambda *_: NoiseFloor(1e6, "float32", "float64", 128))
    made, said = stops(study, tmp_path / "run", widths[0] / 100)
    assert said.reached
    assert said.rows_under_noise_floor == said.rows == model.depth
    assert said.documents < DOCUMENTS
    assert made.table("precision")["under_noise_floor"].all()


def test_goals_that_mean_nothing_are_refused_and_nothing_is_written(study, model, tmp_path):
    for goal in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(DepthscopeError, match="expected a precision between 0 and 1"):
            study(tmp_path / "run", goal)
    with pytest.raises(DepthscopeError, match="only lens, norms would run: add sweep or map to --experiments"):
        study(tmp_path / "run", 0.1, "lens", "norms")
    mamba = load(save("mamba", tmp_path / "mamba"))
    with pytest.raises(DepthscopeError, match=r"cannot be done: .*no separate attention and MLP"):
        study(tmp_path / "run", 0.1, "sweep", "lens", of=mamba, edits=("drop_attn",))
    assert not (tmp_path / "run").exists()


def test_without_a_goal_nothing_is_different(study, model, tmp_path):
    made = study(tmp_path / "run", None, tokens=400)
    assert "precision" not in made.run.manifest.to_json()
    assert made.run.tables() == ["sweep"]
    assert list(made.run.settings.to_json()) == [
        *("model", "revision", "weights", "configuration", "buffers", "tokenizer", "bos_token", "dtype", "device"),
        *("attention_backend", "data", "tokens", "window", "bos"),
        *("token_hash", "windows_per_unit", "experiments"),
    ]
    rows = pl.read_parquet(tmp_path / "run" / "shards" / "sweep" / "00000.parquet")
    assert rows["document"].is_sorted()
    assert precision_goal(made.run.manifest) is None


def test_the_command_line_and_the_page_say_how_much_text_it_took(text, tmp_path, monkeypatch):
    monkeypatch.setattr(console, "width", 1000)
    folder = save("gpt2", tmp_path / "model")
    arguments = ("--data", text, "--window", WINDOW, "--tokens", TOKENS, "--edits", "drop")
    arguments += ("--precision", 0.9, "--out", tmp_path / "run")
    said = run("sweep", folder, *arguments)
    found = json.loads((tmp_path / "run" / "run.json").read_text())["precision"]
    assert found["reached"]
    sentence = (
        f"reached with {found['tokens']:,} tokens of {found['documents']} documents instead of the paper’s 1,000,000"
    )
    assert sentence in said
    assert "(projected by the square root law, not measured)" in said
    assert sentence in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    again = run("sweep", folder, *arguments)
    assert sentence in again


def test_other_commands_have_no_such_goal(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["depthscope", "lens", "--precision", "0.1"])
    with pytest.raises(SystemExit) as status:
        main()
    assert status.value.code == 2
    assert "No such option" in capsys.readouterr().err

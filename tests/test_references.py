"""Reference runs: what is kept of a run, what is refused, and how it is drawn over other models."""

import json
import re
import tomllib
from pathlib import Path

import polars as pl
import pytest
from report_runs import all_tables, made_up_stages, make_run
from typer.testing import CliRunner

import depthscope as ds
from depthscope.cli import app
from depthscope.errors import RunError
from depthscope.report.comparison import side_by_side
from depthscope.report.figures import figures
from depthscope.report.page import render
from depthscope.report.reference_lines import DRAWN_IN, with_references
from depthscope.run import references
from depthscope.run.references import TABLES, reference_folder, reference_names, reference_runs, store_reference
from depthscope.run.store import RunDirectory

FACTS = {"title": "Deep", "licence": "made up"}


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "own", 6, model="own", tables=all_tables(6), stages=made_up_stages(6))


@pytest.fixture
def deep(tmp_path, monkeypatch):
    """A reference run of 9 layers, the only one there is."""
    made = make_run(tmp_path / "deep", 9, model="/home/me/deep.gguf", tables=all_tables(9), stages=made_up_stages(9))
    folder = tmp_path / "reference"
    store_reference(made, "deep", FACTS, folder)
    monkeypatch.setattr(references, "reference_folder", lambda: folder)
    (found,) = reference_runs()
    return found


def test_a_reference_run_has_the_run_s_numbers_and_no_paths(deep, tmp_path):
    made = RunDirectory.reading(tmp_path / "deep")
    assert deep.complete
    assert deep.tables() == sorted({*TABLES} - {"tuned_lens"})
    for name in ("sweep", "lens", "norms", "attention", "neuron_counts"):
        assert deep.table(name).equals(made.table(name))
    assert deep.stages == made.stages
    content = (deep.path / "run.json").read_text()
    assert "/home" not in content
    assert "deep.gguf" not in content
    assert json.loads(content)["reference"] | FACTS == json.loads(content)["reference"]


def test_what_cannot_become_a_reference_is_refused(run, tmp_path):
    with pytest.raises(RunError, match=r"'Own Run' is no name of a reference run: expected lower-case"):
        store_reference(run, "Own Run", FACTS, tmp_path / "r")
    unfinished = make_run(tmp_path / "half", 6, tables=all_tables(6), complete=False)
    with pytest.raises(RunError, match="incomplete"):
        store_reference(unfinished, "half", FACTS, tmp_path / "r")
    with pytest.raises(RunError, match="no table 'sweep'"):
        store_reference(make_run(tmp_path / "bare", 6), "bare", FACTS, tmp_path / "r")
    named = make_run(tmp_path / "named", 6, tables=all_tables(6), data="/home/me/texts")
    with pytest.raises(RunError, match="holds paths of this machine, such as '/home/me/texts'"):
        store_reference(named, "own", FACTS, tmp_path / "r")
    assert not (tmp_path / "r").exists()


def test_the_frame_has_every_curve_with_where_it_comes_from(deep):
    frame = ds.reference("deep")
    assert frame.columns[:7] == [
        "model", "relative_depth", "quantisation", "dtype", "date", "depthscope", "licence",
    ]  # fmt: skip
    assert frame["licence"].unique().to_list() == ["made up"]
    swept = frame.filter(table="sweep", edit="drop", metric="kl").sort("layer")
    own = deep.table("sweep").filter(edit="drop", metric="kl").sort("layer")
    assert swept["mean"].to_list() == own["mean"].to_list()
    assert swept["relative_depth"].to_list() == pytest.approx([layer / 8 for layer in range(9)])
    lens = frame.filter(table="lens", metric="kl").sort("layer")
    assert lens["relative_depth"].to_list() == pytest.approx([layer / 9 for layer in range(10)])
    assert frame.filter(pl.col("edit") == "none")["relative_depth"].null_count() > 0
    with pytest.raises(RunError, match="no reference run 'gpt5': expected all, or some of deep"):
        ds.reference("deep,gpt5")


def test_references_are_drawn_at_relative_depth_behind_the_run_s_own_curves(run, deep):
    drawn = set()
    for kind in figures(run).values():
        plain = kind.build(run)
        section = with_references(plain, [deep])
        for before, after in zip(plain.panels, section.panels, strict=True):
            more = after.points[: len(after.points) - len(before.points)]
            assert after.marks[len(more) :] == before.marks
            if more:
                drawn.add(after.name)
                (line,) = more
                last = 6 if after.name.startswith("lens") else 5
                assert [x.mean for x in line.x] == pytest.approx([last * share for share in line.shares])
                assert line.name == "Deep (reference)"
        assert with_references(plain, []) is plain
    assert drawn == set(DRAWN_IN)
    assert "Deep (reference)" in render(run, [deep])
    assert "Deep (reference)" not in render(run)


def test_a_reference_is_a_model_of_a_comparison(run, deep, tmp_path):
    assert [one.look.title for one in side_by_side([run, deep])] == ["own", "Deep (reference)"]
    page, said = tmp_path / "page.html", CliRunner().invoke
    done = said(app, ["compare", str(run.path), "--reference", "deep", "--out", str(page)])
    assert done.exit_code == 0, done.output
    assert "Deep (reference)" in page.read_text()
    done = said(app, ["report", str(run.path), "--reference", "all", "--out", str(page)])
    assert done.exit_code == 0, done.output
    assert "Deep (reference)" in page.read_text()


def test_the_package_s_references_are_small_complete_and_packaged():
    names = reference_names()
    assert {"bookshelf-gpt2", "bookshelf-neox"} <= set(names)
    stored = [file for file in reference_folder().rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in stored) < 1_000_000
    for one in reference_runs(names):
        assert one.complete
        assert references.about(one)["licence"]
        assert not re.search(r'"(/|~)', (one.path / "run.json").read_text())
    patterns = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    package = reference_folder().parents[1]
    shipped = {
        file for glob in patterns["tool"]["setuptools"]["package-data"]["depthscope"] for file in package.glob(glob)
    }
    assert set(stored) <= shipped

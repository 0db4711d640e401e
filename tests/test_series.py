"""A series of studies: what each holds, that only what is new is done, and when in training effects form."""

import json
import os
import shutil

import numpy as np
import pytest
from drawn_plots import wait_until_drawn
from playwright.sync_api import sync_playwright
from saved_models import save, tables
from typer.testing import CliRunner

import depthscope as ds
from depthscope.cli import app
from depthscope.cli.groups import Loading, Sampling, group_parameters
from depthscope.errors import DepthscopeError
from depthscope.report.series_page import render_series
from depthscope.run.series import SERIES_FILE
from depthscope.schema.series import training_step
from depthscope.statistics.half_change import half_change
from depthscope.studies import run_series as running
from depthscope.studies.planned import LOADING, READING
from depthscope.studies.recipe import planned_from, read_recipe

SHORT = {"experiments": ["sweep", "lens"], "edits": ["drop"], "window": 16}
FAMILIES = ("gpt2", "gpt_neox", "llama", "mamba", "gemma2")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Three checkpoints of a training run, as folders in a folder."""
    folder = tmp_path_factory.mktemp("training")
    for seed, step in enumerate((2, 0, 10)):
        save("gpt2", folder / f"step{step}", seed=seed)
    return folder


@pytest.fixture(scope="module")
def trained(checkpoints, tmp_path_factory):
    out = tmp_path_factory.mktemp("series") / "trained"
    return ds.study_revisions(str(checkpoints), "all", out=out, tokens=512, progress=False, **SHORT)


def recipe(tmp_path, text):
    file = tmp_path / "models.toml"
    file.write_text(text)
    return file


def loads(monkeypatch):
    """The models that are loaded from now on."""
    seen, load = [], running.load

    def counted(source, **options):
        seen.append(source)
        return load(source, **options)

    monkeypatch.setattr(running, "load", counted)
    return seen


@pytest.mark.parametrize(
    ("name", "step"),
    [("step1000", 1000), ("stage1-step1000-tokens5B", 1000), ("checkpoint-20", 20), ("0007", 7), ("main", None)],
)
def test_the_step_of_training_is_in_a_checkpoints_name(name, step):
    assert training_step(name) == step


def test_checkpoints_are_studied_in_the_order_of_their_steps(trained, checkpoints):
    assert list(trained.studies) == [f"{checkpoints.name}-step{step}" for step in (0, 2, 10)]
    table = trained.table("sweep")
    assert table["step"].unique(maintain_order=True).to_list() == [0, 2, 10]
    assert table["checkpoint"].unique(maintain_order=True).to_list() == ["step0", "step2", "step10"]
    assert not trained.failed


def test_a_study_of_a_series_is_the_study_alone(trained, checkpoints, tmp_path):
    alone = ds.study(str(checkpoints / "step2"), out=tmp_path / "alone", tokens=512, progress=False, **SHORT)
    assert tables(trained.path / "runs" / f"{checkpoints.name}-step2") == tables(alone.path)


@pytest.mark.parametrize("family", FAMILIES)
def test_formation_is_that_of_its_definition(tmp_path, family):
    for seed, step in enumerate((0, 2, 10)):
        save(family, tmp_path / "own" / f"step{step}", seed=seed)
    settings = SHORT | {"experiments": ["sweep"], "window": 8}
    trained = ds.study_revisions(
        str(tmp_path / "own"), "all", out=tmp_path / "out", tokens=96, progress=False, **settings
    )
    table = trained.table("formation")
    runs = list(trained.studies.values())
    places = np.log1p([0.0, 2.0, 10.0])
    for layer in range(len(runs[0].table("sweep").filter(edit="drop", metric="kl"))):
        curve = [run.table("sweep").filter(edit="drop", metric="kl", layer=layer)["mean"][0] for run in runs]
        row = table.filter(layer=layer, metric="half_change_step").row(0, named=True)
        change = table.filter(layer=layer, metric="change").row(0, named=True)
        assert change["mean"] == pytest.approx(curve[-1] - curve[0], abs=1e-12)
        if row["mean"] is not None:
            middle = (curve[0] + curve[-1]) / 2
            crossed = [i for i in (1, 2) if (curve[i] - middle) * (curve[-1] - middle) > 0]
            i = crossed[0]
            share = (middle - curve[i - 1]) / (curve[i] - curve[i - 1])
            assert row["ci_low"] <= row["ci_high"]
            assert row["mean"] == pytest.approx(np.expm1(places[i - 1] + share * (places[i] - places[i - 1])))


def test_half_of_a_change_is_found_and_covered():
    """Curves that rise at a known place, with noise between documents: nine intervals of ten hold it, and no change is none."""
    rng = np.random.default_rng(0)
    places = np.arange(9.0)
    true = 1 / (1 + np.exp(-2 * (places - 4.25)))
    middle = (true[0] + true[-1]) / 2
    where = np.interp(middle, true, places)
    held = []
    for _ in range(60):
        tokens = rng.integers(50, 150, 40)
        level = rng.lognormal(0, 0.3, (40, 1, 1))
        noise = rng.normal(0, 0.05, (40, 9, 2))
        means = np.stack([true, np.full(9, 0.5)], 1)[None] * level + noise
        found = half_change(means * tokens[:, None, None], tokens, places)
        held.append(found.low[0] <= where <= found.high[0])
        assert np.isnan(found.place[1]) or found.change_low[1] > 0 or found.change_high[1] < 0
    assert np.mean(held) >= 0.88


def test_the_same_command_does_nothing_again_and_changed_files_are_seen(checkpoints, tmp_path, monkeypatch):
    folder = shutil.copytree(checkpoints, tmp_path / "own")
    out = tmp_path / "out"

    def go():
        seen = loads(monkeypatch)
        ds.study_revisions(str(folder), ["step0", "step2"], out=out, tokens=64, progress=False, **SHORT)
        monkeypatch.undo()
        return [one.rsplit("/", 1)[1] for one in seen]

    assert go() == ["step0", "step2"]
    before = tables(out)
    assert go() == []
    os.utime(folder / "step2" / "model.safetensors")
    assert go() == ["step2"], "it may be another model now"
    assert tables(out) == before
    (out / "runs" / "own-step0" / "tables" / "sweep.parquet").unlink()
    assert go() == ["step0"]
    assert tables(out) == before


def test_adding_to_a_recipe_does_only_what_is_new(checkpoints, tmp_path, monkeypatch):
    out = tmp_path / "out"
    models = f'tokens = 64\nwindow = 16\nedits = ["drop"]\n[[models]]\nmodel = "{checkpoints / "step0"}"\n'

    def go(text):
        seen = loads(monkeypatch)
        series = ds.study_recipe(recipe(tmp_path, text), out=out, progress=False)
        monkeypatch.undo()
        return series, [one.rsplit("/", 1)[1] for one in seen]

    first = 'experiments = ["sweep"]\n' + models
    series, seen = go(first)
    assert (list(series.studies), seen) == (["step0"], ["step0"])
    second = first + f'[[models]]\nmodel = "{checkpoints / "step2"}"\nname = "later"\n'
    series, seen = go(second)
    assert (list(series.studies), seen) == (["step0", "later"], ["step2"])
    third = second.replace('["sweep"]', '["sweep", "lens"]')
    shards = {path: path.read_bytes() for path in out.glob("runs/*/shards/sweep/*")}
    series, seen = go(third)
    assert seen == ["step0", "step2"]
    assert series.table("lens")["study"].unique(maintain_order=True).to_list() == ["step0", "later"]
    assert shards == {path: path.read_bytes() for path in out.glob("runs/*/shards/sweep/*")}
    assert go(third)[1] == []


def test_each_model_is_studied_on_each_text_and_loaded_once(checkpoints, tmp_path, monkeypatch, short_text):
    seen = loads(monkeypatch)
    file = recipe(
        tmp_path,
        f'tokens = 64\nwindow = 16\nexperiments = ["sweep"]\nedits = ["drop"]\n'
        f'[[models]]\nmodel = "{checkpoints / "step0"}"\n[[models]]\nmodel = "{checkpoints / "step2"}"\nwindow = 8\n'
        f'[[texts]]\ndata = "bookshelf"\n[[texts]]\ndata = "{short_text}"\nname = "own"\npack = true\n',
    )
    series = ds.study_recipe(file, out=tmp_path / "out", progress=False)
    assert list(series.studies) == ["step0-bookshelf", "step0-own", "step2-bookshelf", "step2-own"]
    assert len(seen) == 2
    assert [study.run.settings.window for study in series.studies.values()] == [16, 16, 8, 8]
    assert [study.run.settings.pack is not None for study in series.studies.values()] == [False, True] * 2


def test_training_runs_with_other_settings_are_apart(checkpoints, tmp_path):
    models = "".join(
        f'[[models]]\nmodel = "{checkpoints}"\nrevisions = "all"\nname = "{name}"\nwindow = {window}\n'
        for name, window in (("short", 8), ("long", 16))
    )
    file = recipe(tmp_path, f'tokens = 64\nexperiments = ["sweep"]\nedits = ["drop"]\n{models}')
    series = ds.study_recipe(file, out=tmp_path / "out", progress=False)
    rows = series.table("formation").group_by("study", maintain_order=True).len()
    assert sorted(rows["study"]) == ["long-step10", "short-step10"]
    assert rows["len"].n_unique() == 1
    page = render_series(series.directory)
    assert "training-0-drop-kl" in page
    assert "training-1-drop-kl" in page
    assert "long-step10" in page


def test_a_study_that_cannot_be_done_is_reported_and_the_others_are_done(checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints, tmp_path / "own")
    (folder / "step2" / "model.safetensors").write_bytes(b"no weights")
    out = tmp_path / "out"
    command = ["study", str(folder), "--revisions", "all", "--tokens", "64", "--window", "16", "--edits", "drop"]
    result = CliRunner().invoke(app, [*command, "--experiments", "sweep", "--out", str(out)])
    said = " ".join(result.output.split())
    assert result.exit_code != 0
    assert "own-step0: done" in said
    assert "own-step10: done" in said
    series = ds.Series(out)
    assert list(series.failed) == ["own-step2"]
    assert "model.safetensors" in series.failed["own-step2"]
    assert "own-step2" in render_series(series.directory)
    shutil.copy(checkpoints / "step2" / "model.safetensors", folder / "step2")
    result = CliRunner().invoke(app, [*command, "--experiments", "sweep", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "own-step0: unchanged" in result.output
    assert not ds.Series(out).failed


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[models]", "is not TOML"),
        ("tokens = 3", "it has no models"),
        ('[[models]]\nmodell = "x"', "did you mean model"),
        ('tokenss = 3\n[[models]]\nmodel = "bookshelf-gpt2"', "did you mean tokens"),
        ('window = 1\n[[models]]\nmodel = "bookshelf-gpt2"', "window of 1 tokens is too short"),
        ("[[models]]\nmodel = 3", "model is 3: expected text"),
        ('[[models]]\nmodel = "a"\nrevisions = [1]', "revisions is [1]"),
        ('[[models]]\nmodel = "a"\nrevision = "x"\nrevisions = ["y"]', "expected one of them"),
        ('[[models]]\nmodel = "a/b"\nrevisions = "all"', "is for a folder of checkpoints"),
        ('[[models]]\nmodel = "bookshelf-gpt2"\n[[models]]\nmodel = "bookshelf-gpt2"', "Give one of the models"),
        ('[[models]]\nmodel = "bookshelf-gpt2"\n[[texts]]\npack = 3', "pack is 3"),
        ('[[models]]\nmodel = "bookshelf-gpt2"\n[[texts]]\ndata = "nowhere.txt"', "no text at nowhere.txt"),
        ('[[models]]\nmodel = "bookshelf-gpt2"\nname = "../x"\n', None),
    ],
)
def test_a_recipe_with_a_mistake_says_where(tmp_path, text, says):
    file = recipe(tmp_path, text)
    if says is None:  # a name never leads out of the series
        assert [one.name for one in read_recipe(file)] == ["x"]
        return
    with pytest.raises(DepthscopeError, match=r"models\.toml") as caught:
        read_recipe(file)
    assert says in str(caught.value)


def test_a_recipe_knows_every_option_of_the_command():
    loading = {one.name for one in group_parameters(Loading)} - {"revision"}
    assert set(LOADING) == loading
    assert set(READING) == {one.name for one in group_parameters(Sampling)}
    (one,) = planned_from({"models": [{"model": "bookshelf-gpt2", "dtype": "float64"}], "by-class": True})
    assert one.loading == {"dtype": "float64"}
    assert "sweep_classes" in one.checked.experiments


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--revisions", "step0", "--revision", "x"), "expected one of the two"),
        (("--revisions", "step5"), "has no checkpoint 'step5': expected some of step0, step2, step10"),
        (("--recipe", "models.toml", "--tokens", "5"), "move tokens into the file"),
        (("--recipe", "nowhere.toml"), "nowhere.toml cannot be read"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(checkpoints, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    model = [] if "--recipe" in arguments else [str(checkpoints)]
    result = CliRunner().invoke(app, ["study", *model, *arguments])
    assert isinstance(result.exception, DepthscopeError)
    assert says in str(result.exception)
    assert list(tmp_path.iterdir()) == []


def test_a_model_on_this_machine_has_no_revision(checkpoints):
    for source in (str(checkpoints / "step0"), "bookshelf-gpt2"):
        with pytest.raises(DepthscopeError, match="has no revision 'step0'"):
            ds.load(source, revision="step0")


def test_a_series_is_not_put_into_other_files(trained, checkpoints, tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(DepthscopeError, match=r"other files \(letter.txt\)"):
        ds.study_revisions(str(checkpoints), "all", out=tmp_path, tokens=64, **SHORT)
    with pytest.raises(DepthscopeError, match="directory of one study"):
        ds.study_revisions(str(checkpoints), "all", out=next(iter(trained.studies.values())).path, **SHORT)


def test_a_damaged_series_file_is_said_and_its_studies_are_kept(trained, tmp_path):
    out = shutil.copytree(trained.path, tmp_path / "out")
    content = json.loads((out / SERIES_FILE).read_text())
    content["members"][0]["name"] = "../../elsewhere"
    (out / SERIES_FILE).write_text(json.dumps(content))
    with pytest.raises(DepthscopeError, match="Delete it and give the command"):
        ds.Series(out)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on this machine")
def test_the_page_shows_each_quantity_by_depth_and_training(trained):
    page = trained.report()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 390, "height": 900})
        problems = []
        shown.on("pageerror", lambda error: problems.append(str(error)))
        shown.goto(page.as_uri())
        for plot in shown.query_selector_all(".plot"):
            plot.scroll_into_view_if_needed()
        wait_until_drawn(shown)
        assert shown.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        names = shown.eval_on_selector_all("[data-panel]", "all => all.map(one => one.dataset.panel)")
        browser.close()
    assert not problems
    assert {"training-0-loss", "training-0-drop-kl", "training-0-predictions-kl"} <= set(names)
    text = page.read_text()
    for study in trained.studies:
        assert f'href="runs/{study}/report.html"' in text
    assert len(names) == len(set(names))

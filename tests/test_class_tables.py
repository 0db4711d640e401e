"""The sweep, the lens and maps by class of the predicted token: against loops over models rebuilt by hand, and their laws."""

import naive
import numpy as np
import polars as pl
import pytest
import torch
from rebuilt import logits_of, with_order
from report_runs import class_tables_of, make_run
from test_sweep import run, save

import depthscope as ds
from depthscope.cli.console import console
from depthscope.data.corpus import Corpus
from depthscope.data.windows import Windows, make_windows
from depthscope.engine.baseline import Baseline
from depthscope.engine.measure_routes import RouteMeter
from depthscope.errors import DepthscopeError, UnsupportedError
from depthscope.experiments import class_tables, sweep
from depthscope.experiments.experiment import Subject
from depthscope.models.load import load
from depthscope.report.figures import FIGURES
from depthscope.schema.class_tables import LENS_CLASSES_TABLE, MAP_CLASSES_TABLE, SWEEP_CLASSES_TABLE
from depthscope.schema.experiments import options as declared_options
from depthscope.schema.token_classes import CLASSINGS, CONTEXT_EDGES, ENTROPY_EDGES
from depthscope.studies.read_windows import read_windows
from depthscope.studies.settings import study_settings

DOCUMENTS, LENGTH = np.array([3, 3, 0, 5, 5, 5]), 12


def subject_of(model, windows, **options):
    defaults = {name: option.default for name, option in declared_options().items()}
    return Subject(model, Corpus(), windows, windows.bos, {**defaults, **options})


@pytest.fixture
def windows():
    ids = np.random.default_rng(1).integers(1, 12, (len(DOCUMENTS), LENGTH + 1))
    return Windows(ids.astype(np.int32), DOCUMENTS, np.zeros(len(DOCUMENTS), dtype=np.int64), "none")


def entropy_band(values):
    edges = (*ENTROPY_EDGES, np.inf)
    names = ("0-0.5", "0.5-1", "1-2", "2-4", "4+")
    return [[names[next(i for i, edge in enumerate(edges) if value < edge)] for value in row] for row in values]


def classes_of(windows, entropy):
    """(classing, class) -> whether each predicted token is in it, for the classings that need loops over nothing else."""
    found = {}
    for name, rows in (
        ("entropy", entropy_band(entropy)),
        ("position", [["1-8" if place < CONTEXT_EDGES[0] else "9-32" for place in range(LENGTH)]] * len(windows)),
        (
            "repeated",
            [
                ["new" if token not in row[: place + 1] else "before" for place, token in enumerate(row[1:])]
                for row in windows.ids.tolist()
            ],
        ),
    ):
        for one in {one for row in rows for one in row}:
            found[name, one] = np.array(rows) == one
    return found


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma2", "qwen3_moe", "mamba"])
def test_the_sweep_by_class_is_its_definition_on_models_rebuilt_by_hand(tiny_of, family, windows):
    model = tiny_of(family)
    reading = class_tables.sweep_classes(subject_of(model, windows, edits=("drop",)))
    table = reading.tables([read_windows(model, [reading], windows)[reading.name]])["sweep_classes"]
    assert dict(table.schema) == SWEEP_CLASSES_TABLE
    ids, targets = windows.batch()
    own = logits_of(model.hf, ids)
    base = naive.measures(own, own, targets)
    layers = {
        layer: naive.measures(own, logits_of(with_order(model.hf, [i for i in range(4) if i != layer]), ids), targets)
        for layer in range(4)
    }
    for (classing, name), inside in classes_of(windows, base["entropy"].numpy()).items():
        if name == "before":
            continue
        for layer, measured in layers.items():
            rows = table.filter(edit="drop", layer=layer, classing=classing, token_class=name)
            found = {metric: value for metric, *value in rows.select("metric", "mean", "ci_low", "ci_high").rows()}
            values = {metric: of.numpy() for metric, of in measured.items()}
            values["loss_change"] = values["loss"] - base["loss"].numpy()
            for metric in ("kl", "agreement", "loss", "loss_change"):
                assert found[metric][0] == pytest.approx(values[metric][inside].mean(), abs=2e-5)
            ratio = values["kl"][inside].mean() / values["kl"].mean()
            assert found["kl_ratio"][0] == pytest.approx(ratio, rel=1e-3)
            assert rows["tokens"].unique().item() == inside.sum()
            assert rows["documents"].unique().item() == len(set(DOCUMENTS[inside.any(1)]))
    assert {"word_place", "kind"} <= reading.not_done.keys()


def test_the_classes_of_a_classing_add_up_to_the_whole_and_are_measured_once(tmp_path, few, monkeypatch):
    model = load(save("llama", tmp_path / "model"))
    text, made = ds.corpus(few, tokens=200), []
    whole = RouteMeter._against
    monkeypatch.setattr(RouteMeter, "_against", lambda self, baseline: made.append(1) or whole(self, baseline))
    names = "sweep,lens,map"
    study = ds.study(
        model, text, out=tmp_path / "run", window=20, experiments=names, edits="drop", kind="drop_range", by_class=True,
        progress=False, unit_tokens=100,
    )  # fmt: skip
    assert len(made) == 2 * 2, "two units, a sweep and a map"
    names = {"sweep", "lens", "map"}
    assert set(study.run.settings.experiments) == {*names, *(f"{name}_classes" for name in names)}
    for name, schema in (("sweep", SWEEP_CLASSES_TABLE), ("lens", LENS_CLASSES_TABLE), ("map", MAP_CLASSES_TABLE)):
        table, all_tokens = study.table(f"{name}_classes"), study.table(name)
        assert dict(table.schema) == schema
        keys = [column for column in ("edit", "kind", "layer", "other") if column in table.columns]
        parts = table.filter(pl.col("metric") != "kl_ratio").group_by(*keys, "classing", "metric").agg(
            mean=(pl.col("mean") * pl.col("tokens")).sum() / pl.col("tokens").sum(), tokens=pl.col("tokens").sum()
        )  # fmt: skip
        both = parts.join(all_tokens, on=[*keys, "metric"], suffix="_all")
        assert len(both) == len(parts)
        assert both["tokens"].to_list() == both["tokens_all"].to_list()
        np.testing.assert_allclose(both["mean"], both["mean_all"], atol=1e-9)
        assert set(table["classing"]) == {"frequency", "word_place", "kind", "repeated", "position", "entropy"}
    page = study.report().read_text(encoding="utf-8")
    assert all(f'id="{name}_classes"' in page for name in ("sweep", "lens", "map"))


def test_the_numbers_do_not_depend_on_work_units_or_on_when_a_run_gets_them(tmp_path, few):
    model = load(save("gpt2", tmp_path / "model"))
    text = ds.corpus(few, tokens=200)
    about = {"window": 20, "edits": "drop", "progress": False}
    first = ds.study(model, text, out=tmp_path / "a", experiments="sweep", by_class=True, unit_tokens=60, **about)
    ds.study(model, text, out=tmp_path / "b", experiments="sweep", **about)
    second = ds.study(model, text, out=tmp_path / "b", experiments="sweep_classes", **about)
    one, other = first.table("sweep_classes"), second.table("sweep_classes")
    numbers = ["mean", "ci_low", "ci_high"]
    assert one.drop(numbers).equals(other.drop(numbers))
    np.testing.assert_allclose(one[numbers].to_numpy(), other[numbers].to_numpy(), rtol=1e-4, atol=1e-6)
    assert set(second.run.settings.experiments) == {"sweep", "sweep_classes"}
    classes = second.run.settings.of("sweep_classes")["classes"]
    assert classes["repeated"] == ["new", "seen", "2-gram", "3-gram"]
    again = ds.study(model, text, out=tmp_path / "a", experiments="sweep", by_class=True, unit_tokens=60, **about)
    assert again.table("sweep_classes").equals(one)


def test_the_extreme_layers_are_those_of_the_table(shelf_run):
    table, picked = shelf_run.table("sweep_classes"), shelf_run.table("sweep_class_layers")
    for row in picked.iter_rows(named=True):
        ratios = table.filter(
            edit=row["edit"], classing=row["classing"], token_class=row["token_class"], metric="kl_ratio"
        )
        extreme = ratios["mean"].max() if row["extreme"] == "highest" else ratios["mean"].min()
        assert row["mean"] == pytest.approx(extreme)
        own = ratios.filter(layer=row["layer"])
        assert own["mean"].item() == pytest.approx(extreme)
        if row["ci_low"] is not None:
            assert row["ci_low"] <= row["mean"] <= row["ci_high"]
            assert row["ci_high"] / row["ci_low"] > own["ci_high"].item() / own["ci_low"].item()
    assert picked["ci_low"].null_count() < len(picked), "some have intervals"
    assert picked["cells"].n_unique() == 1


@pytest.fixture(scope="module")
def shelf_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("classes") / "run"
    settings = {"window": 32, "edits": "drop", "experiments": "sweep", "by_class": True}
    return ds.study(ds.load("bookshelf-gpt2"), ds.corpus(tokens=384), out=out, progress=False, **settings)


def test_the_command_and_its_summary(tmp_path, monkeypatch):
    monkeypatch.setattr(console, "width", 160)
    folder = save("gpt2", tmp_path / "model")
    said = run("lens", folder, "--by-class", "--tokens", 240, "--window", 20, "--out", tmp_path / "run")
    assert "highest ratio" in said
    assert "Own entropy: entropy" in said
    assert set(ds.Study(tmp_path / "run").run.settings.experiments) == {"lens", "lens_classes"}


def page_section(path, name, **changes):
    """The section of tables whose ratios and intervals are the same for all classes but those in `changes`."""
    tables = class_tables_of(4, 7)
    chosen = f"{name}_class_layers"
    values = {"mean": 1.0, "ci_low": 0.9, "ci_high": 1.1}
    table = tables[chosen].with_columns(pl.lit(value).alias(column) for column, value in values.items())
    for (token_class, extreme), bounds in changes.get("picked", {}).items():
        here = (pl.col("token_class") == token_class) & (pl.col("extreme") == extreme)
        table = table.with_columns(
            pl.when(here).then(pl.lit(bound)).otherwise(pl.col(column)).alias(column)
            for column, bound in zip(values, bounds, strict=True)
        )
    return FIGURES[f"{name}_classes"].build(make_run(path, 4, tables={**tables, chosen: table}))


def test_the_page_says_what_the_intervals_of_all_ratios_show(tmp_path):
    none = page_section(tmp_path / "none", "sweep")
    assert none.sentences[0] == "For no class of predictions is the KL shown to differ from that of all tokens."
    assert none.sentences[-1].startswith("0 of 28 classes are shown to depend on some layers more than on others")
    picked = {("continues", "highest"): (2.0, 1.5, 2.5), ("continues", "lowest"): (1.2, 1.05, 1.4)}
    some = page_section(tmp_path / "some", "sweep", picked={**picked, ("new", "lowest"): (0.5, 0.4, 0.7)})
    assert some.sentences == [
        "Predictions that depend more on a layer than others do (KL relative to all tokens): continues a word at layer 0, "
        "2.00 (1.50\u00a0to\u00a02.50).",
        "Predictions that depend less on one (KL relative to all tokens): new token at layer 0, "
        "0.500 (0.400\u00a0to\u00a00.700).",
        "2 of 28 classes are shown to depend on some layers more than on others, relative to all tokens.",
    ]
    assert [panel.name for panel in some.panels] == [f"sweep_classes-{name}" for name in CLASSINGS]
    assert all(len(panel.key) == len(panel.marks) for panel in some.panels)
    lens = page_section(tmp_path / "lens", "lens", picked={("1-10", "lowest"): (0.5, 0.4, 0.7)})
    assert "are closer to it (KL relative to all tokens): rank 1–10 at x_0, 0.500" in lens.sentences[0]


def test_what_cannot_be_broken_down_is_refused(tiny_of, windows, monkeypatch):
    assert study_settings(experiments="norms,sweep", by_class=True).experiments == ("sweep", "norms", "sweep_classes")
    with pytest.raises(DepthscopeError, match="--by-class breaks down sweep, lens, map, but only norms would run"):
        study_settings(experiments="norms", by_class=True)
    monkeypatch.setattr(class_tables, "MOST_ROWS", 100)
    subject = subject_of(tiny_of("gpt2"), windows, edits=("drop",))
    with pytest.raises(
        UnsupportedError,
        match=r"rows of map by 19 classes are [0-9]+: expected at most 100. Use --band, or fewer kinds",
    ):
        class_tables.map_classes(subject)
    assert class_tables.sweep_classes(subject).rows.names


def test_what_is_shared_is_that_of_its_own_windows(tiny_of, windows):
    """A baseline that is cut shares nothing with the whole."""
    model = tiny_of("gpt2")
    reading = class_tables.sweep_classes(subject_of(model, windows, edits=("drop",)))
    plain = sweep.Sweep(model, LENGTH, ["drop"])
    with model.measuring():
        baseline = Baseline(model, *windows.batch(), keep=reading.keep)
        whole = reading.whole.values(baseline)
        assert torch.equal(plain.meter.against(baseline).kl, reading.whole.meter.against(baseline).kl)
        part = reading.whole.values(baseline.part(2, 4))
    assert part.shape[2] == 2 * LENGTH
    np.testing.assert_allclose(part, whole[..., 2 * LENGTH : 4 * LENGTH], atol=1e-6)


def test_text_of_one_document_has_means_without_intervals(gpt2):
    windows = make_windows(Corpus(tokens=64), gpt2, length=32).take(np.array([0]))
    reading = class_tables.lens_classes(subject_of(gpt2, windows))
    tables = reading.tables([read_windows(gpt2, [reading], windows)[reading.name]])
    assert tables["lens_classes"]["ci_low"].null_count() == len(tables["lens_classes"])
    assert tables["lens_classes"]["mean"].null_count() == 0
    assert tables["lens_class_layers"]["ci_low"].null_count() == len(tables["lens_class_layers"])

"""Maps of ranges and pairs: cells against models rebuilt by hand, tables against naive definitions, the best cells."""

import naive
import numpy as np
import polars as pl
import pytest
from rebuilt import logits_of, with_order
from report_runs import all_tables, make_run
from test_sweep import run, save

import depthscope as ds
from depthscope.cli.console import console
from depthscope.data.windows import make_windows
from depthscope.errors import DepthscopeError, RouteError
from depthscope.experiments.layer_maps import LayerMaps, map_cells, places
from depthscope.models.load import load
from depthscope.report.figures import FIGURES
from depthscope.report.sections.layer_maps import PANELS
from depthscope.schema.layer_maps import BEST, KINDS, MAP_BEST_TABLE, MAP_TABLE
from depthscope.studies.settings import study_settings

DEPTH = 4


def order(kind: str, i: int, j: int) -> list[int]:
    """The blocks of a cell's model, by the definition of its kind."""
    own = list(range(DEPTH))
    if kind == "drop_range":
        return own[:i] + own[j + 1 :]
    if kind == "repeat_range":
        return own[: j + 1] + own[i:]
    if kind == "swap_pair":
        own[i], own[j] = own[j], own[i]
        return own
    return [block for block in own if block not in (i, j)]


def test_every_cell_is_the_model_rebuilt_and_the_table_is_its_naive_definition(tmp_path, monkeypatch):
    monkeypatch.setattr(console, "width", 160)
    folder = save("llama", tmp_path / "model")
    said = run("map", folder, "--tokens", 240, "--window", 20, "--out", tmp_path / "run")
    assert "repeat-range" in said
    model = load(folder)
    study = ds.Study(tmp_path / "run")
    table, best = study.table("map"), study.table("map_best")
    assert dict(table.schema) == MAP_TABLE
    assert dict(best.schema) == MAP_BEST_TABLE
    windows = make_windows(ds.corpus(tokens=240), model, length=20)
    ids, targets = windows.batch()
    own = logits_of(model.hf, ids)
    base = naive.measures(own, own, targets)["loss"]
    values = {}
    for kind, i, j in table.select("kind", "layer", "other").unique().iter_rows():
        edited = logits_of(with_order(model.hf, order("drop_pair" if kind == "drop" else kind, i, j)), ids)
        found = naive.measures(own, edited, targets)
        values[kind, i, j] = {"kl": found["kl"], "agreement": found["agreement"], "loss_change": found["loss"] - base}
    for (kind, i, j), own_values in values.items():
        if kind in KINDS and KINDS[kind].pair:
            singles = (values["drop", layer, layer]["kl"] for layer in (i, j))
            own_values["interaction"] = own_values["kl"] - sum(singles)
    assert len(table) == 3 * (10 + 10 + 6 + 6 + 4) + 12
    for kind, i, j, metric, mean, low, high in table.select(*MAP_TABLE).drop("unit", "tokens", "documents").iter_rows():
        expected = naive.estimate(values[kind, i, j][metric].numpy(), windows.document)
        clip = (0, 1 if metric == "agreement" else None) if metric in ("kl", "agreement") else (None, None)
        assert (mean, low, high) == pytest.approx(
            [np.clip(one, *clip) if clip[0] == 0 else one for one in expected], abs=2e-4
        )


def test_the_best_cells_are_those_of_the_table_with_wider_intervals(tmp_path):
    model = load(save("gpt2", tmp_path / "model"))
    text = ds.corpus(tokens=600)
    study = ds.study(model, text, out=tmp_path / "run", window=20, experiments=["map"], progress=False)
    table, best = study.table("map"), study.table("map_best")
    assert {(one.kind, one.metric.name, one.extreme) for one in BEST} == set(
        best.select("kind", "metric", "extreme").unique().iter_rows()
    )
    assert best.filter(kind="drop_range")["layers"].to_list() == [1, 2, 3, 4]
    for row in best.iter_rows(named=True):
        among = table.filter(kind=row["kind"], metric=row["metric"]).with_columns(
            length=pl.col("other") - pl.col("layer") + 1
        )
        assert row["cells"] == len(among)
        if row["layers"]:
            among = among.filter(length=row["layers"])
        assert row["mean"] == (among["mean"].min() if row["extreme"] == "lowest" else among["mean"].max())
        one = among.filter(layer=row["layer"], other=row["other"])
        assert one["mean"].item() == row["mean"]
        assert row["ci_high"] > one["ci_high"].item()
        assert row["ci_low"] <= row["mean"] <= row["ci_high"]


def test_a_band_limits_ranges_and_distances():
    assert places(KINDS["drop_range"], 4, None) == [(i, j) for i in range(4) for j in range(i, 4)]
    assert places(KINDS["drop_range"], 4, 2) == [(0, 0), (0, 1), (1, 1), (1, 2), (2, 2), (2, 3), (3, 3)]
    assert places(KINDS["swap_pair"], 4, 2) == [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)]
    assert places(KINDS["swap_pair"], 4, None) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    with pytest.raises(RouteError, match=r"maps of 1,996,002 cells: expected at most 65,536\. Use --band"):
        map_cells(list(KINDS), 1000 - 1)


def test_a_map_is_part_of_a_study_only_where_it_is_asked_for(tmp_path):
    assert "map" not in study_settings().experiments
    assert study_settings(experiments="lens,map").experiments == ("lens", "map")
    for given, says in (
        ({"kind": "drop_all"}, "unknown kind of map drop_all: expected some of drop-range, repeat-range"),
        ({"kind": ()}, "unknown kind of map"),
        ({"band": 0}, "a band of 0 layers: expected at least 1"),
        ({"band": True}, "setting band: expected int"),
    ):
        with pytest.raises(DepthscopeError, match=says):
            study_settings(experiments="map", **given)


def test_cells_that_a_model_cannot_run_are_counted(tmp_path, monkeypatch):
    model = load(save("gpt2", tmp_path / "model"))

    def refuse(route):
        if 0 not in [step.block for step in route.steps()]:
            raise RouteError("block 1 reads what block 0 stores")

    monkeypatch.setattr(model, "check_route", refuse)
    maps = LayerMaps(model, ["drop_pair"])
    assert maps.not_done == {
        "drop": "1 of 4 cells, 0-0: block 1 reads what block 0 stores",
        "drop_pair": "3 of 6 cells, 0-1: block 1 reads what block 0 stores",
    }
    assert {(cell.layer, cell.other) for cell in maps.cells if cell.kind == "drop_pair"} == {(1, 2), (1, 3), (2, 3)}


def test_the_section_has_one_triangle_per_map_and_says_what_the_best_repeat_does(tmp_path):
    tables = all_tables(6)
    run = make_run(tmp_path / "run", 6, tables=tables)
    section = FIGURES["map"].build(run)
    assert len(section.panels) == sum(map(len, PANELS.values()))
    for panel in section.panels:
        (mark,) = panel.marks
        assert all(value is None for row, line in enumerate(mark.cells) for value in line[row + 1 :])
        beyond = [value.mean > mark.end for line in mark.cells for value in line if value]
        assert 0 < sum(beyond) <= len(beyond) / 5
    assert "No range is shown to lower the loss by running twice" in " ".join(section.sentences)
    improved = tables["map_best"].with_columns(
        pl.when(pl.col("metric") == "loss_change").then(pl.lit(value)).otherwise(pl.col(name)).alias(name)
        for name, value in (("mean", -0.02), ("ci_low", -0.03), ("ci_high", -0.01))
    )
    said = " ".join(
        FIGURES["map"].build(make_run(tmp_path / "better", 6, tables=tables | {"map_best": improved})).sentences
    )
    assert "Running layer 0 twice lowers the loss" in said

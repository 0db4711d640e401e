"""An experiment without a section of its own still shows all of its tables: as lines, as maps, or as text."""

import polars as pl
import pytest
from report_runs import HOSTILE, estimates, plotted

from depthscope.report.canvas import drawn
from depthscope.report.html import specification
from depthscope.report.panels import Heat
from depthscope.report.sections import default
from depthscope.report.sections.default import default_section
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.metric import Metric

DIMENSION = Metric(
    "dimension", "dimensions", "Intrinsic dimension", "how many directions the residual stream fills", 0.0
)
KEPT = Metric("kept", "share", "Kept", "share of tokens that stay as they are", 0.0, 1.0)
LAYERS = {"layer": pl.Int32, **ESTIMATE}


def test_estimates_by_layer_are_lines_with_intervals_a_panel_per_metric():
    table = estimates(LAYERS, [(layer,) for layer in range(5)], [KEPT, DIMENSION])
    section = default_section("toy", "A toy", table, [DIMENSION, KEPT])
    assert [panel.name for panel in section.panels] == ["toy-dimension", "toy-kept"], "in the order of the metrics"
    assert [(panel.title, panel.unit) for panel in section.panels] == [
        ("Intrinsic dimension", "dimensions"),
        ("Kept", "%"),
    ]
    for panel, metric in zip(section.panels, (DIMENSION, KEPT), strict=True):
        rows = table.filter(metric=metric.name).sort("layer")
        (trace,) = plotted(panel)
        assert list(trace.y) == rows["mean"].to_list()
        assert [row[2:] for row in trace.customdata] == [list(row) for row in rows.select("ci_low", "ci_high").rows()]
        assert specification(panel)["relative"], "by relative depth too"
    assert section.definitions == [DIMENSION, KEPT]
    assert (section.tables, section.missing, section.across) == ([], [], 2)


def test_metrics_without_a_definition_or_a_mean_are_not_left_out_in_silence():
    table = estimates(LAYERS, [(0,), (1,)], [DIMENSION, KEPT])
    empty = pl.when(pl.col("metric") == "kept").then(None).otherwise(pl.col("mean")).alias("mean")
    section = default_section("toy", "A toy", table.with_columns(empty), [KEPT])
    assert [panel.title for panel in section.panels] == ["dimension"], "as the table calls it"
    assert section.missing == ["Kept has no value in the table."]
    assert section.definitions == [KEPT]
    assert default_section("toy", "A toy", table.clear(), [KEPT]).missing == ["The table of “A toy” has no rows."]


def test_estimates_by_layer_and_another_number_are_maps():
    places = [(layer, head) for layer in range(3) for head in range(2)]
    table = estimates({"layer": pl.Int32, "head": pl.Int32, **ESTIMATE}, places, [KEPT])
    (panel,) = default_section("toy", "A toy", table, [KEPT]).panels
    (cells,) = panel.marks
    assert isinstance(cells, Heat)
    assert cells.names == ("head", "layer")
    for row in table.iter_rows(named=True):
        value = cells.cells[row["head"]][row["layer"]]
        assert (value.mean, value.low, value.high) == (row["mean"], row["ci_low"], row["ci_high"])
    assert drawn([panel], 1, "").axes


@pytest.mark.parametrize(
    ("columns", "places"),
    [
        ({"kind": pl.String, "layer": pl.Int32}, [("a", 0), ("b", 0)]),
        ({"layer": pl.Int32, "head": pl.Int32, "k": pl.Int32}, [(0, 0, 1), (0, 0, 2)]),
        ({"layer": pl.Int32}, [(0,), (0,)]),
        ({"k": pl.Int32}, [(1,), (2,)]),
    ],
)
def test_other_estimates_are_text_with_values_and_intervals(columns, places):
    table = estimates({**columns, **ESTIMATE}, places, [KEPT, DIMENSION])
    section = default_section("toy", "A toy", table, [KEPT, DIMENSION])
    assert section.panels == []
    (text,) = section.tables
    assert text.head == [*columns, "metric", "value", "95% interval"]
    assert len(text.rows) == len(table)
    assert text.rows[0][: len(columns)] == tuple(map(str, table.select(*columns).row(0)))
    assert {row[-3] for row in text.rows} == {"Kept", "Intrinsic dimension"}
    assert all(row[-2].endswith("%") or row[-2].endswith(" dimensions") for row in text.rows)
    assert all(row[-1].count("\u00a0to\u00a0") == 1 for row in text.rows)


def test_other_tables_are_text_and_say_how_many_rows_there_are():
    table = pl.DataFrame(
        {"token": [HOSTILE] * 50, "share": [0.123456] * 50, "near": [["a", None]] * 50, "n": range(50)}
    )
    section = default_section("toy", "A toy", table, [])
    (text,) = section.tables
    assert text.title == f"A toy (the first {default.SHOWN_ROWS} of 50 rows)"
    assert text.head == table.columns
    assert text.rows[1] == (HOSTILE, "0.1235", "a · –", "1")
    assert text.words
    assert section.panels == ()

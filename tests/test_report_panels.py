"""Whatever a panel can hold, both renderers draw: no mark, axis or note is left out in silence."""

import math
from dataclasses import replace

import numpy as np
import plotly.graph_objects as go
import pytest
from matplotlib.collections import QuadMesh
from report_runs import HOSTILE, plotted

from depthscope.report.canvas import MARKERS, drawn
from depthscope.report.charts import heat, relative_axis
from depthscope.report.figures import grid
from depthscope.report.html import specification
from depthscope.report.measured import Value
from depthscope.report.palette import CHOSEN, LOOKS, OWN, run_look
from depthscope.report.panels import (
    Axis,
    Band,
    Bar,
    Bars,
    Heat,
    Hover,
    Level,
    Note,
    Panel,
    Points,
    Strips,
)
from depthscope.report.section import Section
from depthscope.report.sections.probes import LINES
from depthscope.report.traces import alone, layout
from depthscope.schema.metric import Metric

SHARE = Metric("share_of_it", "share", "Share of it", "what is shared", 0.0, 1.0)
SAID = Hover("head", "\nwhat follows")


def points(x, y, look=OWN, **changes):
    return Points(name="curve", look=look, x=x, y=y, hover=(SAID,) * len(x), **changes)


def everything():
    """A panel of three rows with a mark of every kind, and all else that a panel can hold."""
    curve = points(
        (Value(0.0), Value(1.0), Value(2.0)),
        (Value(1e-9, 1e-10, 2e-9), Value(0.1, 0.05, 0.2), Value(10.0)),
    )
    single = points((Value(1.0, 0.5, 2.0),) * 2, (Value(1.0, 0.5, 3.0), Value(2.0)), line=False, hollow=(False, True))
    bars = Bars(name="bars", look=OWN, y=2.0, thickness=0.5, row=1, bars=(Bar(0.0, 1.5, 0.2, "in the\nmiddle", SAID),))
    strips = Strips(look=OWN, cells=((1.0, None, -2.0),), hover=((SAID,) * 3,), furthest=3.0, row=1)
    rows = ((Value(-0.5, -0.6, -0.4), None, Value(0.25)), (Value(0.1),) * 3)
    cells = Heat(look=OWN, cells=rows, names=("a", "b"), share=True, signed=True, row=2)
    return Panel(
        name="everything",
        title="Everything",
        unit="units",
        marks=(curve, single, bars, strips, cells),
        x=Axis(title="across", range=(-0.5, 2.5), step=1.0, hover=""),
        y=(
            Axis(title="up", scale="log", range=(0.01, 100.0), step="1-2-5", part=(0.7, 1.0)),
            Axis(range=(-1.0, 3.0), labelled=False, grid=False, part=(0.4, 0.6)),
            Axis(title="down", range=(-0.5, 1.5), reversed=True, zero_line=True, form=".0%", part=(0.0, 0.3)),
        ),
        bands=(Band(-0.5, 0.5, 0.17), Band(0.5, 1.0, 0.05)),
        levels=(Level(y=1.0, text="a level"), Level(y=0.5, row=1)),
        notes=(
            Note(text="on data", x=1.0, y=10.0, x_of="data", align="center", shift=(3.0, 0.0)),
            Note(text=f"two\nlines of {HOSTILE}", x=0.0, y=0.65, y_of="panel", above=True, bold=True),
        ),
    )


def test_plotly_draws_all_that_a_panel_holds():
    panel = everything()
    shown = go.Figure(specification(panel)["data"], specification(panel)["layout"])
    curve, single, bars, _, cells = shown.data
    assert [trace.yaxis or "y" for trace in shown.data] == ["y", "y", "y2", "y2", "y3"]
    assert list(curve.y) == [1e-9, 0.1, 10.0]
    assert list(plotted(panel, "layer")[0].y) == [None, 0.1, 10.0], "below the axis"
    assert list(curve.error_y.array) == pytest.approx([1e-9, 0.1, 0.0])
    assert (curve.mode, single.mode) == ("lines+markers", "markers")
    assert list(single.error_x.arrayminus) == [0.5, 0.5]
    assert list(single.marker.symbol) == ["circle", "circle-open"]
    assert (bars.base, bars.x, bars.y, bars.text) == ((0.0,), (1.5,), (2.0,), ("in the<br>middle",))
    maps = [np.array(trace.z) for trace in plotted(panel)[3:]]
    assert np.array_equal(maps[0], [[1.0, np.nan, -2.0]], equal_nan=True)
    assert np.array_equal(maps[1], [[-0.5, np.nan, 0.25], [0.1, 0.1, 0.1]], equal_nan=True)
    assert len(cells.colorscale) == 3
    axes = [shown.layout[key] for key in ("yaxis", "yaxis2", "yaxis3")]
    assert [axis.domain for axis in axes] == [axis.part for axis in panel.y]
    assert axes[0].range == pytest.approx((-2.0, 2.0))
    assert axes[2].range == (1.5, -0.5), "upside down"
    assert shown.layout.xaxis.anchor == "y3"
    assert [shape.type for shape in shown.layout.shapes] == ["rect", "rect", "line", "line"]
    level, on_data, lines = shown.layout.annotations
    assert (level.text, level.y, level.yref) == ("a level", 0.0, "y"), "log10 of 1"
    assert (on_data.x, on_data.y, on_data.xref, on_data.yref) == (1.0, 1.0, "x", "y")
    assert lines.text == "<b>two<br>lines of &lt;script>alert(1)&lt;/script></b>"
    assert (lines.yref, lines.yanchor) == ("paper", "bottom")
    assert all(text == "<b>head</b><br>what follows" for text in (*curve.text, *single.text, *bars.hovertext))


def test_matplotlib_draws_all_that_a_panel_holds():
    panel = everything()
    behind, first, second, third, beside = drawn([panel], 1, "heading").axes
    y = [list(line.get_ydata()) for line in first.lines]
    assert [value for value in y[0] if not math.isnan(value)] == [0.1, 10.0]
    assert [1.0, 2.0] in y
    hollow = [line for line in first.lines if line.get_markerfacecolor() == "white"]
    assert [list(line.get_ydata()) for line in hollow] == [[2.0]]
    assert len(first.containers) == 3, "one interval of the curve's, two of the points'"
    assert [line.get_linestyle() for line in (*first.lines, *second.lines)].count(":") == 2, "levels"
    (bar,) = second.patches
    assert (bar.get_x(), bar.get_width(), bar.get_alpha()) == (0.0, 1.5, 0.2)
    assert [text.get_text() for text in second.texts] == ["in the\nmiddle"]
    meshes = [[m for m in axes.collections if isinstance(m, QuadMesh)] for axes in (second, third)]
    assert [len(found) for found in meshes] == [1, 2]
    rows = [np.ma.filled(mesh.get_array(), np.nan)[0].tolist() for mesh in meshes[1]]
    assert np.array_equal(rows, [[-0.5, np.nan, 0.25], [0.1, 0.1, 0.1]], equal_nan=True)
    assert beside.get_ylim() == (-0.5, 0.5), "0 is in the middle of a scale with signs"
    assert (first.get_ylabel(), third.get_ylabel(), third.get_xlabel()) == ("up", "down", "across")
    assert (first.get_yscale(), first.get_ylim(), third.get_ylim()) == ("log", (0.01, 100.0), (1.5, -0.5))
    assert len(behind.patches) == 2
    assert {text.get_text() for text in behind.texts} == {"Everything (units)", f"two\nlines of {HOSTILE}"}
    assert {text.get_text() for text in first.texts} == {"a level", "on data"}


@pytest.mark.parametrize("swapped", [False, True])
def test_categories_stand_on_either_axis(swapped):
    names, values = ("b", "a", "c"), (Value(1.0), Value(2.0), Value(-1.0, -2.0, 0.0))
    categories, numbers = Axis(scale="category", reversed=True), Axis(from_zero=True, zero_line=True)
    x, y = (names, values) if swapped else (values, names)
    panel = Panel(
        name="ranking",
        title="Ranking",
        marks=(points(x, y, line=False),),
        x=categories if swapped else numbers,
        y=(numbers if swapped else categories,),
    )
    (trace,) = plotted(panel)
    assert list(trace.x if swapped else trace.y) == list(names)
    shown = layout(panel, alone(panel))["xaxis" if swapped else "yaxis"]
    assert (shown["type"], shown["autorange"]) == ("category", "reversed")
    figure = drawn([panel], 1, "")
    figure.canvas.draw()
    axes = figure.axes[1]
    labels = axes.get_xticklabels() if swapped else axes.get_yticklabels()
    assert [label.get_text() for label in labels] == list(names)
    assert (axes.xaxis if swapped else axes.yaxis).get_inverted()
    assert any(list(line.get_xdata() if not swapped else line.get_ydata()) == [0, 0] for line in axes.lines), "at 0"


def test_every_look_has_a_marker_and_a_dash_of_its_own_in_print():
    looks = [*LOOKS.values(), *LINES.values(), *CHOSEN.values(), *(run_look(place, "") for place in range(14))]
    looks += [replace(look, marker=f"{look.marker.removesuffix('-open')}-open") for look in looks]
    at = (Value(0.0), Value(1.0))
    marks = tuple(points(at, at, look=look) for look in looks)
    lines = drawn([Panel(name="p", title="P", marks=marks, x=Axis(), y=(Axis(),))], 1, "").axes[1].lines
    for look, line in zip(looks, lines, strict=True):
        assert line.get_marker() == MARKERS[look.marker.removesuffix("-open")]
        assert line.get_markerfacecolor() == ("white" if look.marker.endswith("-open") else look.light)
        assert line.is_dashed() == (look.dash != "solid")


def test_panels_side_by_side_keep_their_rows_bands_levels_and_notes():
    panel = everything()
    other = replace(panel, name="other")
    shown = go.Figure(*grid(Section(panels=[panel, other], across=2), "layer"))
    assert len(shown.data) == 2 * len(panel.marks)
    for place, (x, rows) in enumerate((("x", ["y", "y3", "y4"]), ("x2", ["y2", "y5", "y6"]))):
        traces = shown.data[5 * place : 5 * place + 5]
        assert [trace.yaxis or "y" for trace in traces] == [rows[0], rows[0], rows[1], rows[1], rows[2]]
        assert {trace.xaxis or "x" for trace in traces} == {x}
        domains = [shown.layout[f"yaxis{name[1:]}"].domain for name in rows]
        assert domains == [axis.part for axis in panel.y]
        assert [shape.xref for shape in shown.layout.shapes[4 * place : 4 * place + 4]] == [
            x,
            x,
            f"{x} domain",
            f"{x} domain",
        ]
    assert len(shown.layout.annotations) == 2 + 2 * 3, "titles, and each panel's own"


def test_a_panel_with_things_at_layers_cannot_be_by_relative_depth():
    panel = replace(everything(), marks=())
    with pytest.raises(ValueError, match="'everything' can use relative depth, but has Band"):
        replace(panel, relative=relative_axis(0.1))
    with pytest.raises(ValueError, match="but has Heat"):
        replace(heat("map", "Map", SHARE, {(0, 0): Value(0.5)}, (1, 1), ("a", "b")), relative=relative_axis(0.1))


def test_panels_are_values():
    assert everything() == everything()
    assert hash(everything()) == hash(everything())

"""Figures as files hold the numbers of the page's panels, are the same bytes each time, and say why where they cannot be."""

import sys

import numpy as np
import plotly.graph_objects as go
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from report_runs import HOSTILE, all_tables, made_up_stages, make_run, plotted, sweep_table

from depthscope.errors import DepthscopeError, RunError
from depthscope.report import publish
from depthscope.report.canvas import drawn
from depthscope.report.charts import Curve, layers, lines
from depthscope.report.comparison import comparison_sections, side_by_side
from depthscope.report.figures import FIGURES
from depthscope.report.html import specification
from depthscope.report.measured import Value
from depthscope.report.palette import OWN
from depthscope.schema.sweep import AGREEMENT, KL

DEPTH = 6


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", DEPTH, tables=all_tables(DEPTH), stages=made_up_stages(DEPTH))


def lines_of(figure):
    """(x, y) of every line that is a curve."""
    found = []
    for axes in figure.axes:
        found += [line for line in axes.lines if line.get_label().startswith("_child") and len(line.get_xdata()) > 0]
    empty = [["empty" if y != y else y for y in line.get_ydata()] for line in found]
    return [(list(line.get_xdata()), y) for line, y in zip(found, empty, strict=True)]


@pytest.mark.parametrize("name", list(FIGURES))
def test_every_curve_and_cell_of_every_panel_is_drawn(run, name):
    section = FIGURES[name].build(run)
    figure = drawn(section.panels, section.across, name)
    curves = [trace for panel in section.panels for trace in plotted(panel, "layer") if isinstance(trace, go.Scatter)]
    there = lines_of(figure)
    for trace in curves:
        y = ["empty" if value is None else value for value in trace.y]
        assert (list(trace.x), y) in there, trace.name
    cells = [
        np.ma.filled(mesh.get_array(), np.nan)
        for axes in figure.axes
        for mesh in axes.collections
        if hasattr(mesh, "get_coordinates")
    ]
    for trace in (t for panel in section.panels for t in plotted(panel) if isinstance(t, go.Heatmap)):
        for row in np.array(trace.z, dtype=float):
            assert any(cell.shape == (1, len(row)) and np.array_equal(cell[0], row, equal_nan=True) for cell in cells)


@pytest.mark.parametrize("values", [(4e-7, 3e-4), (1.0, 20.0), (0.0, 123456.0), (-0.25, 0.5), (1e-9, 5e4)])
@pytest.mark.parametrize("log", [True, False])
def test_labels_beside_the_axis_fit_into_the_panel_whatever_the_values(values, log):
    for metric in (KL, AGREEMENT):
        curve = Curve(look=OWN, values={i: Value(v) for i, v in enumerate(values * 16)}, call="{}")
        panel = lines("any", "Any", metric, [curve], layers(32), log=log, share_of_all=False)
        figure = drawn([panel] * 3, 3, "")
        renderer = FigureCanvasAgg(figure).get_renderer()
        shown = [axes for axes in figure.axes if axes.axison]
        assert len(shown) == 3
        for place, axes in enumerate(shown):
            box = axes.yaxis.get_tightbbox(renderer)
            assert box.x0 >= place * figure.get_figwidth() / 3 * figure.dpi, [
                label.get_text() for label in axes.get_yticklabels()
            ]
        specified = specification(panel)["layout"]
        assert specified["yaxis"]["automargin"]
        assert specified["xaxis"]["automargin"]


def test_error_bars_reach_from_end_to_end_of_the_intervals(run):
    section = FIGURES["sweep"].build(run)
    figure = drawn(section.panels, section.across, "")
    kl = figure.axes[1]
    (swap, drop) = kl.containers
    for container, edit in ((swap, "swap"), (drop, "drop")):
        (bars,) = container.lines[2]
        ends = [(low, high) for (_, low), (_, high) in bars.get_segments()]
        rows = run.table("sweep").filter(edit=edit, metric="kl").sort("layer").select("ci_low", "ci_high").rows()
        assert np.allclose(ends, rows)
    assert kl.get_yscale() == "log"


def test_a_panel_s_axes_are_those_of_the_page(run):
    section = FIGURES["overview"].build(run)
    behind, kl, attention, density = drawn(section.panels, 1, "").axes
    assert [axes.get_yscale() for axes in (kl, attention, density)] == ["log", "linear", "linear"]
    assert {axes.get_xlim() for axes in (behind, kl, attention, density)} == {(-0.5, DEPTH - 0.5)}
    bottoms = [axes.get_position().y0 for axes in (kl, attention, density)]
    assert bottoms == sorted(bottoms, reverse=True)
    assert len(behind.patches) == len(section.panels[0].bands)
    written = {text.get_text() for text in behind.texts}
    assert {"Detokenization", "KL of dropping the layer, nats"} <= written


def test_files_of_a_run_in_three_formats_and_the_same_each_time(tmp_path):
    run = make_run(tmp_path / "run", 4, frame=sweep_table(4, ("swap", "drop")), model=f"$x_1$ {HOSTILE}")
    files = publish.publish_run(run, tmp_path / "one")
    assert [file.name for file in files] == [
        f"{name}.{kind}" for name in ("overview", "sweep") for kind in ("svg", "pdf", "png")
    ]
    starts = {".svg": b"<?xml", ".pdf": b"%PDF", ".png": b"\x89PNG"}
    again = publish.publish_run(run, tmp_path / "two")
    for file, other in zip(files, again, strict=True):
        assert file.read_bytes().startswith(starts[file.suffix])
        assert file.read_bytes() == other.read_bytes()
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        publish.publish_run(run, tmp_path / "file")
    for file in publish.publish_run(run, tmp_path / "two")[:3]:  # its own files are replaced, nobody else's
        own = file.read_bytes()
        file.write_bytes(b"mine")
        with pytest.raises(RunError, match="is not a figure that depthscope wrote"):
            publish.publish_run(run, tmp_path / "two")
        assert file.read_bytes() == b"mine"
        file.write_bytes(own)


def test_a_comparison_s_figures_are_drawn_too(tmp_path, run):
    other = make_run(tmp_path / "other", 3, tables=all_tables(3), stages=made_up_stages(3))
    for _, section, _ in comparison_sections(side_by_side([run, other])):
        there = lines_of(drawn(section.panels, section.across, ""))
        for trace in (t for panel in section.panels for t in plotted(panel) if isinstance(t, go.Scatter)):
            assert (list(trace.x), list(trace.y)) in there
    bare = [make_run(tmp_path / name, 3, frame=sweep_table(3, ("drop",))) for name in ("a", "b")]
    names = {file.stem for file in publish.publish_comparison(bare, tmp_path / "out")}
    assert names == {"drop"}


def test_without_matplotlib_it_is_said_how_to_get_it(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "depthscope.report.canvas", raising=False)
    with pytest.raises(DepthscopeError, match=r"pip install 'depthscope\[figures\]'"):
        publish.publish_run(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()

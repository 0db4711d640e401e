"""The figures by name, as one plotly figure for notebooks each; the page is made of the same panels."""

from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from depthscope.errors import DepthscopeError, RunError
from depthscope.report.palette import FONT
from depthscope.report.panels import AXES, LAYER, Panel
from depthscope.report.section import Kind, Section
from depthscope.report.sections import (
    attention,
    geometry,
    heads,
    influence,
    lens,
    neurons,
    norms,
    overview,
    probes,
    similarity,
    stages,
    sweep,
)
from depthscope.run.store import RunDirectory

FIGURES: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        overview.KIND,
        stages.KIND,
        *sweep.KINDS,
        lens.KIND,
        neurons.KIND,
        probes.KIND,
        norms.KIND,
        attention.KIND,
        heads.KIND,
        similarity.KIND,
        influence.KIND,
        geometry.KIND,
    )
}
"""In the order of the page."""


def figure(run: RunDirectory, name: str, axis: str = LAYER) -> go.Figure:
    """A figure of a run by its name in FIGURES: the panels of the page side by side.

    Error bars are 95% intervals over documents; `customdata` holds layer, relative depth and the interval's ends. `axis` is
    `layer` or `relative depth`; panels whose x is neither stay as they are. Raises DepthscopeError for another name or axis,
    RunError where the run has no such measurements.
    """
    if name not in FIGURES:
        raise DepthscopeError(f"unknown figure {name!r}: expected one of {', '.join(FIGURES)}")
    if axis not in AXES:
        raise DepthscopeError(f"unknown axis {axis!r}: expected one of {', '.join(AXES)}")
    section = FIGURES[name].build(run)
    if not section.panels:
        raise RunError(f"{run.path} has nothing for the figure {name!r}. {' '.join(section.missing)}".strip())
    shown = _alone(section.panels[0], axis) if len(section.panels) == 1 else _grid(section, axis)
    # plotly reads titles as HTML, and a model may be called anything.
    model = escape(str(run.settings.get("model", "")))
    shown.update_layout(
        title={
            "text": f"{FIGURES[name].title}: {model}",
            "x": 0,
            "xref": "paper",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
        },
        template="plotly_white",
        font={"family": FONT, "size": 13},
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.12, "yanchor": "bottom"},
        margin={"l": 56, "r": 24, "t": 92, "b": 56},
    )
    shown.update_xaxes(automargin=True)
    shown.update_yaxes(automargin=True)
    return shown


def _alone(panel: Panel, axis: str) -> go.Figure:
    layout = {**panel.layout, "xaxis": panel.x_axis(axis), "yaxis": panel.yaxis, "height": panel.height + 120}
    return go.Figure(panel.placed(axis), layout)


def _grid(section: Section, axis: str) -> go.Figure:
    columns = min(section.across, len(section.panels))
    rows = -(-len(section.panels) // columns)
    maps = any(isinstance(trace, go.Heatmap) for panel in section.panels for trace in panel.traces)
    titles = [f"{panel.title} ({panel.unit})" if panel.unit else panel.title for panel in section.panels]
    shown = make_subplots(
        rows=rows,
        cols=columns,
        horizontal_spacing=0.14 if maps else 0.09,
        vertical_spacing=0.32 / rows,
        subplot_titles=titles,
    )
    named: set[str] = set()
    for place, panel in enumerate(section.panels):
        cell: dict[str, Any] = {"row": place // columns + 1, "col": place % columns + 1}
        for trace in panel.placed(axis):
            if isinstance(trace, go.Heatmap):
                _beside(trace, shown, place)
            else:
                trace.update(legendgroup=trace.name, showlegend=trace.name not in named)
                named.add(trace.name)
            shown.add_trace(trace, **cell)
        shown.update_xaxes(panel.x_axis(axis), **cell)
        shown.update_yaxes(panel.yaxis, **cell)
        for shape in panel.layout.get("shapes", ()):
            shown.add_shape(_in_cell(shape, place))
        for note in panel.layout.get("annotations", ()):
            shown.add_annotation(_in_cell(note, place))
    unified = all("hovermode" not in panel.layout for panel in section.panels)
    shown.update_layout(height=120 + 300 * rows, hovermode="x unified" if unified else "closest")
    return shown


def _in_cell(drawn: dict[str, Any], place: int) -> dict[str, Any]:
    """A shape or note of a panel on the axes of its subplot."""
    number = "" if place == 0 else str(place + 1)
    return {**drawn, "xref": f"x{number} domain", "yref": f"y{number}"}


def _beside(trace: go.Heatmap, shown: go.Figure, place: int) -> None:
    """The colour bar beside its own subplot."""
    number = "" if place == 0 else str(place + 1)
    axes: Any = shown.layout
    low, high = axes[f"yaxis{number}"].domain
    beside = axes[f"xaxis{number}"].domain[1]
    trace.update(colorbar={"x": beside, "xanchor": "left", "y": (low + high) / 2, "len": high - low})

"""The figures: what each edit does to KL, agreement and entropy, layer by layer (the paper's figures 3 and 13 to 15).

`figure` gives one plotly figure for notebooks; `panel` one of its panels, of which the page is made, so that they can
stand beside or below each other. Both show the table's own numbers: y is the mean, `customdata` holds layer, relative
depth and the ends of the 95% interval.
"""

from dataclasses import dataclass
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from depthscope.errors import DepthscopeError, RunError
from depthscope.report.measured import Measured, Value, interval, is_share, read_sweep, unit_of, with_unit
from depthscope.report.palette import FONT, SHOWN, ShownEdit
from depthscope.run.store import RunDirectory
from depthscope.schema.sweep import AGREEMENT, ENTROPY_CHANGE, KL, Metric

PANELS = (KL, AGREEMENT, ENTROPY_CHANGE)
LAYER, RELATIVE_DEPTH = "layer", "relative depth"
AXES = (LAYER, RELATIVE_DEPTH)
CROWDED = 30
"""Layers beyond which points of full size would touch."""


@dataclass(frozen=True, slots=True)
class FigureKind:
    """A figure by its name: the edits laid over each other in its panels."""

    title: str
    edits: tuple[str, ...]
    needs: tuple[str, ...]
    """Without one of these the figure says nothing of its own."""


KINDS = {
    "sweep": FigureKind("Layer swaps and drops", ("swap", "drop"), ("swap", "drop")),
    "components": FigureKind(
        "Layer, attention and MLP drops", ("drop", "drop_attn", "drop_mlp"), ("drop_attn", "drop_mlp")
    ),
}


def figure(run: RunDirectory, name: str, axis: str = LAYER) -> go.Figure:
    """A figure of a run: `sweep` (swaps and drops) or `components` (attention and MLP drops beside whole drops).

    Three panels: KL in nats on a logarithmic axis (the first layer dwarfs the rest on a linear one), agreement as a
    share, change in entropy in nats; error bars are 95% intervals over documents. `axis` is `layer` or `relative depth`.
    Raises DepthscopeError for another name or axis, RunError where the run has no such measurements.
    """
    kind = figure_kind(name)
    _check_axis(axis)
    measured = read_sweep(run)
    edits = shown_edits(kind, measured)
    if not edits:
        raise RunError(
            f"{run.path} has nothing for the figure {name!r}: expected {' or '.join(kind.needs)}, "
            f"it has {', '.join(measured.edits) or 'no edits'}"
        )
    shown = make_subplots(
        rows=1, cols=3, horizontal_spacing=0.07, subplot_titles=[f"{m.title} ({unit_of(m)})" for m in PANELS]
    )
    for column, metric in enumerate(PANELS, start=1):
        for edit in edits:
            trace = edit_trace(measured, edit, metric, axis)
            trace.update(legendgroup=edit.name, showlegend=column == 1)
            shown.add_trace(trace, row=1, col=column)
        shown.update_xaxes(_x_axis(axis, measured.depth), row=1, col=column)
        shown.update_yaxes(_y_axis(metric), row=1, col=column)
    # plotly reads titles as HTML, and a model may be called anything.
    model = escape(str(run.settings.get("model", "")))
    shown.update_layout(
        title={"text": f"{kind.title}: {model}", "x": 0, "xref": "paper", "y": 0.97, "yanchor": "top"},
        template="plotly_white",
        font={"family": FONT, "size": 13},
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.12, "yanchor": "bottom"},
        margin={"l": 56, "r": 24, "t": 92, "b": 56},
        height=420,
        hovermode="x unified",
    )
    return shown


def panel(measured: Measured, edits: list[ShownEdit], metric: Metric) -> go.Figure:
    """One metric of some edits by layer, without title and legend: the page has its own."""
    shown = go.Figure([edit_trace(measured, edit, metric) for edit in edits])
    shown.update_xaxes(_x_axis(LAYER, measured.depth))
    shown.update_yaxes(_y_axis(metric))
    shown.update_layout(
        # The default template would put some 7 kB of styles for other kinds of charts into each panel.
        template="none",
        font={"family": FONT, "size": 12},
        margin={"l": 46, "r": 8, "t": 8, "b": 40},
        showlegend=False,
        hovermode="x unified",
        dragmode=False,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
    )
    return shown


def figure_kind(name: str) -> FigureKind:
    """A kind of figure by its name. Raises DepthscopeError naming those there are."""
    if name not in KINDS:
        raise DepthscopeError(f"unknown figure {name!r}: expected one of {', '.join(KINDS)}")
    return KINDS[name]


def shown_edits(kind: FigureKind, measured: Measured) -> list[ShownEdit]:
    """The edits of a figure that were measured; none where all it needs are missing."""
    there = [edit for edit in kind.edits if edit in measured.edits]
    return [SHOWN[edit] for edit in there] if set(there) & set(kind.needs) else []


def edit_trace(measured: Measured, edit: ShownEdit, metric: Metric, axis: str = LAYER) -> go.Scatter:
    """An edit's means by layer with 95% error bars; no bars where the table has no intervals."""
    series = measured.series(edit.name, metric)
    layers = list(series)
    depths = [measured.relative_depth(layer) for layer in layers]
    values = list(series.values())
    return go.Scatter(
        x=layers if axis == LAYER else depths,
        y=[value.mean for value in values],
        error_y=_error_bars(values, edit.light, 5 if measured.depth <= CROWDED else 4),
        customdata=[[n, depth, v.low, v.high] for n, depth, v in zip(layers, depths, values, strict=True)],
        text=[_hover(edit.name, layer, value, metric) for layer, value in series.items()],
        hovertemplate="%{text}<extra></extra>",
        mode="lines+markers",
        name=edit.title,
        meta=edit.name,
        line={"color": edit.light, "width": 1.75},
        marker={"color": edit.light, "symbol": edit.marker, "size": 5.5 if measured.depth <= CROWDED else 4},
    )


def _error_bars(values: list[Value], colour: str, thickness: int) -> dict[str, Any]:
    if not all(value.has_interval for value in values):
        return {"visible": False}
    return {
        "type": "data",
        "symmetric": False,
        "array": [(v.high or 0.0) - v.mean for v in values],
        "arrayminus": [v.mean - (v.low or 0.0) for v in values],
        "color": f"rgba({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))}, 0.4)",
        "thickness": thickness,
        "width": 0,
    }


def _hover(edit: str, layer: int, value: Value, metric: Metric) -> str:
    """The edit as it is written elsewhere, so that the layer is said on the relative axis too."""
    bounds = interval(value, metric) if value.has_interval else "no interval"
    return f"<b>{edit}({layer})</b>  {with_unit(value, metric)} ({bounds})"


def _check_axis(axis: str) -> None:
    if axis not in AXES:
        raise DepthscopeError(f"unknown axis {axis!r}: expected one of {', '.join(AXES)}")


def _x_axis(axis: str, depth: int) -> dict[str, Any]:
    """The same span in all panels, half a layer wider than the model: swaps end a layer before drops do."""
    margin = 0.5 if axis == LAYER else 0.5 / max(depth - 1, 1)
    last = depth - 1 if axis == LAYER else 1
    ticks = {"tick0": 0, "dtick": layer_step(depth)} if axis == LAYER else {"tick0": 0, "dtick": 0.25}
    return {
        "title": {"text": axis, "standoff": 8},
        "range": [-margin, last + margin],
        "zeroline": False,
        "spikethickness": 1,
        "spikedash": "dot",
        "unifiedhovertitle": {"text": f"{axis} {'%{x}' if axis == LAYER else '%{x:.2f}'}, mean (95% interval)"},
        **ticks,
    }


def layer_step(depth: int) -> int:
    """Layers between two ticks, so that at most about nine numbers stand side by side."""
    return next(step for step in (1, 2, 4, 5, 10, 20, 50, 100, 1000) if depth <= 9 * step or step == 1000)


def _y_axis(metric: Metric) -> dict[str, Any]:
    if is_share(metric):
        return {"range": [-0.02, 1.02], "tickformat": ".0%", "dtick": 0.25, "zeroline": False}
    if metric is KL:
        return {"type": "log", "exponentformat": "none", "minorloglabels": "complete", "nticks": 6, "zeroline": False}
    return {"zeroline": True, "tickformat": "~g"}

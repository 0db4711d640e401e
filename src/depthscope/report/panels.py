"""Panels: a few lines of data describe one, and here it becomes plotly's traces and axes. Lines by layer; others: charts.py.

Every point shows the table's own numbers: y is the mean, `customdata` holds x as the layer, x as relative depth and the ends
of the 95% interval (of heat maps: the ends alone). `meta` names a trace's look, by which the page gives it its colour.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import plotly.graph_objects as go

from depthscope.report.measured import Series, Value, interval, is_share, with_unit
from depthscope.report.palette import Look
from depthscope.schema.metric import Metric

LAYER, RELATIVE_DEPTH = "layer", "relative depth"
AXES = (LAYER, RELATIVE_DEPTH)
CROWDED = 30
"""Points beyond which those of full size would touch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One plot: traces and axes as plotly has them, and what the page may change about it."""

    name: str
    title: str
    unit: str = ""
    traces: list[Any]
    xaxis: dict[str, Any]
    yaxis: dict[str, Any]
    relative: dict[str, Any] | None = None
    """The x axis where x is relative depth; None where x is no layer."""
    log: bool = False
    """Whether y is on a logarithmic axis that may become a linear one."""
    height: int = 300
    left: int = 46
    """Room for what stands beside the y axis, in pixels; the axis makes more where its labels need it."""
    layout: dict[str, Any] = field(default_factory=dict)

    def x_axis(self, axis: str) -> dict[str, Any]:
        """The x axis by layer or relative depth."""
        return self.relative if axis == RELATIVE_DEPTH and self.relative is not None else self.xaxis

    def placed(self, axis: str) -> list[Any]:
        """The traces by layer or relative depth, without the points that a logarithmic axis has no place for."""
        if axis == LAYER or self.relative is None:
            return self.seen()
        return [go.Scatter(trace).update(x=[row[1] for row in trace.customdata]) for trace in self.seen()]

    def seen(self) -> list[Any]:
        """The traces without what lies below a logarithmic axis: a line to it would fall out of the panel as a stub.

        The page does the same in `onAxis` of page.js, because a reader may choose a linear axis there.
        """
        return [_above(trace, self.y_axis_of(trace)) for trace in self.traces]

    def y_axis_of(self, trace: Any) -> dict[str, Any]:
        """The y axis a trace is drawn on: the panel's own, or one of those in its layout."""
        number = (trace.yaxis or "y")[1:]
        return self.layout[f"yaxis{number}"] if number else self.yaxis


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A line of a panel: values by x, and how each point is called when pointed at."""

    look: Look
    values: Series
    call: str
    """With `{}` for x: `drop({})`."""
    title: str | None = None
    """In a notebook's legend, where it is not the look's own."""
    points_only: bool = False
    """No line through them; a thin bar each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class XAxis:
    """Whole numbers 0 … last on the x axis; `relative`: whether they are layers or depths, 0 the first and 1 the last."""

    title: str
    last: int
    first: int = 0
    relative: bool = True

    def share(self, x: int) -> float:
        """x / last: 0 for the first layer, 1 for the last; 0 in a model of one layer."""
        return x / self.last if self.last else 0.0

    def axis(self) -> dict[str, Any]:
        """Half a step wider than the numbers, the same in all panels: swaps end a layer before drops do."""
        ticks = {"tick0": 0, "dtick": layer_step(self.last + 1)}
        return _x_axis(self.title, (self.first - 0.5, self.last + 0.5), "%{x}", ticks)

    def relative_axis(self) -> dict[str, Any] | None:
        """The same in shares of the depth."""
        if not self.relative:
            return None
        margin = 0.5 / max(self.last, 1)
        return _x_axis(RELATIVE_DEPTH, (-margin, 1 + margin), "%{x:.2f}", {"tick0": 0, "dtick": 0.25})


def layers(depth: int) -> XAxis:
    """The axis of the layers of a model."""
    return XAxis(title=LAYER, last=depth - 1)


def lines(
    name: str,
    title: str,
    metric: Metric,
    curves: Sequence[Curve],
    x: XAxis,
    *,
    log: bool = False,
    levels: Sequence[tuple[float, str]] = (),
    share_of_all: bool = True,
    unit: str | None = None,
) -> Panel:
    """Curves of one metric with 95% error bars. `levels` are horizontal lines with what is written at them.

    `share_of_all`: whether the axis of a share runs from 0 to 1, whatever the values.
    """
    shapes = [
        {
            "type": "line",
            "xref": "x domain",
            "yref": "y",
            "x0": 0,
            "x1": 1,
            "y0": y,
            "y1": y,
            "line": {"width": 1, "dash": "dot"},
        }
        for y, _ in levels
    ]
    notes = [
        {
            "xref": "x domain",
            "yref": "y",
            "x": 1,
            "y": _at(y, log),
            "text": text,
            "showarrow": False,
            "yshift": 8,
            "xanchor": "right",
        }
        for y, text in levels
        if text
    ]
    return Panel(
        name=name,
        title=title,
        unit=("%" if is_share(metric) else metric.unit) if unit is None else unit,
        traces=[line(curve, metric, x) for curve in curves],
        xaxis=x.axis(),
        relative=x.relative_axis(),
        yaxis=y_axis(metric, log, share_of_all),
        log=log,
        layout={"shapes": shapes, "annotations": notes} if levels else {},
    )


def on_one_scale(panels: Sequence[Panel]) -> list[Panel]:
    """Panels with the same y axis, from the lowest end of an interval to the highest."""
    rows = [(trace.y[i], row) for panel in panels for trace in panel.traces for i, row in enumerate(trace.customdata)]
    reached = [end for y, row in rows for end in (y, row[2], row[3]) if end is not None]
    low, high = min(reached, default=0.0), max(reached, default=1.0)
    room = 0.04 * (high - low or 1.0)
    return [replace(panel, yaxis={**panel.yaxis, "range": [low - room, high + room]}) for panel in panels]


def layer_step(depth: int) -> int:
    """Layers between two ticks, so that at most about nine numbers stand side by side."""
    return next(step for step in (1, 2, 4, 5, 10, 20, 50, 100, 1000) if depth <= 9 * step or step == 1000)


def line(curve: Curve, metric: Metric, x: XAxis) -> go.Scatter:
    """A curve with 95% error bars; no bars where the table has no intervals."""
    look, places, values = curve.look, list(curve.values), list(curve.values.values())
    crowded = x.last >= CROWDED
    return go.Scatter(
        x=places,
        y=[value.mean for value in values],
        error_y=error_bars(values, look.light, 2 if curve.points_only else 4 if crowded else 5),
        customdata=[[n, x.share(n), v.low, v.high] for n, v in zip(places, values, strict=True)],
        text=[hover(curve.call.format(n), v, metric) for n, v in zip(places, values, strict=True)],
        hovertemplate="%{text}<extra></extra>",
        mode="markers" if curve.points_only else "lines+markers",
        name=curve.title or look.title,
        meta=look.name,
        line={"color": look.light, "width": 1.75, "dash": look.dash},
        marker={"color": look.light, "symbol": look.marker, "size": 4 if crowded else 5.5},
    )


def error_bars(values: Sequence[Value], colour: str, thickness: int) -> dict[str, Any]:
    """95% intervals around means as plotly has them; none where one of the values has none."""
    if not values or not all(value.has_interval for value in values):
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


def hover(called: str, value: Value, metric: Metric) -> str:
    """The point as it is called elsewhere, so that the layer is said on the relative axis too."""
    bounds = f" ({interval(value, metric)})" if value.has_interval else ""
    return f"<b>{called}</b>  {with_unit(value, metric)}{bounds}"


def _above(trace: Any, axis: dict[str, Any]) -> Any:
    """A curve whose points below the end of a logarithmic axis are empty."""
    if axis.get("type") != "log" or not isinstance(trace, go.Scatter):
        return trace
    low = 10 ** axis["range"][0] if "range" in axis else 0.0
    values: Any = () if trace.y is None else trace.y
    return go.Scatter(trace).update(y=[y if y is not None and y > low else None for y in values])


def _x_axis(title: str, span: tuple[float, float], place: str, ticks: dict[str, Any]) -> dict[str, Any]:
    return {
        "title": {"text": title, "standoff": 8},
        "range": list(span),
        "zeroline": False,
        "spikethickness": 1,
        "spikedash": "dot",
        "unifiedhovertitle": {"text": f"{title} {place}, mean (95% interval)"},
        **ticks,
    }


def y_axis(metric: Metric, log: bool, share_of_all: bool) -> dict[str, Any]:
    """The y axis of a metric: shares in per cent, of the whole range where `share_of_all`."""
    if is_share(metric) and share_of_all and (metric.lowest or 0) >= 0:
        return {"range": [-0.02, 1.02], "tickformat": ".0%", "dtick": 0.25, "zeroline": False}
    if log:
        return {"type": "log", "exponentformat": "none", "minorloglabels": "complete", "nticks": 6, "zeroline": False}
    # Trimmed decimals: of small shares whole per cents would repeat.
    shown = {"tickformat": ".3~%"} if is_share(metric) else {"tickformat": "~g"}
    return {"zeroline": True, "rangemode": "tozero" if metric.lowest == 0 else "normal", **shown}


def _at(y: float, log: bool) -> float:
    """Where plotly wants an annotation on a logarithmic axis."""
    return math.log10(y) if log else y

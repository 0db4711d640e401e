"""Panels that are no lines by layer: heat maps, rankings, one quantity over another."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from depthscope.report.measured import Value, is_share, with_unit
from depthscope.report.palette import OWN, SOFT, Look
from depthscope.report.panels import CROWDED, Panel, error_bars, hover, layer_step
from depthscope.schema.metric import Metric


def heat(
    name: str,
    title: str,
    metric: Metric,
    values: Mapping[tuple[int, int], Value],
    shape: tuple[int, int],
    axes: tuple[str, str],
    look: Look = OWN,
    height: int = 300,
) -> Panel:
    """A heat map of values by (row, column), rows upwards; cells without a value stay empty.

    Of a quantity that has a sign, values below 0 are grey.
    """
    numbers = np.full((3, *shape), np.nan)
    for place, value in values.items():
        numbers[(slice(None), *place)] = [
            math.nan if end is None else end for end in (value.mean, value.low, value.high)
        ]
    rows, columns = axes
    form = ".1%" if is_share(metric) else ".3~g"
    signed = metric.lowest is not None and metric.lowest < 0
    bounds = np.moveaxis(numbers[1:], 0, -1)
    known = not np.isnan(bounds).all()
    shown = f" (%{{customdata[0]:{form}}} to %{{customdata[1]:{form}}})" if known else ""
    trace = go.Heatmap(
        z=numbers[0],
        customdata=bounds,
        meta=look.name,
        colorscale=[[0, SOFT[0]], [0.5, "#FFFFFF"], [1, look.light]] if signed else [[0, "#FFFFFF"], [1, look.light]],
        zmid=0 if signed else None,
        colorbar={
            "thickness": 10,
            "outlinewidth": 0,
            "xpad": 4,
            "len": 1,
            "tickformat": ".0%" if is_share(metric) else "~g",
        },
        hovertemplate=f"{rows} %{{y}}, {columns} %{{x}}: <b>%{{z:{form}}}</b>{shown}<extra></extra>",
        hoverongaps=False,
        xgap=0 if max(shape) > CROWDED else 1,
        ygap=0 if max(shape) > CROWDED else 1,
    )
    return Panel(
        name=name,
        title=title,
        unit="%" if is_share(metric) else metric.unit,
        traces=[trace],
        xaxis=_cells(columns, shape[1]),
        yaxis=_cells(rows, shape[0]),
        layout={"hovermode": "closest"},
        height=height,
    )


def ranking(
    name: str, title: str, metric: Metric, look: Look, values: Sequence[tuple[str, Value]], height: int = 300
) -> Panel:
    """Named values with their intervals, one below the other."""
    means = [value.mean for _, value in values]
    trace = go.Scatter(
        y=[called for called, _ in values],
        x=means,
        error_x=error_bars([value for _, value in values], look.light, 5),
        customdata=[[value.mean, value.mean, value.low, value.high] for _, value in values],
        text=[hover(called, value, metric) for called, value in values],
        hovertemplate="%{text}<extra></extra>",
        mode="markers",
        name=look.title,
        meta=look.name,
        marker={"color": look.light, "symbol": look.marker, "size": 7},
    )
    return Panel(
        name=name,
        title=title,
        unit="%" if is_share(metric) else metric.unit,
        traces=[trace],
        xaxis={"tickformat": ".0%" if is_share(metric) else "~g", "rangemode": "tozero", "zeroline": True},
        yaxis={"autorange": "reversed", "type": "category", "showgrid": True},
        layout={"hovermode": "closest"},
        height=height,
        left=64,
    )


def scatter(
    name: str, title: str, metrics: tuple[Metric, Metric], look: Look, points: Sequence[tuple[str, Value, Value]]
) -> Panel:
    """One metric over another, each point with both intervals; both axes logarithmic."""
    x, y = metrics
    across, up = [a for _, a, _ in points], [b for _, _, b in points]
    trace = go.Scatter(
        x=[value.mean for value in across],
        y=[value.mean for value in up],
        error_x=error_bars(across, look.light, 4),
        error_y=error_bars(up, look.light, 4),
        customdata=[[value.mean, value.mean, value.low, value.high] for value in up],
        text=[f"{hover(called, b, y)}<br>{x.title} {with_unit(a, x)}" for called, a, b in points],
        hovertemplate="%{text}<extra></extra>",
        mode="markers",
        name=look.title,
        meta=look.name,
        marker={"color": look.light, "symbol": look.marker, "size": 6},
    )
    axis = {"type": "log", "exponentformat": "none", "minorloglabels": "none", "nticks": 6, "zeroline": False}
    return Panel(
        name=name,
        title=title,
        unit=y.unit,
        traces=[trace],
        xaxis={**axis, "title": {"text": f"{x.title} ({x.unit})", "standoff": 8}},
        yaxis=axis,
        layout={"hovermode": "closest"},
    )


def _cells(title: str, count: int) -> dict[str, Any]:
    step = {"tick0": 0, "dtick": layer_step(count)}
    return {
        "title": {"text": title, "standoff": 8},
        "range": [-0.5, count - 0.5],
        "showgrid": False,
        "zeroline": False,
        **step,
    }

"""The map of the stages: the layers divided, the boundaries' intervals, the signals as strips; and a boundary in words."""

from typing import Any

import numpy as np
import plotly.graph_objects as go

from depthscope.report.measured import NBSP
from depthscope.report.palette import OWN
from depthscope.report.panels import Panel, layers
from depthscope.report.wording import joined
from depthscope.schema.stages import SIGNALS, STAGES, votes_near, written

FURTHEST = 3.0
"""Robust spreads at which the stage finder cuts standardised signals."""
ROW = 36
"""Pixels of a signal: its strip and its name above."""


def changes(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The changes of the signals, those with a name and those without."""
    return sorted([*found["boundaries"], *found.get("unnamed_changes", [])], key=lambda one: one["layer"])


def stage_map(found: dict[str, Any]) -> Panel:
    """The layers divided into stages, the boundaries' intervals beneath, and a strip per signal."""
    signals, depth = found["signals"], found["layers"]
    names = [
        {
            "xref": "x domain",
            "yref": "y",
            "x": 0,
            "y": row + 0.5,
            "text": signal["title"] + (" (flat)" if signal.get("flat") else ""),
            "showarrow": False,
            "xanchor": "left",
        }
        for row, signal in enumerate(reversed(signals))
    ]
    height = 96 + ROW * len(signals) + 44
    below = ROW * len(signals) / max(height - 52, 1)
    return Panel(
        name="stages-map",
        title="Stages over the layers",
        unit="",
        traces=[*_strips(signals, depth), _bars(found["stages"]), _bounds(changes(found))],
        xaxis=layers(depth).axis(),
        yaxis={
            "range": [-0.55, len(signals) - 0.25],
            "domain": [0, below],
            "showticklabels": False,
            "ticks": "",
            "showgrid": False,
            "zeroline": False,
        },
        height=height,
        left=8,
        layout={
            "yaxis2": {
                "range": [-0.95, 0.5],
                "domain": [min(below + 0.02, 0.99), 1],
                "showticklabels": False,
                "ticks": "",
                "showgrid": False,
                "zeroline": False,
                "anchor": "x",
            },
            "annotations": names if found["stages"] else [*names, _none(depth)],
            "hovermode": "closest",
            "barmode": "overlay",
        },
    )


def _none(depth: int) -> dict[str, Any]:
    """What stands where the stages would."""
    return {
        "xref": "x",
        "yref": "y2",
        "x": (depth - 1) / 2,
        "y": 0,
        "text": "no stages found",
        "showarrow": False,
        "xanchor": "center",
    }


def _strips(signals: list[dict[str, Any]], depth: int) -> list[go.Heatmap]:
    if not signals:
        return []
    rows = list(reversed(signals))
    standardised = [signal["standardised"] for signal in rows]
    values = np.array([[_number(v) for v in away or [None] * depth] for away in standardised])
    texts = [[_point(signal, layer, value) for layer, value in enumerate(signal["values"])] for signal in rows]
    return [
        go.Heatmap(
            z=values,
            text=texts,
            meta=OWN.name,
            colorscale=[[0, "#FFFFFF"], [1, OWN.light]],
            zmin=-FURTHEST,
            zmax=FURTHEST,
            showscale=False,
            hovertemplate="%{text}<extra></extra>",
            hoverongaps=False,
            ygap=18,
            xgap=1,
        )
    ]


def _point(signal: dict[str, Any], layer: int, value: float | None) -> str:
    standardised = signal.get("standardised")
    away = f"; {said_number(standardised[layer], None)} spreads from its median" if standardised else ""
    return f"<b>{signal['title']}</b><br>layer {layer}: {said_number(value, signal['unit'])}{away}"


def _bars(stages: list[dict[str, Any]]) -> go.Bar:
    return go.Bar(
        base=[stage["first"] - 0.5 for stage in stages],
        x=[stage["last"] - stage["first"] + 1 for stage in stages],
        y=[0.0] * len(stages),
        width=0.9,
        orientation="h",
        yaxis="y2",
        meta=OWN.name,
        marker={"color": OWN.light, "opacity": [(0.2, 0.1)[i % 2] for i in range(len(stages))]},
        text=[_broken(stage["title"]) for stage in stages],
        textfont={"color": OWN.light},
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        hovertext=[f"<b>{stage['title']}</b><br>{span(stage)}" for stage in stages],
        hovertemplate="%{hovertext}<extra></extra>",
        showlegend=False,
        name="stages",
    )


def _bounds(boundaries: list[dict[str, Any]]) -> go.Scatter:
    """A boundary stands between its layer, the first of the later stage, and the one before."""
    return go.Scatter(
        x=[one["layer"] - 0.5 for one in boundaries],
        y=[-0.7] * len(boundaries),
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [0 if one["high"] is None else one["high"] - one["layer"] for one in boundaries],
            "arrayminus": [0 if one["low"] is None else one["layer"] - one["low"] for one in boundaries],
            "thickness": 3,
            "width": 4,
            "color": OWN.light,
        },
        customdata=[[one["layer"], one["layer"], one["low"], one["high"]] for one in boundaries],
        text=[boundary(one) for one in boundaries],
        hovertemplate="%{text}<extra></extra>",
        mode="markers",
        yaxis="y2",
        meta=OWN.name,
        marker={
            "color": OWN.light,
            "symbol": ["circle" if one["after"] else "circle-open" for one in boundaries],
            "size": 8,
        },
        showlegend=False,
        name="boundaries",
    )


def boundary(one: dict[str, Any]) -> str:
    """Where a boundary is and how sure that is, in a sentence."""
    said = f"{_change(one)} at layer {one['layer']}"
    if one["low"] is not None and one["high"] is not None:
        said += f" (95% interval {one['low']} to {one['high']}"
        said += f"; at this layer in {100 * one['support']:.0f}% of resamples)" if one["support"] is not None else ")"
    if one.get("without_one"):
        low, high = one["without_one"]
        said += f"; layer {low}" if low == high else f"; layers {low} to {high}"
        said += " when any one signal is left out"
    return f"{said}{_votes(one)}."


def _change(one: dict[str, Any]) -> str:
    """Which transition a change is; it has no name where the signals do not move as one of the hypothesis's would."""
    if one["before"] is None or one["after"] is None:
        return "A change that is none of the hypothesis’s transitions"
    return f"{stage_title(one['after'])} begins"


def _votes(one: dict[str, Any]) -> str:
    """Where single signals would put the change."""
    votes = one.get("votes") or {}
    if not votes:
        return ""
    there = [f"{_named(name)} ({vote})" for name, vote in votes.items() if vote is not None]
    near = votes_near(one["layer"], votes)
    said = f"; {near} of the {len(votes)} signals that would speak for it change within a layer of it by themselves"
    return f"{said} (alone they change at: {joined(there)})" if there else said


def _named(signal: str) -> str:
    return in_sentence(SIGNALS[signal].title if signal in SIGNALS else signal)


def in_sentence(title: str) -> str:
    """A title as it stands within a sentence: a small letter first, but for abbreviations."""
    return title if title[:2].isupper() else f"{title[0].lower()}{title[1:]}"


def _broken(title: str) -> str:
    """A stage's name in lines, several stages in one a line each."""
    return title.replace(" + ", " +<br>") if " + " in title else title.replace(" ", "<br>")


def span(stage: dict[str, Any]) -> str:
    """`layer 0` or `layers 1–7`."""
    first, last = stage["first"], stage["last"]
    return f"layer {first}" if first == last else f"layers {first}–{last}"


def stage_title(stage: str) -> str:
    """A stage in words."""
    return STAGES.get(stage, stage)


def said_number(value: float | None, unit: str | None) -> str:
    """A number with its unit, shares in per cent; a dash where there is none."""
    if value is None:
        return "–"
    return written(value, unit or "").replace(" ", NBSP)


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)

"""The stages that were found, with how sure their boundaries are, and the signatures they were told by."""

import json
from typing import Any

import numpy as np
import plotly.graph_objects as go

from depthscope.errors import RunError
from depthscope.report.measured import NBSP
from depthscope.report.palette import OWN
from depthscope.report.panels import Panel, layers
from depthscope.report.section import Kind, Section, TextTable
from depthscope.report.wording import joined
from depthscope.run.store import RunDirectory
from depthscope.schema.stages import SIGNALS, STAGES

NAME = "stages"
FILE = "stages.json"
FURTHEST = 3.0
"""Robust spreads at which the stage finder cuts standardised signals."""
ROW = 36
"""Pixels of a signal: its strip and its name above."""


def read_stages(run: RunDirectory) -> dict[str, Any]:
    """What the stage finder wrote. Raises RunError where it wrote nothing, or it cannot be read."""
    file = run.path / FILE
    if not file.exists():
        raise RunError(f"{run.path} has no {FILE}: stages were not looked for")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read: {error}") from error
    expected = ("found", "summary", "layers", "stages", "boundaries", "signals", "signatures")
    missing = [key for key in expected if key not in found] if isinstance(found, dict) else expected
    if missing:
        raise RunError(f"{file} lacks {', '.join(missing)}")
    return found


def build(run: RunDirectory) -> Section:
    """The map of the stages over the signals, the stages' boundaries, and the table of signatures."""
    found = read_stages(run)
    return Section(
        panels=[stage_map(found)] if found["signals"] or found["stages"] else [],
        sentences=[found["summary"], *(_boundary(one) for one in _changes(found))],
        tables=[table for table in (_stages(found), _signatures(found)) if table.rows],
        notes=[
            *(
                ["Points beneath the stages are the changes, their bars 95% intervals from resampling documents."]
                if any(one["low"] is not None for one in _changes(found))
                else []
            ),
            "Each strip shows how far a signal lies from its median over layers, in robust spreads, as stages are found by it: "
            "from 3 below (the page’s colour) to 3 above, cut there.",
        ],
        across=1,
    )


def _changes(found: dict[str, Any]) -> list[dict[str, Any]]:
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
        traces=[*_strips(signals, depth), _bars(found["stages"]), _bounds(_changes(found))],
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
            "annotations": names,
            "hovermode": "closest",
            "barmode": "overlay",
        },
    )


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
    away = f"; {_said(standardised[layer], None)} spreads from its median" if standardised else ""
    return f"<b>{signal['title']}</b><br>layer {layer}: {_said(value, signal['unit'])}{away}"


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
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        hovertext=[f"<b>{stage['title']}</b><br>{_span(stage)}" for stage in stages],
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
        text=[_boundary(one) for one in boundaries],
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


def _boundary(one: dict[str, Any]) -> str:
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
    return f"{_title(one['after'])} begins"


def _votes(one: dict[str, Any]) -> str:
    """Where single signals would put the change."""
    votes = one.get("votes") or {}
    if not votes:
        return ""
    there = [f"{_named(name)} ({vote})" for name, vote in votes.items() if vote is not None]
    said = f"; {len(there)} of {len(votes)} signals that would speak for it do"
    return f"{said}, each alone at: {joined(there)}" if there else said


def _named(signal: str) -> str:
    title = SIGNALS[signal].title if signal in SIGNALS else signal
    return title if title[:2].isupper() else f"{title[0].lower()}{title[1:]}"


def _stages(found: dict[str, Any]) -> TextTable:
    rows = [
        (
            stage["title"],
            _span(stage),
            f"{stage['supported']} of {stage['signatures']}" if "signatures" in stage else "–",
        )
        for stage in found["stages"]
    ]
    return TextTable(title="The stages", head=("Stage", "Layers", "Signatures supported"), rows=rows)


def _broken(title: str) -> str:
    """A stage's name in lines, several stages in one a line each."""
    return title.replace(" + ", " +<br>") if " + " in title else title.replace(" ", "<br>")


def _span(stage: dict[str, Any]) -> str:
    first, last = stage["first"], stage["last"]
    return f"layer {first}" if first == last else f"layers {first}–{last}"


def _signatures(found: dict[str, Any]) -> TextTable:
    rows = [
        (
            _title(one["stage"]),
            one["title"],
            (one["verdict"], one.get("reason") or ""),
            (_said(one["effect"], one["unit"]), _bracket(one)),
            one["test"],
        )
        for one in found["signatures"]
    ]
    head = ("Stage", "Signature", "Verdict", "Effect", "Test")
    return TextTable(title="The signatures of the stages", head=head, rows=rows, words=True)


def _title(stage: str) -> str:
    return STAGES.get(stage, stage)


def _bracket(one: dict[str, Any]) -> str:
    if one["ci_low"] is None or one["ci_high"] is None:
        return ""
    unit = one["unit"] if one["unit"] == "share" else None
    return f"{_said(one['ci_low'], unit)}{NBSP}to{NBSP}{_said(one['ci_high'], unit)}"


def _said(value: float | None, unit: str | None) -> str:
    if value is None:
        return "–"
    text = (f"{100 * value:.1f}%" if unit == "share" else f"{value:.3g}").replace("-", "−")
    return f"{text}{NBSP}{unit}" if unit not in (None, "none", "share") else text


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)


KIND = Kind(
    name=NAME,
    title="The stages",
    source="Lad et al. 2024, figure 1 and table 1",
    experiment=NAME,
    file=FILE,
    build=build,
)

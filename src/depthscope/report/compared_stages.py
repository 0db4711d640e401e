"""The stages of several models beneath each other, and which model supports which signature."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import polars as pl

from depthscope.errors import RunError
from depthscope.report import downloads
from depthscope.report.measured import NBSP
from depthscope.report.overlays import Compared
from depthscope.report.panels import RELATIVE_DEPTH, Panel, XAxis
from depthscope.report.section import Section, TextTable
from depthscope.report.sections.stage_map import in_sentence, said_number, span, stage_title
from depthscope.report.sections.stages import read_stages
from depthscope.report.wording import joined
from depthscope.schema.stages import CANNOT_TELL, NOT_SUPPORTED, STAGES, SUPPORTED

NAME = "stages"
ROW = 64
"""Pixels of a model: its name, and its stages as a bar below."""
OPACITY = dict(zip(STAGES, (0.5, 0.14, 0.3, 0.62), strict=True))
"""How dark a stage is drawn: the same in every model."""
MARKS = {SUPPORTED: "✓", NOT_SUPPORTED: "✗", CANNOT_TELL: "?"}
Found = list[tuple[Compared, dict[str, Any]]]


class Stages:
    """The section's titles."""

    name = NAME
    title = "The stages, model by model"
    source = "Lad et al. 2024, figure 1 and table 1"
    look_for = (
        "boundaries at the same relative depth in every model, and signatures that all models support: what only some show "
        "is no law of depth."
    )


def compared_stages(compared: Sequence[Compared]) -> tuple[Section, dict[str, pl.DataFrame]]:
    """The section, and its tables for saving, each with a column `model`."""
    found, without = _read(compared)
    section = Section(
        panels=[_bars(found)] if any(one["stages"] for _, one in found) else [],
        sentences=signatures_said(found),
        missing=[f"Stages were not looked for, or cannot be read: {joined(without)}."] if without else [],
        notes=["Points on the bars are boundaries, with their 95% intervals over documents."] if found else [],
        tables=[signature_table(found)] if found else [],
        across=1,
    )
    return section, _frames(found)


def _read(compared: Sequence[Compared]) -> tuple[Found, list[str]]:
    found, without = [], []
    for one in compared:
        try:
            found.append((one, read_stages(one.run)))
        except RunError:
            without.append(one.look.title)
    return found, without


def signatures_said(found: Found) -> list[str]:
    """Which signatures all models support, which none, and on which they differ."""
    if len(found) < 2:
        return []
    verdicts: dict[str, list[str]] = {}
    for _, one in found:
        for signature in one["signatures"]:
            verdicts.setdefault(signature["title"], []).append(signature["verdict"])
    by_all = [title for title, said in verdicts.items() if said.count(SUPPORTED) == len(found)]
    by_none = [title for title, said in verdicts.items() if SUPPORTED not in said]
    others = [title for title in verdicts if title not in (*by_all, *by_none)]
    parts = ((by_all, "supported in every model"), (by_none, "supported in none"), (others, "supported in some only"))
    return [
        f"{len(titles)} of {len(verdicts)} signatures are {what}: {'; '.join(map(in_sentence, titles))}."
        for titles, what in parts
        if titles
    ]


def signature_table(found: Found) -> TextTable:
    """A row per signature, a column per model: verdict, effect, interval."""
    order: dict[str, tuple[str, str]] = {}
    cells: dict[tuple[str, int], tuple[str, str]] = {}
    for place, (_, one) in enumerate(found):
        for signature in one["signatures"]:
            order.setdefault(signature["name"], (signature["title"], stage_title(signature["stage"])))
            cells[signature["name"], place] = _verdict(signature)
    rows = [(shown, *(cells.get((name, place), "–") for place in range(len(found)))) for name, shown in order.items()]
    return TextTable(
        title=f"Signatures ({', '.join(f'{mark} {verdict}' for verdict, mark in MARKS.items())})",
        head=("Signature", *(one.look.title for one, _ in found)),
        rows=rows,
    )


def _verdict(signature: dict[str, Any]) -> tuple[str, str]:
    verdict = str(signature["verdict"])
    mark = MARKS.get(verdict, verdict)
    if signature["effect"] is None:
        return mark, verdict
    low, high, unit = signature["ci_low"], signature["ci_high"], signature["unit"]
    bounds = "" if low is None or high is None else f"{said_number(low, unit)}{NBSP}to{NBSP}{said_number(high, unit)}"
    return f"{mark}{NBSP}{said_number(signature['effect'], unit)}", bounds


def _bars(found: Found) -> Panel:
    """Layer l stands at l / (L − 1), as in the curves, half a layer of room at both ends."""
    traces, names = [], []
    for row, (one, stages) in enumerate(reversed(found)):
        last = max(stages["layers"] - 1, 1)
        traces.append(_bar(one, stages["stages"], row, last))
        if bounds := [boundary for boundary in stages["boundaries"] if boundary["low"] is not None]:
            traces.append(_bounds(one, bounds, row, last))
        text = one.look.title if stages["stages"] else f"{one.look.title}: no stages found"
        names.append(
            {"xref": "x domain", "yref": "y", "x": 0, "y": row + 0.44, "text": f"<b>{_plain(text)}</b>"}
            | {"showarrow": False, "xanchor": "left", "yanchor": "middle"}
        )
    ticks = XAxis(title=RELATIVE_DEPTH, last=1).relative_axis() or {}
    room = max((0.5 / max(stages["layers"] - 1, 1) for _, stages in found), default=0.05)
    return Panel(
        name="stages-compared",
        title="Stages over relative depth",
        traces=traces,
        xaxis={**ticks, "range": [-room, 1 + room], "showgrid": False},
        yaxis={
            "range": [-0.6, len(found) - 0.35],
            "showticklabels": False,
            "showgrid": False,
            "zeroline": False,
            "ticks": "",
        },
        height=ROW * len(found) + 60,
        left=8,
        layout={"annotations": names, "hovermode": "closest", "barmode": "overlay"},
    )


def _bar(one: Compared, stages: list[dict[str, Any]], row: int, last: int) -> go.Bar:
    return go.Bar(
        base=[(stage["first"] - 0.5) / last for stage in stages],
        x=[(stage["last"] - stage["first"] + 1) / last for stage in stages],
        y=[float(row)] * len(stages),
        width=0.5,
        orientation="h",
        meta=one.look.name,
        marker={"color": one.look.light, "opacity": [_opacity(stage["name"]) for stage in stages]},
        text=[stage["title"].replace(" + ", " +<br>") for stage in stages],
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        hovertext=[f"<b>{stage['title']}</b><br>{_plain(one.look.title)}, {span(stage)}" for stage in stages],
        hovertemplate="%{hovertext}<extra></extra>",
        name=one.look.title,
        showlegend=False,
    )


def _bounds(one: Compared, bounds: list[dict[str, Any]], row: int, last: int) -> go.Scatter:
    return go.Scatter(
        x=[(bound["layer"] - 0.5) / last for bound in bounds],
        y=[float(row)] * len(bounds),
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [(bound["high"] - bound["layer"]) / last for bound in bounds],
            "arrayminus": [(bound["layer"] - bound["low"]) / last for bound in bounds],
            "thickness": 3,
            "width": 4,
            "color": one.look.light,
        },
        customdata=[[bound["layer"], (bound["layer"] - 0.5) / last, bound["low"], bound["high"]] for bound in bounds],
        text=[
            f"{_plain(one.look.title)}: boundary before layer {b['layer']} ({b['low']} to {b['high']})" for b in bounds
        ],
        hovertemplate="%{text}<extra></extra>",
        mode="markers",
        meta=one.look.name,
        marker={"color": one.look.light, "symbol": one.look.marker, "size": 7},
        name=one.look.title,
        showlegend=False,
    )


def _opacity(name: str) -> float:
    """Stages that were not told apart are drawn between the two."""
    parts = [OPACITY.get(part, 0.2) for part in name.split("+")]
    return sum(parts) / len(parts)


def _plain(text: str) -> str:
    """plotly reads text as HTML, and a model may be called anything."""
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _frames(found: Found) -> dict[str, pl.DataFrame]:
    by_name: dict[str, list[pl.DataFrame]] = {}
    for one, stages in found:
        for name, frame in downloads.of_stages(stages).items():
            model = pl.Series("model", [one.look.title] * len(frame), dtype=pl.String)
            by_name.setdefault(name, []).append(frame.insert_column(0, model))
    return {name: pl.concat(frames) for name, frames in by_name.items()}

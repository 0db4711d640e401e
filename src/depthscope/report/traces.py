"""Panels drawn by plotly, for the page, notebooks and the explorer: traces, axes, shapes and annotations.

All are plain dicts, which the page gets as they are: making plotly's objects of them, which check every value, would take most
of a page's time.

`meta` names a trace's look, from which the page takes its colour. `customdata` of points holds `Points.rows`: layer, relative
depth and the interval's bounds; for heat maps it holds only the bounds.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64

from depthscope.report.measured import Value, scientific
from depthscope.report.palette import Look
from depthscope.report.panels import (
    RELATIVE_DEPTH,
    Axis,
    Bars,
    Heat,
    Hover,
    Mark,
    Note,
    Panel,
    Place,
    Points,
    Strips,
    decade_ticks,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A panel's place in a figure: the names of its axes, one y axis per row, and its share of the figure's height."""

    x: str = "x"
    y: tuple[str, ...]
    height: tuple[float, float] = (0.0, 1.0)

    def up(self, share: float) -> float:
        """Convert a share of the panel's height to a share of the figure's."""
        low, high = self.height
        return low + share * (high - low)


def alone(panel: Panel) -> Cell:
    """A cell that fills the figure: the first row's axis is y, the others are y2, y3 …"""
    return Cell(y=tuple("y" if row == 0 else f"y{row + 1}" for row in range(len(panel.y))))


def axis_key(name: str) -> str:
    """The layout key of an axis: `yaxis2` for y2."""
    return f"{name[0]}axis{name[1:]}"


def plain(text: str) -> str:
    """Text escaped for plotly's markup: names in a run's files are arbitrary. All text in plots goes through here.

    A dollar sign would begin a formula where a notebook has MathJax, and a formula can be a link.
    """
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("$", "&#36;").replace("\n", "<br>")


def in_template(text: str) -> str:
    """Text escaped for plotly's templates, which replace `%{…}` before they read markup."""
    return plain(text).replace("{", "&#123;")


def traces(panel: Panel, cell: Cell, *, x_is: str | None = None) -> list[dict[str, Any]]:
    """The marks as traces, in order. Matrices are arrays.

    `x_is`: layer or relative depth, for a static figure: points that a logarithmic axis cannot show are then empty. None: the
    page's script handles both, so it gets x by layer and every point.
    """
    return [
        {key: value for key, value in {**_trace(panel, mark, x_is), **_on(cell, mark.row)}.items() if value is not None}
        for mark in panel.marks
    ]


def layout(panel: Panel, cell: Cell, *, x_is: str | None = None) -> dict[str, Any]:
    """Axes, shapes and annotations; `x_is` as for `traces`."""
    names = [axis_key(name) for name in cell.y]
    rows = dict(zip(names, (_y(panel, row, cell) for row in range(len(panel.y))), strict=True))
    found: dict[str, Any] = {axis_key(cell.x): x_axis(panel, cell, x_is), **rows, **_drawn_over(panel, cell)}
    if any(isinstance(mark, Bars) for mark in panel.marks):
        found["barmode"] = "overlay"
    if panel.together and len(panel.y) > 1:
        found["hoversubplots"] = "axis"
    return found


def with_margins(whole: dict[str, Any]) -> dict[str, Any]:
    """A layout whose axes make room for their labels."""
    automatic = {key: own | {"automargin": True} for key, own in whole.items() if key.startswith(("xaxis", "yaxis"))}
    return whole | automatic


def hovermode(panels: Sequence[Panel]) -> str:
    """The hover mode of a figure with some panels."""
    return "x unified" if all(panel.together for panel in panels) else "closest"


def x_axis(panel: Panel, cell: Cell, x_is: str | None = None) -> dict[str, Any]:
    """The x axis by layer or by relative depth, below the lowest row."""
    shown = panel.relative if x_is == RELATIVE_DEPTH and panel.relative else panel.x
    return {**axis(shown), **({"anchor": cell.y[panel.lowest_row]} if len(panel.y) > 1 else {})}


def axis(own: Axis) -> dict[str, Any]:
    """An axis as plotly layout."""
    found: dict[str, Any] = {"zeroline": own.zero_line, "showgrid": own.grid, **_reach(own), **_ticks(own)}
    if own.title:
        found["title"] = {"text": plain(own.title), "standoff": 8}
    if own.hover is not None:
        x = f"%{{x:{own.hover}}}" if own.hover else "%{x}"
        said = {"text": f"{in_template(own.title)} {x}, mean (95% interval)"}
        found |= {"spikethickness": 1, "spikedash": "dot", "unifiedhovertitle": said}
    return found


def _reach(own: Axis) -> dict[str, Any]:
    found: dict[str, Any] = {} if own.scale == "linear" else {"type": own.scale}
    if own.range:
        ends = [_logged(end, own) for end in own.range]
        return {**found, "range": ends[::-1] if own.reversed else ends}
    if own.from_zero:
        found["rangemode"] = "tozero"
    if own.reversed:
        found["autorange"] = "reversed"
    return found


def _ticks(own: Axis) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if own.scale == "log":
        found |= {"exponentformat": "none", "minorloglabels": "complete" if own.between else "none", "nticks": 6}
    if own.step is not None:
        found |= {"dtick": "D2"} if own.step == "1-2-5" else {"tick0": 0, "dtick": own.step}
    if own.form:
        found["tickformat"] = own.form
    return found if own.labelled else {**found, "showticklabels": False, "ticks": ""}


def _y(panel: Panel, row: int, cell: Cell) -> dict[str, Any]:
    own = panel.y[row]
    found = axis(own)
    if own.part != (0.0, 1.0):
        found["domain"] = [cell.up(end) for end in own.part]
        found |= {"nticks": 5} if own.labelled else {}  # rows are lower than panels
    return {**found, "anchor": cell.x} if len(panel.y) > 1 else found


def _on(cell: Cell, row: int) -> dict[str, str]:
    """The axes of a trace, omitting plotly's defaults x and y."""
    axes = {"xaxis": cell.x, "yaxis": cell.y[row]}
    return {key: name for key, name in axes.items() if name not in ("x", "y")}


def _trace(panel: Panel, mark: Mark, x_is: str | None) -> dict[str, Any]:
    if isinstance(mark, Points):
        return _points(panel, mark, x_is)
    if isinstance(mark, Bars):
        return _bars(mark)
    return _heat(mark) if isinstance(mark, Heat) else _strips(mark)


def _points(panel: Panel, points: Points, x_is: str | None) -> dict[str, Any]:
    look = points.look
    by_share = x_is == RELATIVE_DEPTH and panel.relative is not None and points.shares
    symbol: Any = look.marker
    if points.hollow:
        symbol = [f"{look.marker}-open" if hollow else look.marker for hollow in points.hollow]
    return {
        "type": "scatter",
        "x": list(points.shares) if by_share else [_at(x) for x in points.x],
        "y": [_at(y) for y in points.y] if x_is is None else [_escaped(y) for y in panel.drawn_y(points)],
        "error_x": _error(points, "x"),
        "error_y": _error(points, "y"),
        "customdata": [list(row) for row in points.rows()],
        "text": [_said(one) for one in points.hover],
        "hovertemplate": "%{text}<extra></extra>",
        "mode": "lines+markers" if points.line else "markers",
        "name": plain(points.name),
        "meta": look.name,
        "line": {"color": look.light, "width": 1.75, "dash": look.dash} if points.line else None,
        "marker": {"color": look.light, "symbol": symbol, "size": points.size},
        "showlegend": None if points.legend else False,
    }


def _error(points: Points, which: Any) -> dict[str, Any] | None:
    reach = points.reach(which)
    if reach is None:
        return None
    return {
        "type": "data",
        "symmetric": False,
        "array": [up for _, up in reach],
        "arrayminus": [down for down, _ in reach],
        "color": points.look.light if points.caps else _translucent(points.look),
        "thickness": points.bar,
        "width": 4 if points.caps else 0,
    }


def _translucent(look: Look) -> str:
    return f"rgba({', '.join(str(int(look.light[i : i + 2], 16)) for i in (1, 3, 5))}, 0.4)"


def _bars(mark: Bars) -> dict[str, Any]:
    """The bars, each with centred text."""
    return {
        "type": "bar",
        "base": [bar.start for bar in mark.bars],
        "x": [bar.end - bar.start for bar in mark.bars],
        "y": [mark.y] * len(mark.bars),
        "width": mark.thickness,
        "orientation": "h",
        "meta": mark.look.name,
        "marker": {"color": mark.look.light, "opacity": [bar.shade for bar in mark.bars]},
        "text": [plain(bar.text) for bar in mark.bars],
        "textfont": {"color": mark.look.light},
        "textposition": "inside",
        "insidetextanchor": "middle",
        "textangle": 0,
        "hovertext": [_said(bar.hover) for bar in mark.bars],
        "hovertemplate": "%{hovertext}<extra></extra>",
        "showlegend": False,
        "name": plain(mark.name),
    }


def _heat(mark: Heat) -> dict[str, Any]:
    numbers = np.array([[_numbers(value) for value in row] for row in mark.cells])
    form = ".1%" if mark.share else ".3~g"
    known = not np.isnan(numbers[..., 1:]).all()
    bounds = f" (%{{customdata[0]:{form}}} to %{{customdata[1]:{form}}})" if known else ""
    rows, columns = map(in_template, mark.names)
    gap = 0 if mark.crowded else 1
    shown = "customdata[2]" if mark.log else "z"
    ends = numbers[..., [1, 2, 0]] if mark.log else numbers[..., 1:]
    return {
        "type": "heatmap",
        "z": mark.shades,
        "x": [plain(one) for one in mark.columns] or None,
        "customdata": ends,
        "meta": mark.look.name,
        "colorscale": [[at, colour] for at, colour in mark.colours],
        "zmid": 0 if mark.signed and mark.end is None else None,
        "zmin": None if mark.end is None else -mark.end if mark.signed else 0,
        "zmax": mark.end,
        "colorbar": {
            "thickness": 10,
            "outlinewidth": 0,
            "xpad": 4,
            "len": 1,
            **(_decades(mark.shades) if mark.log else {"tickformat": ".3~%" if mark.share else "~g"}),
        },
        "hovertemplate": f"{rows} %{{y}}, {columns} %{{x}}: <b>%{{{shown}:{form}}}</b>{bounds}<extra></extra>",
        "hoverongaps": False,
        "xgap": gap,
        "ygap": gap,
    }


def _decades(shades: Float64[np.ndarray, "row column"]) -> dict[str, Any]:
    """Ticks of a colour bar by logarithms: at powers of ten, or at 1, 2 and 5 of each where there are few."""
    ticks = decade_ticks(shades)
    return {"tickmode": "array", "tickvals": ticks, "ticktext": [scientific(10**at, 1) for at in ticks]}


def _strips(mark: Strips) -> dict[str, Any]:
    return {
        "type": "heatmap",
        "z": np.array([[math.nan if value is None else value for value in row] for row in mark.cells], dtype=float),
        "text": [[_said(one) for one in row] for row in mark.hover],
        "meta": mark.look.name,
        "colorscale": [[at, colour] for at, colour in mark.colours],
        "zmin": -mark.furthest,
        "zmax": mark.furthest,
        "showscale": False,
        "hovertemplate": "%{text}<extra></extra>",
        "hoverongaps": False,
        "ygap": 18,
        "xgap": 1,
    }


def _drawn_over(panel: Panel, cell: Cell) -> dict[str, list[Any]]:
    """Bands, levels and notes, if there are any."""
    low, high = cell.height
    bands = [
        {
            "type": "rect",
            "xref": cell.x,
            "yref": "paper",
            "x0": band.start,
            "x1": band.end,
            "y0": low,
            "y1": high,
            "fillcolor": f"rgba(128, 128, 128, {band.shade:.3f})",
            "line": {"width": 0},
            "layer": "below",
        }
        for band in panel.bands
    ]
    levels = [
        {
            "type": "line",
            "xref": f"{cell.x} domain",
            "yref": cell.y[level.row],
            "x0": 0,
            "x1": 1,
            "y0": level.y,
            "y1": level.y,
            "line": {"width": 1, "dash": "dot"},
        }
        for level in panel.levels
    ]
    notes = [_note(panel, note, cell) for note in panel.texts]
    return {key: drawn for key, drawn in (("shapes", bands + levels), ("annotations", notes)) if drawn}


def _note(panel: Panel, note: Note, cell: Cell) -> dict[str, Any]:
    own = panel.y[note.row]
    x = _logged(note.x, panel.x) if note.x_of == "data" else note.x
    y = _logged(note.y, own) if note.y_of == "data" else cell.up(note.y)
    text = plain(note.text)
    right, up = note.shift
    return {
        "xref": cell.x if note.x_of == "data" else f"{cell.x} domain",
        "yref": cell.y[note.row] if note.y_of == "data" else "paper",
        "x": x,
        "y": y,
        "text": f"<b>{text}</b>" if note.bold else text,
        "showarrow": False,
        "xanchor": note.align,
        "yanchor": "bottom" if note.above else "middle",
        "align": note.align,
        **({"xshift": right} if right else {}),
        **({"yshift": up} if up else {}),
    }


def _logged(place: float, own: Axis) -> float:
    """A value's position for ranges and annotations, which, unlike traces and shapes, need logarithms on a logarithmic axis."""
    return math.log10(place) if own.scale == "log" else place


def _said(one: Hover) -> str:
    head = f"<b>{plain(one.head)}</b>" if one.head else ""
    return f"{head}{plain(one.text)}"


def _at(place: Place) -> float | str:
    return place.mean if isinstance(place, Value) else plain(place)


def _escaped(y: float | str | None) -> float | str | None:
    return plain(y) if isinstance(y, str) else y


def _numbers(value: Value | None) -> list[float]:
    ends = (None, None, None) if value is None else (value.mean, value.low, value.high)
    return [math.nan if end is None else end for end in ends]

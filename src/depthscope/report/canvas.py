"""Panels drawn by matplotlib: the same traces, axes, bands and notes that plotly draws on the page, sized for a paper."""

import math
import re
from collections.abc import Mapping, Sequence
from html import unescape
from typing import Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, MultipleLocator, NullFormatter

from depthscope.report.panels import Panel

WIDTH = 7.2
"""Inches: the text width of a page with two columns."""
LEFT, RIGHT, ABOVE, BELOW, HEAD = 0.5, 0.1, 0.24, 0.38, 0.24
"""Inches around a panel's axes, and for the title and for the legend above all panels."""
BAR = 0.42
"""Inches for the colour bar of a heat map."""
PIXELS = 120
"""Pixels of the page that make an inch."""
SIZE, CHARACTER = 7.5, 0.06
"""Points of a panel's title, and inches of a bold character at that size."""
MARKERS = {
    "circle": "o",
    "square": "s",
    "square-open": "s",
    "diamond": "D",
    "diamond-open": "D",
    "circle-open": "o",
    "triangle-up": "^",
    "triangle-down": "v",
    "triangle-left": "<",
    "triangle-right": ">",
    "star": "*",
    "pentagon": "p",
}
DASHES = {"dash": (4, 2), "dot": (1, 1.5), "dashdot": (4, 1.5, 1, 1.5), "longdash": (8, 2)}


def drawn(panels: Sequence[Panel], across: int, heading: str) -> Figure:
    """Panels in rows of `across` under a heading and a legend."""
    columns = min(across, len(panels))
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    heights = [max(panel.height for panel in row) / PIXELS * (1 if columns == 1 else 0.85) for row in rows]
    handles = _legend(panels)
    head = HEAD * (2 if handles else 1)
    whole = head + sum(heights) + 0.05
    figure = Figure(figsize=(WIDTH, whole))
    figure.text(0.006, 1 - 0.16 / whole, heading, color="#586069", fontsize=7)
    if handles:
        figure.legend(
            handles=list(handles.values()),
            labels=list(handles),
            loc="upper right",
            bbox_to_anchor=(0.994, 1 - HEAD * 0.8 / whole),
            ncols=min(len(handles), 5),
            frameon=False,
            fontsize=7,
            handlelength=2.6,
            columnspacing=1.2,
            borderaxespad=0.1,
        )
    top = whole - head
    for row, height in zip(rows, heights, strict=True):
        for place, panel in enumerate(row):
            width = WIDTH / columns
            _draw(figure, panel, (place * width, top - height, width, height), whole)
        top -= height
    return figure


def _legend(panels: Sequence[Panel]) -> dict[str, Line2D]:
    """A handle per name of a curve; none where there is one curve alone."""
    curves: list[Any] = [
        t for panel in panels for t in panel.traces if isinstance(t, go.Scatter) and t.showlegend is not False
    ]
    handles = {trace.name: Line2D([], [], **_style(trace)) for trace in curves}
    return handles if len(handles) > 1 else {}


def _draw(figure: Figure, panel: Panel, box: tuple[float, float, float, float], whole: float) -> None:
    """A panel within a box of inches: a background for bands and notes, and an axes per y axis in its domain."""
    x, y, width, height = box
    barred = any(isinstance(trace, go.Heatmap) and trace.showscale is not False for trace in panel.traces)
    left = max(LEFT, panel.left / 100)
    up, tall = y + BELOW, height - BELOW - ABOVE
    wide = width - left - RIGHT - (BAR if barred else 0)

    def place(low: float = 0.0, high: float = 1.0) -> tuple[float, float, float, float]:
        return (x + left) / WIDTH, (up + low * tall) / whole, wide / WIDTH, (high - low) * tall / whole

    behind = figure.add_axes(place())
    behind.set_axis_off()
    names = ["yaxis", *sorted(key for key in panel.layout if re.fullmatch(r"yaxis\d+", key))]
    specified = {name: panel.yaxis if name == "yaxis" else panel.layout[name] for name in names}
    domains = {name: one.get("domain", (0.0, 1.0)) for name, one in specified.items()}
    lowest = min(names, key=lambda name: domains[name][0])
    axes = {name: figure.add_axes(place(*map(float, domains[name]))) for name in names}
    for name, one in axes.items():
        one.patch.set_alpha(0)
        for trace in panel.seen():
            if f"yaxis{(trace.yaxis or 'y')[1:]}" == name:
                _trace(figure, one, trace, panel.xaxis.get("range", (0.0, 1.0)))
        _y(one, specified[name])
        _x(one, panel.xaxis, name == lowest)
    more = max(_label_width(one) for one in axes.values()) - left
    if more > 0:  # labels that would reach out of the panel
        left, wide = left + more, wide - more
        for name, one in {"": behind, **axes}.items():
            one.set_position(place(*map(float, domains.get(name, (0.0, 1.0)))))
    behind.set_xlim(axes[lowest].get_xlim())
    behind.set_ylim(0, 1)
    title = f"{panel.title} ({panel.unit})" if panel.unit else panel.title
    fitting = min(SIZE, SIZE * (width - left - 0.05) / (CHARACTER * len(title)))
    above = 1 + 0.06 / tall
    behind.text(0, above, title, transform=behind.transAxes, va="bottom", fontweight="bold", fontsize=fitting)
    _shapes_and_notes(panel, axes, behind)


def _label_width(axes: Axes) -> float:
    """Inches that the labels of the y axis take to its left."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    renderer = FigureCanvasAgg(figure).get_renderer()
    box = axes.yaxis.get_tightbbox(renderer)
    return 0.0 if box is None else (axes.get_window_extent(renderer).x0 - box.x0) / figure.dpi + 0.03


def _trace(figure: Figure, axes: Axes, trace: Any, reach: Sequence[float]) -> None:
    if isinstance(trace, go.Heatmap):
        _heat(figure, axes, trace)
    elif isinstance(trace, go.Bar):
        _bars(axes, trace, reach)
    else:
        _curve(axes, trace)


def _curve(axes: Axes, trace: Any) -> None:
    x, y = ([math.nan if v is None else v for v in values or ()] for values in (trace.x, trace.y))
    for bars, direction in ((trace.error_y, "yerr"), (trace.error_x, "xerr")):
        if bars.array is not None and bars.visible is not False and len(x):
            down = bars.arrayminus if bars.arrayminus is not None else bars.array
            error: Any = {direction: np.clip([down, bars.array], 0, None)}
            colour, width = trace.marker.color, bars.thickness * 0.45
            axes.errorbar(x, y, **error, fmt="none", ecolor=colour, alpha=0.4, elinewidth=width)
    axes.plot(x, y, **_style(trace))


def _style(trace: Any) -> dict[str, Any]:
    """A curve's colour, line and marker in matplotlib's words."""
    symbol = trace.marker.symbol if isinstance(trace.marker.symbol, str) else "circle"
    lined = "lines" in (trace.mode or "")
    pattern = DASHES.get(trace.line.dash or "")
    return {
        "color": trace.marker.color or trace.line.color,
        "marker": MARKERS.get(symbol, "o") if "markers" in (trace.mode or "") else "",
        "markersize": 0.5 * (trace.marker.size if isinstance(trace.marker.size, int | float) else 5.5),
        "markerfacecolor": "white" if symbol.endswith("-open") else trace.marker.color or trace.line.color,
        "linestyle": ((0, pattern) if pattern else "-") if lined else "",
        "linewidth": 1.1,
    }


def _heat(figure: Figure, axes: Axes, trace: Any) -> None:
    """Cells of one size; strips, which leave room between rows, at half their height."""
    values = np.array(trace.z, dtype=float)
    colours = LinearSegmentedColormap.from_list("panel", [(at, colour) for at, colour in trace.colorscale])
    known = values[np.isfinite(values)]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
    if trace.zmid is not None:
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
    low, high = (own if own is not None else seen for own, seen in ((trace.zmin, low), (trace.zmax, high)))
    half = 0.25 if (trace.ygap or 0) > 5 else 0.5
    mesh = None
    for row, line in enumerate(values):
        mesh = axes.pcolormesh(
            np.arange(len(line) + 1) - 0.5,
            [row - half, row + half],
            line[None],
            cmap=colours,
            vmin=low,
            vmax=high if high > low else low + 1,
            edgecolors="white" if trace.xgap else "face",
            linewidth=0.4 if trace.xgap else 0.0,
            rasterized=values.size > 5000,
        )
    if trace.showscale is not False and mesh is not None:
        x, y, width, height = axes.get_position().bounds
        beside = figure.add_axes((x + width + 0.08 / WIDTH, y, 0.07 / WIDTH, height))
        bar = figure.colorbar(mesh, cax=beside, format=FuncFormatter(_written(trace.colorbar.tickformat)))
        bar.outline.set_visible(False)  # type: ignore[operator]
        beside.tick_params(labelsize=6.5)


def _bars(axes: Axes, trace: Any, reach: Sequence[float]) -> None:
    """Bars that lie, each with its text in the middle, smaller where the bar is narrow."""
    (low, high), inches = reach, axes.get_position().width * WIDTH
    opacities = trace.marker.opacity or [1.0] * len(trace.y)
    for y, left, width, opacity, text in zip(trace.y, trace.base, trace.x, opacities, trace.text, strict=True):
        axes.barh(y, width, left=left, height=trace.width, color=trace.marker.color, alpha=opacity, linewidth=0)
        longest = max(map(len, _plain(text).split("\n")))
        room = SIZE * 1.1 * width / (high - low) * inches / (CHARACTER * max(longest, 1))
        axes.text(left + width / 2, y, _plain(text), ha="center", va="center", fontsize=min(6.5, room))


def _x(axes: Axes, axis: dict[str, Any], labelled: bool) -> None:
    axes.grid(axis="x", visible=axis.get("showgrid", True))
    if axis.get("type") == "log":
        _logarithmic(axes, "x", axis)
    else:
        if "range" in axis:
            axes.set_xlim(*axis["range"])
        elif axis.get("rangemode") == "tozero":
            axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
        axes.xaxis.set_major_locator(MultipleLocator(axis["dtick"]) if "dtick" in axis else MaxNLocator(6))
        axes.xaxis.set_major_formatter(FuncFormatter(_written(axis.get("tickformat"))))
    if not labelled:
        axes.tick_params(bottom=False, labelbottom=False)
        axes.spines["bottom"].set_visible(False)
    elif title := axis.get("title", {}).get("text"):
        axes.set_xlabel(_plain(title), labelpad=2)


def _y(axes: Axes, axis: dict[str, Any]) -> None:
    if axis.get("autorange") == "reversed":
        axes.invert_yaxis()
    axes.grid(axis="y", visible=axis.get("showgrid", True))
    if axis.get("showticklabels") is False:
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
    if axis.get("type") == "log":
        _logarithmic(axes, "y", axis)
    elif axis.get("type") != "category":
        if "range" in axis:
            axes.set_ylim(*axis["range"])
        elif axis.get("rangemode") == "tozero":
            axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
        if axis.get("showticklabels") is not False:
            step = axis.get("dtick")
            axes.yaxis.set_major_locator(MultipleLocator(step) if isinstance(step, int | float) else MaxNLocator(5))
            axes.yaxis.set_major_formatter(FuncFormatter(_written(axis.get("tickformat"))))
        if axis.get("zeroline") and axes.get_ylim()[0] < 0 < axes.get_ylim()[1]:
            axes.axhline(0, color="#586069", linewidth=0.6, zorder=1)


def _logarithmic(axes: Axes, which: str, axis: dict[str, Any]) -> None:
    """Ticks at 1, 2 and 5 of each power of ten over few powers, at the powers alone over many."""
    own = axes.yaxis if which == "y" else axes.xaxis
    (axes.set_yscale if which == "y" else axes.set_xscale)("log", nonpositive="mask")
    limit, seen = (axes.set_ylim, axes.get_ylim) if which == "y" else (axes.set_xlim, axes.get_xlim)
    if "range" in axis:
        limit(*(10**end for end in axis["range"]))
    low, high = seen()
    few = math.log10(high / low) < (2.5 if which == "y" else 1.2)
    own.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=12))
    own.set_major_formatter(FuncFormatter(_written(None)))
    own.set_minor_formatter(NullFormatter())


def _written(form: str | None) -> Any:
    """How a tick is written: per cent where the page's axis says so, plain figures otherwise."""
    if form and form.endswith("%"):
        return lambda value, _: f"{100 * value:.3g}%".replace("-", "−")
    return lambda value, _: f"{value:.6g}".replace("-", "−")


def _shapes_and_notes(panel: Panel, axes: Mapping[str, Axes], behind: Axes) -> None:
    """Bands behind all rows, dotted levels, and notes at places of the panel or of its data."""
    for shape in panel.layout.get("shapes", ()):
        if shape["type"] == "rect":
            opacity = float(shape["fillcolor"].rsplit(",", 1)[1].rstrip(") "))
            behind.axvspan(shape["x0"], shape["x1"], color="#808080", alpha=opacity, linewidth=0)
        else:
            axes["yaxis"].axhline(shape["y0"], color="#586069", linewidth=0.8, linestyle=":")
    for note in panel.layout.get("annotations", ()):
        on_page = note.get("yref") == "paper"
        number = "" if on_page else note.get("yref", "y")[1:]
        own = behind if on_page else axes[f"yaxis{number}"]
        logarithmic = not on_page and not number and panel.yaxis.get("type") == "log"
        y = 10 ** note["y"] if logarithmic else note["y"]
        fraction = "domain" in note.get("xref", "")
        system: Any = (own.transAxes if fraction else own.transData, own.transData)
        own.annotate(
            _plain(note["text"]),
            xy=(note["x"], y),
            xycoords=system,
            xytext=(0.5 * note.get("xshift", 0), 0.5 * note.get("yshift", 0)),
            textcoords="offset points",
            ha=note.get("xanchor", "left"),
            va={"bottom": "bottom", "middle": "center", "top": "top"}.get(note.get("yanchor", "middle"), "center"),
            fontsize=6.5,
            fontweight="bold" if "<b>" in note["text"] else "normal",
            linespacing=1.1,
        )


def _plain(text: str) -> str:
    """plotly's HTML as text."""
    return unescape(re.sub(r"<[^>]+>", "", text.replace("<br>", "\n")))

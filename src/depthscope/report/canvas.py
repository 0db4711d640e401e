"""Panels drawn by matplotlib: the same content as plotly's on the page (traces.py), sized for a paper."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, MultipleLocator, NullFormatter

from depthscope.report.measured import Value, scientific
from depthscope.report.panels import Axis, Bars, Heat, Mark, Panel, Points, Strips, decade_ticks

WIDTH = 7.2
"""Inches: the text width of a two-column page."""
LEFT, RIGHT, ABOVE, BELOW, HEAD = 0.5, 0.1, 0.24, 0.38, 0.24
"""Inches around a panel's axes, and for the title and the legend above all panels."""
BAR = 0.42
"""Inches for the colour bar of a heat map."""
PIXELS = 120
"""Page pixels per inch."""
SIZE, CHARACTER = 7.5, 0.06
"""Font size in points of a panel's title, and the width in inches of a bold character at that size."""
MARKERS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "triangle-down": "v",
    "triangle-left": "<",
    "triangle-right": ">",
    "star": "*",
    "pentagon": "p",
    "cross": "P",
    "line-ew": "_",
}
"""The looks' markers in matplotlib; the suffix `-open` means a white face."""
DASHES: Any = {
    "solid": "-",
    "dash": (0, (4, 2)),
    "dot": (0, (1, 1.5)),
    "dashdot": (0, (4, 1.5, 1, 1.5)),
    "longdash": (0, (8, 2)),
}


def drawn(panels: Sequence[Panel], across: int, heading: str) -> Figure:
    """Draw panels in rows of `across` below a heading and a legend."""
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
    """A legend handle per curve name; empty if there is only one curve."""
    handles = {one.name: Line2D([], [], **_style(one)) for panel in panels for one in panel.points if one.legend}
    return handles if len(handles) > 1 else {}


def _draw(figure: Figure, panel: Panel, box: tuple[float, float, float, float], whole: float) -> None:
    """Draw a panel in a box given in inches: background axes for bands and notes, and axes for each row."""
    x, y, width, height = box
    barred = any(isinstance(mark, Heat) for mark in panel.marks)
    left = max(LEFT, panel.left / 100)
    up, tall = y + BELOW, height - BELOW - ABOVE
    wide = width - left - RIGHT - (BAR if barred else 0)

    def place(low: float = 0.0, high: float = 1.0) -> tuple[float, float, float, float]:
        return (x + left) / WIDTH, (up + low * tall) / whole, wide / WIDTH, (high - low) * tall / whole

    behind = figure.add_axes(place())
    behind.set_axis_off()
    rows = [figure.add_axes(place(*axis.part)) for axis in panel.y]
    for row, axes in enumerate(rows):
        axes.patch.set_alpha(0)
        for mark in panel.marks:
            if mark.row == row:
                _mark(figure, axes, mark, panel)
        _axis(axes, "y", panel.y[row])
        _axis(axes, "x", panel.x, outer=row == panel.lowest_row)
    more = max(map(_label_width, rows)) - left
    if more > 0:  # labels that would extend outside the panel
        left, wide = left + more, wide - more
        behind.set_position(place())
        for axes, axis in zip(rows, panel.y, strict=True):
            axes.set_position(place(*axis.part))
    behind.set_xscale(rows[0].get_xscale())
    behind.set_xlim(rows[panel.lowest_row].get_xlim())
    behind.set_ylim(0, 1)
    above, room = 1 + 0.06 / tall, width - left - RIGHT
    fitting = SIZE * min(1, room / max(_width(panel.called), 0.01))
    behind.text(0, above, panel.called, transform=behind.transAxes, va="bottom", fontweight="bold", fontsize=fitting)
    _bands_and_notes(panel, rows, behind)


def _width(title: str) -> float:
    """Width in inches of a panel's title, whatever resolution it is drawn in: hinting makes letters up to a tenth narrower."""
    return TextPath((0, 0), title, size=SIZE, prop=FontProperties(weight="bold")).get_extents().width / 72


def _label_width(axes: Axes) -> float:
    """Width in inches of the y axis's labels."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    renderer = FigureCanvasAgg(figure).get_renderer()
    box = axes.yaxis.get_tightbbox(renderer)
    return 0.0 if box is None else (axes.get_window_extent(renderer).x0 - box.x0) / figure.dpi + 0.03


def _mark(figure: Figure, axes: Axes, mark: Mark, panel: Panel) -> None:
    if isinstance(mark, Points):
        _points(axes, mark, panel)
    elif isinstance(mark, Bars):
        _bars(axes, mark, panel.x.range or (0.0, 1.0))
    elif isinstance(mark, Heat):
        _heat(figure, axes, mark)
    else:
        _strips(axes, mark)


def _points(axes: Axes, points: Points, panel: Panel) -> None:
    x: Any = [place.mean if isinstance(place, Value) else place for place in points.x]
    y: Any = [math.nan if place is None else place for place in panel.drawn_y(points)]
    for bars, direction in ((points.reach("y"), "yerr"), (points.reach("x"), "xerr")):
        if bars:
            error: Any = {direction: np.clip(np.transpose(bars), 0, None)}
            axes.errorbar(x, y, **error, fmt="none", ecolor=points.look.light, alpha=0.4, elinewidth=points.bar * 0.45)
    style = _style(points)
    axes.plot(x, y, **style)
    if any(points.hollow):
        at = [i for i, hollow in enumerate(points.hollow) if hollow]
        axes.plot([x[i] for i in at], [y[i] for i in at], **{**style, "linestyle": "", "markerfacecolor": "white"})


def _style(points: Points) -> dict[str, Any]:
    """The points' colour, line and marker as matplotlib options."""
    look = points.look
    hollow = look.marker.endswith("-open")
    return {
        "color": look.light,
        "marker": MARKERS[look.marker.removesuffix("-open")],
        "markersize": 0.5 * points.size,
        "markerfacecolor": "white" if hollow else look.light,
        "markeredgewidth": 0.6 if hollow and not points.line else 1.0,  # small ones without a line would look filled
        "linestyle": DASHES[look.dash] if points.line else "",
        "linewidth": 1.1,
    }


def _heat(figure: Figure, axes: Axes, mark: Heat) -> None:
    """Draw a heat map and its colour bar."""
    values = mark.shades
    known = values[np.isfinite(values)]
    low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
    if mark.signed:
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
    if mark.end is not None:
        low, high = (-mark.end if mark.signed else 0.0), mark.end
    mesh = _cells(axes, mark, values, (low, high), half=0.5, gap=not mark.crowded)
    x, y, width, height = axes.get_position().bounds
    beside = figure.add_axes((x + width + 0.08 / WIDTH, y, 0.07 / WIDTH, height))
    bar = figure.colorbar(mesh, cax=beside, format=FuncFormatter(_written(".0%" if mark.share else "~g")))
    if mark.log:
        ticks = decade_ticks(values)
        bar.set_ticks(ticks, labels=[scientific(10**at, 1) for at in ticks])
    if mark.columns:
        axes.set_xticks(range(len(mark.columns)), mark.columns)
    bar.outline.set_visible(False)  # type: ignore[operator]
    beside.tick_params(labelsize=6.5)


def _strips(axes: Axes, mark: Strips) -> None:
    """Draw cells at half of the row's height, which leaves room for the rows' names."""
    values = np.array([[math.nan if one is None else one for one in row] for row in mark.cells], dtype=float)
    _cells(axes, mark, values, (-mark.furthest, mark.furthest), half=0.25, gap=True)


def _cells(
    axes: Axes,
    mark: Heat | Strips,
    values: Float[np.ndarray, "row column"],
    reach: tuple[float, float],
    half: float,
    gap: bool,
) -> ScalarMappable:
    low, high = reach
    shades = LinearSegmentedColormap.from_list("panel", mark.colours)
    scale = Normalize(low, high if high > low else low + 1)
    for row, line in enumerate(values):
        axes.pcolormesh(
            np.arange(len(line) + 1) - 0.5,
            [row - half, row + half],
            line[None],
            cmap=shades,
            norm=scale,
            edgecolors="white" if gap else "face",
            linewidth=0.4 if gap else 0.0,
            rasterized=values.size > 5000,
        )
    return ScalarMappable(scale, shades)


def _bars(axes: Axes, mark: Bars, reach: tuple[float, float]) -> None:
    """Draw horizontal bars with centred text, smaller if the bar is narrow."""
    (low, high), inches = reach, axes.get_position().width * WIDTH
    for bar in mark.bars:
        width, y = bar.end - bar.start, mark.y
        axes.barh(y, width, left=bar.start, height=mark.thickness, color=mark.look.light, alpha=bar.shade, linewidth=0)
        longest = max(map(len, bar.text.split("\n")))
        room = SIZE * 1.1 * width / (high - low) * inches / (CHARACTER * max(longest, 1))
        axes.text(bar.start + width / 2, y, bar.text, ha="center", va="center", fontsize=min(6.5, room))


def _axis(axes: Axes, which: Literal["x", "y"], axis: Axis, outer: bool = True) -> None:
    """Set limits, ticks, grid and title of an axis. `outer`: whether it is at the panel's edge, and so labelled."""
    own, side = (axes.xaxis, "bottom") if which == "x" else (axes.yaxis, "left")
    axes.grid(axis=which, visible=axis.grid)
    if not axis.labelled:
        own.set_ticks([])
    if axis.scale == "log":
        _logarithmic(axes, which, axis)
    elif axis.scale == "linear":
        _linear(axes, which, axis)
    if axis.reversed:
        own.set_inverted(True)
    if not outer:
        axes.tick_params(axis=which, bottom=False, labelbottom=False)
    elif axis.title:
        own.set_label_text(axis.title)
        own.labelpad = 2
    axes.spines[side].set_visible(outer and axis.labelled)


def _linear(axes: Axes, which: Literal["x", "y"], axis: Axis) -> None:
    own = axes.xaxis if which == "x" else axes.yaxis
    limit, seen = (axes.set_xlim, axes.get_xlim) if which == "x" else (axes.set_ylim, axes.get_ylim)
    if axis.range:
        limit(*axis.range)
    elif axis.from_zero:
        limit(min(0.0, seen()[0]), None)
    if axis.labelled:
        fitting = MaxNLocator(6 if which == "x" else 5)
        own.set_major_locator(MultipleLocator(axis.step) if isinstance(axis.step, int | float) else fitting)
        own.set_major_formatter(FuncFormatter(_written(axis.form)))
    if axis.zero_line and seen()[0] < 0 < seen()[1]:
        (axes.axvline if which == "x" else axes.axhline)(0, color="#586069", linewidth=0.6, zorder=1)


def _logarithmic(axes: Axes, which: Literal["x", "y"], axis: Axis) -> None:
    """Set ticks at 1, 2 and 5 of each power of ten for short ranges, at powers of ten only for long ones."""
    own = axes.yaxis if which == "y" else axes.xaxis
    (axes.set_yscale if which == "y" else axes.set_xscale)("log", nonpositive="mask")
    limit, seen = (axes.set_ylim, axes.get_ylim) if which == "y" else (axes.set_xlim, axes.get_xlim)
    if axis.range:
        limit(*axis.range)
    low, high = seen()
    few = math.log10(high / low) < (2.5 if which == "y" else 1.2)
    own.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=12))
    own.set_major_formatter(FuncFormatter(_written("")))
    own.set_minor_formatter(NullFormatter())


def _written(form: str) -> Any:
    """A formatter for ticks: per cent if the format says so, plain numbers otherwise."""
    if form.endswith("%"):
        return lambda value, _: f"{100 * value:.3g}%".replace("-", "−")
    return lambda value, _: f"{value:.6g}".replace("-", "−")


def _bands_and_notes(panel: Panel, rows: Sequence[Axes], behind: Axes) -> None:
    """Draw bands behind all rows, dotted levels, and notes in panel or data coordinates."""
    for band in panel.bands:
        behind.axvspan(band.start, band.end, color="#808080", alpha=band.shade, linewidth=0)
    for level in panel.levels:
        rows[level.row].axhline(level.y, color="#586069", linewidth=0.8, linestyle=":")
    for note in panel.texts:
        own = rows[note.row] if note.y_of == "data" else behind
        right, up = note.shift
        system: Any = (own.transData if note.x_of == "data" else own.transAxes, own.transData)
        own.annotate(
            note.text,
            xy=(note.x, note.y),
            xycoords=system,
            xytext=(0.5 * right, 0.5 * up),
            textcoords="offset points",
            ha=note.align,
            va="bottom" if note.above else "center",
            fontsize=6.5,
            fontweight="bold" if note.bold else "normal",
            linespacing=1.1,
        )

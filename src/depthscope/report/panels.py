"""The content of a plot as plain values: marks, bands, levels, notes and axes. Two renderers draw it.

`traces.py` draws panels with plotly (page, notebooks, explorer), `canvas.py` with matplotlib (files for papers). Texts here are
plain, with `\\n` between lines, and positions are in data units, on a logarithmic axis too: renderers handle markup, escaping
and logarithms. `charts.py` builds panels from tables' values.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float64

from depthscope.report.measured import Value
from depthscope.report.palette import SOFT, Look

LAYER, RELATIVE_DEPTH = "layer", "relative depth"
AXES = (LAYER, RELATIVE_DEPTH)
CROWDED = 30
"""Number of points above which full-size markers would touch, and of cells above which gaps would hide them."""
WHITE = "#FFFFFF"


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """An x axis, or the y axis of one row of a panel."""

    title: str = ""
    scale: Literal["linear", "log", "category"] = "linear"
    range: tuple[float, float] | None = None
    """Limits in data units; None: the range of the data."""
    from_zero: bool = False
    """Whether an axis without `range` includes 0."""
    step: float | Literal["1-2-5"] | None = None
    """Distance between ticks, from 0; on a logarithmic axis in decades, or at 1, 2 and 5 of each. None: as many as fit."""
    between: bool = True
    """Whether a logarithmic axis also has labels between powers of ten, if there is room."""
    form: str = ""
    """Format specification of tick labels (`.0%`, `~g`); empty: as short as possible."""
    grid: bool = True
    zero_line: bool = False
    labelled: bool = True
    """Whether it has labelled ticks."""
    reversed: bool = False
    """Whether values increase downwards, or to the left."""
    hover: str | None = None
    """The format of x in the heading of the page's hover box, with a line at the pointer; None: neither."""
    part: tuple[float, float] = (0.0, 1.0)
    """The part of the panel's height that a row takes, as shares from the bottom."""

    @property
    def lowest(self) -> float:
        """The value that drawn values must exceed: the lower end of a logarithmic axis; minus infinity on others."""
        if self.scale != "log":
            return -math.inf
        return self.range[0] if self.range else 0.0


class Hover(NamedTuple):
    """The hover text of a point: a bold head, directly followed by text."""

    head: str
    text: str = ""


class Row(NamedTuple):
    """A point's values in the table: layer (or other integer), relative depth, and the bounds of the 95% interval."""

    layer: float
    share: float
    low: float | None
    high: float | None


Place = Value | str
"""A place on an axis: a number with an optional interval, or the name of a category."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Points with 95% intervals, with or without a line. Sizes are in page pixels."""

    name: str
    look: Look
    x: tuple[Place, ...]
    y: tuple[Place, ...]
    hover: tuple[Hover, ...]
    layers: tuple[Value, ...] = ()
    """The points' layers in the table, if they differ from x."""
    shares: tuple[float, ...] = ()
    """x as relative depth, where x is a layer."""
    line: bool = True
    size: float = 5.5
    bar: float = 5.0
    """Thickness of the error bars."""
    caps: bool = False
    """Whether error bars have caps and full colour, for panels whose main content is the intervals."""
    hollow: tuple[bool, ...] = ()
    """Which points are hollow; empty: none."""
    legend: bool = True
    row: int = 0

    def rows(self) -> list[Row]:
        """Each point's values in the table. The interval is y's or, if y has none, x's."""
        own = self.layers or self.x
        return [
            Row(
                _mean(layer, i),
                self.shares[i] if self.shares else _mean(x, i),
                *_ends(y if _ends(y) != NO_ENDS else layer),
            )
            for i, (layer, x, y) in enumerate(zip(own, self.x, self.y, strict=True))
        ]

    def reach(self, axis: Literal["x", "y"]) -> list[tuple[float, float]] | None:
        """How far each interval extends below and above its mean; None if no point has an interval on that axis."""
        values = self.x if axis == "x" else self.y
        ends = [_ends(value) for value in values]
        if all(end == NO_ENDS for end in ends):
            return None
        means = [_mean(value, i) for i, value in enumerate(values)]
        return [
            (0.0 if low is None else mean - low, 0.0 if high is None else high - mean)
            for mean, (low, high) in zip(means, ends, strict=True)
        ]


NO_ENDS = (None, None)


def _mean(place: Place, index: int) -> float:
    return place.mean if isinstance(place, Value) else float(index)  # the index of the category


def _ends(place: Place) -> tuple[float | None, float | None]:
    return (place.low, place.high) if isinstance(place, Value) else NO_ENDS


class Bar(NamedTuple):
    """A horizontal bar from one x to another. `shade`: its opacity, from 0 to 1."""

    start: float
    end: float
    shade: float
    text: str
    """Centred on the bar."""
    hover: Hover


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """Bars side by side at one y."""

    name: str
    look: Look
    bars: tuple[Bar, ...]
    y: float = 0.0
    thickness: float
    """In units of y."""
    row: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Heat:
    """A heat map with a colour bar, rows upwards from 0; None: an empty cell."""

    look: Look
    cells: tuple[tuple[Value | None, ...], ...]
    names: tuple[str, str]
    """The meaning of rows and of columns."""
    share: bool
    """Whether values are shares, displayed in per cent."""
    signed: bool = False
    """Whether values may be negative (grey); 0 is then the middle of the colour scale."""
    columns: tuple[str, ...] = ()
    """The columns' names, on an axis of categories; empty: columns are numbered from 0."""
    log: bool = False
    """Whether colours are by the logarithm of the value. Values that are not positive are empty cells then."""
    end: float | None = None
    """The absolute value at which the colour scale ends, from 0 or, if signed, from minus this; None: that of the data."""
    row: int = 0

    @property
    def colours(self) -> list[tuple[float, str]]:
        """The colour scale as (position, colour), from lowest to highest: white to the look's colour; grey below 0."""
        return [(0.0, SOFT[0]), (0.5, WHITE), (1.0, self.look.light)] if self.signed else _from_white(self.look)

    @property
    def shades(self) -> Float64[np.ndarray, "row column"]:
        """What the colours are by: the means, or their logarithms to base 10; NaN for empty cells."""
        means = np.array([[math.nan if one is None else one.mean for one in row] for row in self.cells], dtype=float)
        if not self.log:
            return means
        return np.log10(np.where(means > 0, means, np.nan))

    @property
    def crowded(self) -> bool:
        """Whether there are so many cells that gaps would hide them."""
        return max(len(self.cells), *map(len, self.cells), 0) > CROWDED


def decade_ticks(logarithms: Float64[np.ndarray, "row column"]) -> list[float]:
    """Places of ticks for values given by their logarithms to base 10: powers of ten, or 1, 2 and 5 of each if few."""
    known = logarithms[np.isfinite(logarithms)]
    if not len(known):
        return []
    low, high = known.min(), known.max()
    within = (1, 2, 5) if high - low < 2.5 else (1,)
    decades = range(math.floor(low), math.ceil(high) + 1)
    ticks = [decade + math.log10(digit) for decade in decades for digit in within]
    return [at for at in ticks if low - 1e-9 <= at <= high + 1e-9]


@dataclass(frozen=True, slots=True, kw_only=True)
class Strips:
    """Rows of cells on one scale, with space for a note above each; None: an empty cell."""

    look: Look
    cells: tuple[tuple[float | None, ...], ...]
    hover: tuple[tuple[Hover, ...], ...]
    furthest: float
    """The colour scale ranges from minus this to this."""
    row: int = 0

    @property
    def colours(self) -> list[tuple[float, str]]:
        """The colour scale as (position, colour), from the lowest value to the highest."""
        return _from_white(self.look)


def _from_white(look: Look) -> list[tuple[float, str]]:
    return [(0.0, WHITE), (1.0, look.light)]


Mark = Points | Bars | Heat | Strips


class Band(NamedTuple):
    """A grey band from one x to another over the full height, behind everything. `shade`: its opacity, from 0 to 1."""

    start: float
    end: float
    shade: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A text without an arrow."""

    text: str
    x: float
    y: float
    x_of: Literal["data", "panel"] = "panel"
    """Whether x is in data units, or a share of the panel's width."""
    y_of: Literal["data", "panel"] = "data"
    align: Literal["left", "center", "right"] = "left"
    """Which end of the text is at x."""
    above: bool = False
    """Whether the text's bottom, rather than its middle, is at y."""
    shift: tuple[float, float] = (0.0, 0.0)
    """Pixels to the right and upwards."""
    bold: bool = False
    row: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """A dotted horizontal line, with a label at its right end."""

    y: float
    text: str = ""
    row: int = 0

    @property
    def note(self) -> Note | None:
        """The label as a note above the line."""
        if not self.text:
            return None
        return Note(text=self.text, x=1.0, y=self.y, align="right", shift=(0.0, 8.0), row=self.row)


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One plot."""

    name: str
    title: str
    unit: str = ""
    marks: tuple[Mark, ...]
    """In drawing order."""
    x: Axis
    y: tuple[Axis, ...]
    """One per row; marks, levels and notes refer to their row."""
    relative: Axis | None = None
    """The x axis as relative depth; None if x is not a layer."""
    bands: tuple[Band, ...] = ()
    levels: tuple[Level, ...] = ()
    notes: tuple[Note, ...] = ()
    log: bool = False
    """Whether the first row has a logarithmic axis that can be switched to linear."""
    together: bool = True
    """Whether hovering shows all curves at that x; otherwise only the nearest mark."""
    height: int = 300
    key: tuple[Look, ...] = ()
    """The curves' looks, listed above the plot, where they are not those of the section's legend."""
    left: int = 46
    """Space to the left of the y axis in pixels; the axis takes more if its labels need it."""

    def __post_init__(self) -> None:
        """Raises ValueError if something would be misplaced when x is relative depth."""
        if self.relative is None:
            return
        by_layer = [*self.bands, *(note for note in self.notes if note.x_of == "data")]
        by_layer += [mark for mark in self.marks if not isinstance(mark, Points) or len(mark.shares) != len(mark.x)]
        if by_layer:
            raise ValueError(f"panel {self.name!r} can use relative depth, but has {by_layer[0]!r} at layers")

    @property
    def called(self) -> str:
        """Title and unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def points(self) -> list[Points]:
        """The curves and single points."""
        return [mark for mark in self.marks if isinstance(mark, Points)]

    @property
    def texts(self) -> list[Note]:
        """All notes, those of the levels first."""
        return [*(level.note for level in self.levels if level.note), *self.notes]

    @property
    def lowest_row(self) -> int:
        """The bottom row, which has the x axis."""
        return min(range(len(self.y)), key=lambda row: self.y[row].part[0])

    def drawn_y(self, points: Points) -> Sequence[float | str | None]:
        """y of each point; None below the end of a logarithmic axis: a line to it would leave the panel as a stub.

        The page does this in `onAxis` of page.js, because the axis can be switched to linear there.
        """
        lowest = self.y[points.row].lowest
        return [y if isinstance(y, str) else y.mean if y.mean > lowest else None for y in points.y]

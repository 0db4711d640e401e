"""Panels from tables' values: lines by layer, heat maps, rankings, scatter plots.

Every point shows the table's numbers: the mean and the bounds of its 95% interval.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from depthscope.errors import RunError
from depthscope.report.measured import Series, Value, interval, is_share, with_unit
from depthscope.report.palette import OWN, Look
from depthscope.report.panels import CROWDED, LAYER, RELATIVE_DEPTH, Axis, Heat, Hover, Level, Panel, Points
from depthscope.schema.metric import Metric

MOST_CELLS = 1_000_000
"""Of a heat map: 1,000 layers by 1,000. Larger ones take minutes to draw, and their page 100 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A line of a panel: values by x, and the label of each point on hover."""

    look: Look
    values: Series
    call: str
    """With `{}` for x: `drop({})`."""
    title: str | None = None
    """Legend title in notebooks, if it differs from the look's."""
    points_only: bool = False
    """Points with thin error bars and no line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class XAxis:
    """Integers first … last on the x axis; `relative`: whether they are layers or depths, which have a relative depth."""

    title: str
    last: int
    first: int = 0
    relative: bool = True

    def share(self, x: int) -> float:
        """x / last: 0 for the first layer, 1 for the last; 0 in a model of one layer."""
        return x / self.last if self.last else 0.0

    def axis(self) -> Axis:
        """An axis half a step wider than the numbers, and the same in all panels: swaps end a layer before drops."""
        reach = (self.first - 0.5, self.last + 0.5)
        return Axis(title=self.title, range=reach, step=float(layer_step(self.last + 1)), hover="")

    def relative_axis(self) -> Axis | None:
        """The same axis as relative depth, if the numbers are layers or depths."""
        return relative_axis(0.5 / max(self.last, 1)) if self.relative else None


def layers(depth: int) -> XAxis:
    """The x axis for the layers of a model."""
    return XAxis(title=LAYER, last=depth - 1)


def relative_axis(margin: float) -> Axis:
    """An axis of relative depth from 0 to 1, with a margin at both ends."""
    return Axis(title=RELATIVE_DEPTH, range=(-margin, 1 + margin), step=0.25, hover=".2f")


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
    """Curves of one metric with 95% error bars. `levels` are horizontal lines with their labels.

    `share_of_all`: whether the axis of a share always runs from 0 to 1.
    """
    return Panel(
        name=name,
        title=title,
        unit=_unit(metric) if unit is None else unit,
        marks=tuple(line(curve, metric, x) for curve in curves),
        x=x.axis(),
        relative=x.relative_axis(),
        y=(y_axis(metric, log, share_of_all),),
        levels=tuple(Level(y=y, text=text) for y, text in levels),
        log=log,
    )


def on_one_scale(panels: Sequence[Panel]) -> list[Panel]:
    """Give panels the same y range, from the lowest to the highest bound of an interval."""
    values = [y for panel in panels for points in panel.points for y in points.y if isinstance(y, Value)]
    reached = [end for value in values for end in (value.mean, value.low, value.high) if end is not None]
    low, high = min(reached, default=0.0), max(reached, default=1.0)
    room = 0.04 * (high - low or 1.0)
    return [with_y(panel, range=(low - room, high + room)) for panel in panels]


def with_y(panel: Panel, **changes: object) -> Panel:
    """A copy of a panel with changes to its first y axis."""
    first, *others = panel.y
    return replace(panel, y=(replace(first, **changes), *others))  # type: ignore[arg-type]


def layer_step(depth: int) -> int:
    """Layers between two ticks, for at most about nine labels."""
    return next(step for step in (1, 2, 4, 5, 10, 20, 50, 100, 1000) if depth <= 9 * step or step == 1000)


def line(curve: Curve, metric: Metric, x: XAxis) -> Points:
    """A curve with 95% error bars, or without bars if the table has no intervals."""
    crowded = x.last >= CROWDED
    return Points(
        name=curve.title or curve.look.title,
        look=curve.look,
        x=tuple(Value(float(n)) for n in curve.values),
        y=tuple(curve.values.values()),
        hover=tuple(hover(curve.call.replace("{}", str(n)), value, metric) for n, value in curve.values.items()),
        shares=tuple(x.share(n) for n in curve.values),
        line=not curve.points_only,
        size=4.0 if crowded else 5.5,
        bar=2.0 if curve.points_only else 4.0 if crowded else 5.0,
    )


def hover(called: str, value: Value, metric: Metric) -> Hover:
    """The hover text of a point; it contains the layer, so that it is shown on the relative axis too."""
    bounds = f" ({interval(value, metric)})" if value.has_interval else ""
    return Hover(called, f"  {with_unit(value, metric)}{bounds}")


def y_axis(metric: Metric, log: bool, share_of_all: bool) -> Axis:
    """The y axis of a metric: shares in per cent, over the full range if `share_of_all`."""
    if is_share(metric) and share_of_all and (metric.lowest or 0) >= 0:
        return Axis(range=(-0.02, 1.02), form=".0%", step=0.25)
    if log:
        return Axis(scale="log")
    # Trimmed decimals: for small shares, labels in whole per cent would repeat.
    form = ".3~%" if is_share(metric) else "~g"
    return Axis(zero_line=True, from_zero=metric.lowest == 0, form=form)


def heat(
    name: str,
    title: str,
    metric: Metric,
    values: Mapping[tuple[int, int], Value],
    shape: tuple[int, int],
    axes: tuple[str, str],
    look: Look = OWN,
    height: int = 300,
    columns_named: Sequence[str] = (),
    log: bool = False,
) -> Panel:
    """A heat map of values by (row, column), rows upwards; cells without a value stay empty.

    `columns_named`: the columns' names, if they are not numbers from 0. `log`: colours by the logarithm.
    For a signed quantity, values below 0 are grey. Raises RunError for a map of more than MOST_CELLS.
    """
    rows, columns = shape
    if rows * columns > MOST_CELLS:
        raise RunError(f"“{title}” has {rows:,} × {columns:,} cells: expected at most {MOST_CELLS:,} in a figure")
    known = {place: value for place, value in values.items() if value.mean is not None}
    mark = Heat(
        look=look,
        cells=tuple(tuple(known.get((row, column)) for column in range(columns)) for row in range(rows)),
        names=axes,
        share=is_share(metric),
        signed=not log and metric.lowest is not None and metric.lowest < 0,
        columns=tuple(columns_named),
        log=log,
    )
    y, x = (
        Axis(title=title, range=(-0.5, count - 0.5), step=float(layer_step(count)), grid=False)
        for title, count in zip(axes, shape, strict=True)
    )
    if columns_named:
        x = replace(x, scale="category")
    return Panel(name=name, title=title, unit=_unit(metric), marks=(mark,), x=x, y=(y,), together=False, height=height)


def ranking(
    name: str, title: str, metric: Metric, look: Look, values: Sequence[tuple[str, Value]], height: int = 300
) -> Panel:
    """Named values with their intervals, one per line."""
    mark = Points(
        name=look.title,
        look=look,
        x=tuple(value for _, value in values),
        y=tuple(called for called, _ in values),
        hover=tuple(hover(called, value, metric) for called, value in values),
        line=False,
        size=7.0,
    )
    return Panel(
        name=name,
        title=title,
        unit=_unit(metric),
        marks=(mark,),
        x=Axis(form=".0%" if is_share(metric) else "~g", from_zero=True, zero_line=True),
        y=(Axis(scale="category", reversed=True),),
        together=False,
        height=height,
        left=64,
    )


def scatter(
    name: str, title: str, metrics: tuple[Metric, Metric], look: Look, points: Sequence[tuple[str, Value, Value]]
) -> Panel:
    """A scatter plot of two metrics on logarithmic axes, each point with both intervals."""
    x, y = metrics
    said = [(hover(called, b, y), f"\n{x.title} {with_unit(a, x)}") for called, a, b in points]
    mark = Points(
        name=look.title,
        look=look,
        x=tuple(across for _, across, _ in points),
        y=tuple(up for _, _, up in points),
        hover=tuple(Hover(one.head, one.text + more) for one, more in said),
        line=False,
        size=6.0,
        bar=4.0,
    )
    axis = Axis(scale="log", between=False)
    return Panel(
        name=name,
        title=title,
        unit=y.unit,
        marks=(mark,),
        x=replace(axis, title=f"{x.title} ({x.unit})"),
        y=(axis,),
        together=False,
    )


def _unit(metric: Metric) -> str:
    return "%" if is_share(metric) else "" if metric.unit == "none" else metric.unit

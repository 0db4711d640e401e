"""The model at a glance, after the paper's figure 1: what layers cost, attend to and write, over the stages found."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from depthscope.errors import RunError
from depthscope.report.measured import Series, Value, depth_of, read_sweep, read_table, series
from depthscope.report.palette import DROP, NEURONS, REACHES, Look
from depthscope.report.panels import Curve, Panel, layers, line, y_axis
from depthscope.report.section import Kind, Section
from depthscope.report.sections import attention, neurons, stages
from depthscope.report.wording import joined
from depthscope.run.store import RunDirectory
from depthscope.schema.attention import ATTENTION_TABLE, BANDS, PREVIOUS
from depthscope.schema.metric import Metric
from depthscope.schema.neurons import NEURON_COUNTS_TABLE
from depthscope.schema.sweep import KL

NAME = "overview"
DENSITY = Metric(
    "density", "share", "Neurons of the kind", "share of the layer's MLP neurons that are of the kind", 0.0
)
BROKEN = "<br>"
SHADES = (0.17, 0.05)
"""How dark the bands of neighbouring stages are: grey, so that no colour of a quantity is taken."""
STEPS = 12
"""Slices in which one shade becomes the next across a boundary's interval."""
LEAST = 0.001
"""The axis of densities reaches at least as far: a neuron in a thousand."""
ROW, NAME_LINE, GAP, BELOW = 128, 17, 26, 48
"""Pixels of a row of curves, of a stage's name, between rows, and of the x axis with its title."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A quantity of the figure, on an axis of its own."""

    title: str
    metric: Metric
    curves: Sequence[Curve]
    log: bool = False


def build(run: RunDirectory) -> Section:
    """One figure over the layers: KL of dropping each, attention to the five tokens before, density of prediction and
    suppression neurons, with the stages as bands. Raises RunError where the run has none of the three quantities.
    """
    rows, missing = [], []
    for what, read in QUANTITIES.items():
        try:
            rows.append(read(run))
        except RunError:
            missing.append(what)
    if not rows:
        raise RunError(f"{run.path} has none of what the overview shows: {joined(list(QUANTITIES))}")
    found, why = _stages(run)
    reached = max(max(curve.values, default=0) for row in rows for curve in row.curves)
    shown = [curve.look for row in rows for curve in row.curves]
    return Section(
        panels=[_panel(rows, depth_of(run.manifest, reached + 1), found)],
        missing=[f"Not in the figure, because this run has no such table: {joined(missing)}."] if missing else [],
        legend=[_named(look) for look in shown],
        notes=[why, *_none_of_a_kind(rows)] if why else _none_of_a_kind(rows),
        definitions=[*dict.fromkeys(row.metric for row in rows)],
        across=1,
    )


def _named(look: Look) -> Look:
    return Look(look.name, look.title, "", look.light, look.dark, look.marker, look.glyph, look.dash)


def _dropped(run: RunDirectory) -> Row:
    values = read_sweep(run).series("drop", KL)
    if not values:
        raise RunError(f"{run.path} has no layer drops")
    return Row(
        title="KL of dropping the layer, nats",
        metric=KL,
        curves=[Curve(look=DROP, values=values, call="drop({})")],
        log=True,
    )


def _local(run: RunDirectory) -> Row:
    """Attention to the paper's five tokens before; the mean entry of five sub-diagonals under protocol lad2024."""
    table = read_table(run, attention.NAME, ATTENTION_TABLE)
    for metric in (PREVIOUS[attention.PAPER], BANDS[attention.PAPER]):
        if values := series(table, metric):
            curve = Curve(look=REACHES[attention.PAPER], values=values, call="attention of layer {}")
            return Row(title=metric.title, metric=metric, curves=[curve])
    raise RunError(f"{run.path} has no attention to the {attention.PAPER} tokens before")


def _density(run: RunDirectory) -> Row:
    curves = [
        Curve(look=NEURONS[kind], values=density(kind, run), call=f"layer {{}}, {kind}")
        for kind in ("prediction", "suppression")
    ]
    return Row(title="Neurons of the two kinds, of the layer’s", metric=DENSITY, curves=curves)


def density(kind: str, run: RunDirectory) -> Series:
    """Neurons of a kind as a share of their layer's, by layer. Raises RunError where they were not counted."""
    table = read_table(run, neurons.COUNTS, NEURON_COUNTS_TABLE)
    rows = table.filter(kind=kind).sort("layer").select("layer", "share").iter_rows()
    return {layer: Value(share) for layer, share in rows if share is not None}


QUANTITIES = {
    "the KL of dropping each layer": _dropped,
    "attention to the five tokens before": _local,
    "the density of prediction and suppression neurons": _density,
}
"""The rows of the figure from above, and how each is read."""


def _none_of_a_kind(rows: Sequence[Row]) -> list[str]:
    """That curves lie on the axis, which is easily taken for curves that are missing."""
    none = [
        curve.look.title.lower()
        for row in rows
        if row.metric is DENSITY
        for curve in row.curves
        if not any(value.mean for value in curve.values.values())
    ]
    lie = "their curve lies" if len(none) == 1 else "their curves lie"
    return [f"The model has no {' and no '.join(none)}: {lie} on the axis, at 0."] if none else []


def _stages(run: RunDirectory) -> tuple[dict[str, Any] | None, str]:
    """What the stage finder wrote, and what is said where it gives no bands."""
    try:
        found = stages.read_stages(run)
    except RunError:
        return None, "Stages were not looked for in this run, so there are no bands."
    if not found["stages"]:
        return None, "No stages were found, so there are no bands."
    return found, "Bands are the stages found; a band’s edge fades over the 95% interval of its boundary."


def _panel(rows: Sequence[Row], depth: int, found: dict[str, Any] | None) -> Panel:
    """Rows beneath each other on one x axis, under the stages' names."""
    x = layers(depth)
    names = _names(found["stages"]) if found else []
    head = NAME_LINE * sum(name.count(BROKEN) + 1 for _, _, name in names)
    inner = head + len(rows) * (ROW + GAP)
    axes: dict[str, Any] = {}
    traces, notes = [], _headings(names, depth, inner)
    for place, row in enumerate(rows):
        number = "" if place == 0 else str(place + 1)
        top = 1 - (head + place * (ROW + GAP) + GAP) / inner
        domain = [max(0.0, top - ROW / inner), top]
        axes[f"yaxis{number}"] = {**y_axis(row.metric, row.log, False), "nticks": 5, **_shown(row), "domain": domain}
        traces += [line(curve, row.metric, x).update(yaxis=f"y{number}") for curve in row.curves]
        notes.append({**_LEFT, "x": 0, "xref": "x domain", "y": top, "xshift": 5, "text": f"<b>{row.title}</b>"})
    lowest = f"y{len(rows) if len(rows) > 1 else ''}"
    own = axes.pop("yaxis")
    return Panel(
        name=NAME,
        title="What each layer costs, attends to and writes",
        traces=traces,
        xaxis={**x.axis(), "anchor": lowest},
        yaxis=own,
        log=rows[0].log,
        height=inner + BELOW,
        layout={
            **axes,
            "shapes": _bands(found, depth) if found else [],
            "annotations": notes,
            "hoversubplots": "axis",
        },
    )


def _shown(row: Row) -> dict[str, Any]:
    if row.metric is not DENSITY:
        return {}
    return density_axis([value for curve in row.curves for value in curve.values.values()])


def density_axis(values: Sequence[Value]) -> dict[str, Any]:
    """Densities are often below a per cent, and where all are 0 an axis up to 100% would say nothing."""
    most = max([LEAST, *(value.mean for value in values)])
    return {"range": [-0.05 * most, 1.08 * most], "tickformat": ".2~%"}


_LEFT = {"yref": "paper", "xanchor": "left", "yanchor": "bottom", "showarrow": False, "align": "left"}


def _names(found: Sequence[dict[str, Any]]) -> list[tuple[int, int, str]]:
    """(first layer, last layer, name) of each stage."""
    return [(stage["first"], stage["last"], stage["title"].replace(" + ", f" +{BROKEN}")) for stage in found]


def _headings(names: Sequence[tuple[int, int, str]], depth: int, inner: int) -> list[dict[str, Any]]:
    """Stages' names on lines of their own, so that none stands over another however narrow the figure: from the left edge
    of their band, or to its right edge in the deeper half."""
    notes, down = [], 0
    for first, last, name in names:
        down += NAME_LINE * (name.count(BROKEN) + 1)
        deep = first + last >= depth
        notes.append(
            {
                **_LEFT,
                "xref": "x",
                "x": last + 0.5 if deep else first - 0.5,
                "xanchor": "right" if deep else "left",
                "align": "right" if deep else "left",
                "y": 1 - down / inner,
                "xshift": -5 if deep else 5,
                "text": name,
            }
        )
    return notes


def _bands(found: dict[str, Any], depth: int) -> list[dict[str, Any]]:
    """Rectangles behind the curves: a stage's own shade, and between two stages slices from one shade to the other."""
    shapes, left = [], -0.5
    for place, stage in enumerate(found["stages"]):
        shade, after = SHADES[place % 2], SHADES[(place + 1) % 2]
        if place + 1 == len(found["stages"]):
            shapes.append(_band(left, depth - 0.5, shade))
            break
        low, high = _edge(found, stage["last"] + 1)
        shapes.append(_band(left, low, shade))
        width = (high - low) / STEPS
        if width > 0:
            shares = [(i + 0.5) / STEPS for i in range(STEPS)]
            shapes += [
                _band(low + i * width, low + (i + 1) * width, shade + share * (after - shade))
                for i, share in enumerate(shares)
            ]
        left = high
    return [shape for shape in shapes if shape["x1"] > shape["x0"]]


def _edge(found: dict[str, Any], layer: int) -> tuple[float, float]:
    """From where to where the boundary before a layer may lie; a point where there is no interval."""
    for one in found["boundaries"]:
        if one["layer"] == layer and one["low"] is not None and one["high"] is not None:
            return one["low"] - 0.5, one["high"] - 0.5
    return layer - 0.5, layer - 0.5


def _band(left: float, right: float, shade: float) -> dict[str, Any]:
    return {
        "type": "rect",
        "xref": "x",
        "yref": "paper",
        "x0": left,
        "x1": right,
        "y0": 0,
        "y1": 1,
        "fillcolor": f"rgba(128, 128, 128, {shade:.3f})",
        "line": {"width": 0},
        "layer": "below",
    }


KIND = Kind(
    name=NAME,
    title="The model at a glance",
    source="Lad et al. 2024, figure 1",
    experiment=NAME,
    file="",
    build=build,
    look_for="whether the hypothesis’s picture shows: local attention and a costly layer first, a flat robust middle, "
    "prediction neurons rising late and suppression neurons rising past them at the end, each turning at a stage’s edge.",
)

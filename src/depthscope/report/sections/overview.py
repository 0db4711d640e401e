"""The model at a glance, after the paper's figure 1: drop cost, local attention and neuron density over the stages found."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from depthscope.errors import RunError
from depthscope.report.charts import Curve, layers, line, y_axis
from depthscope.report.measured import Series, Value, depth_of, read_sweep, read_table, series
from depthscope.report.palette import DROP, NEURONS, REACHES, Look
from depthscope.report.panels import Axis, Band, Note, Panel
from depthscope.report.section import Kind, Section
from depthscope.report.sections import attention, neurons, stages
from depthscope.report.wording import joined
from depthscope.run.store import RunDirectory
from depthscope.schema.attention import ATTENTION_TABLE, BANDS, PREVIOUS
from depthscope.schema.found_stages import Stage, Stages
from depthscope.schema.metric import Metric
from depthscope.schema.neurons import NEURON_COUNTS_TABLE
from depthscope.schema.sweep import KL

NAME = "overview"
DENSITY = Metric(
    "density", "share", "Neurons of the kind", "share of the layer's MLP neurons that are of the kind", 0.0
)
SHADES = (0.17, 0.05)
"""Opacity of the bands of neighbouring stages: grey, so that no quantity's colour is used."""
STEPS = 12
"""Number of slices in the gradient between two shades across a boundary's interval."""
LEAST = 0.001
"""Least upper end of the density axis: one neuron in a thousand."""
ROW, NAME_LINE, GAP, BELOW = 128, 17, 26, 48
"""Pixels of a row of curves, of a stage's name, between rows, and of the x axis with its title."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A quantity of the figure, on its own y axis."""

    title: str
    metric: Metric
    curves: Sequence[Curve]
    log: bool = False


def build(run: RunDirectory) -> Section:
    """One figure over the layers: KL of dropping each, attention to the five tokens before, density of prediction and
    suppression neurons, with the stages as bands. Raises RunError if the run has none of the three quantities.
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
        missing=[f"Not in the figure, because this run lacks the table: {joined(missing)}."] if missing else [],
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
    """Attention to the previous five tokens, as in the paper; the mean entry of five sub-diagonals under protocol lad2024."""
    table = read_table(run, attention.NAME, ATTENTION_TABLE)
    for metric in (PREVIOUS[attention.PAPER], BANDS[attention.PAPER]):
        if values := series(table, metric):
            curve = Curve(look=REACHES[attention.PAPER], values=values, call="attention of layer {}")
            return Row(title=metric.title, metric=metric, curves=[curve])
    raise RunError(f"{run.path} has no attention to the previous {attention.PAPER} tokens")


def _density(run: RunDirectory) -> Row:
    curves = [
        Curve(look=NEURONS[kind], values=density(kind, run), call=f"layer {{}}, {kind}")
        for kind in ("prediction", "suppression")
    ]
    return Row(title="Neurons of the two kinds, share of the layer’s", metric=DENSITY, curves=curves)


def density(kind: str, run: RunDirectory) -> Series:
    """Neurons of a kind as a share of the layer's neurons, by layer. Raises RunError if they were not counted."""
    table = read_table(run, neurons.COUNTS, NEURON_COUNTS_TABLE)
    rows = table.filter(kind=kind).sort("layer").select("layer", "share").iter_rows()
    return {layer: Value(share) for layer, share in rows if share is not None}


QUANTITIES = {
    "the KL of dropping each layer": _dropped,
    "attention to the previous five tokens": _local,
    "the density of prediction and suppression neurons": _density,
}
"""The rows of the figure from top to bottom, and how each is read."""


def _none_of_a_kind(rows: Sequence[Row]) -> list[str]:
    """A note that curves of zeros lie on the axis, which is easily mistaken for missing curves."""
    none = [
        curve.look.title.lower()
        for row in rows
        if row.metric is DENSITY
        for curve in row.curves
        if not any(value.mean for value in curve.values.values())
    ]
    lie = "their curve lies" if len(none) == 1 else "their curves lie"
    return [f"The model has no {' and no '.join(none)}: {lie} on the axis, at 0."] if none else []


def _stages(run: RunDirectory) -> tuple[Stages | None, str]:
    """The stages found, if there are any, and a note about the bands."""
    try:
        found = stages.read_stages(run)
    except RunError:
        return None, "This run did not look for stages, so there are no bands."
    if not found.stages:
        return None, "No stages were found, so there are no bands."
    return found, "Bands are the stages found; a band’s edge fades over the 95% interval of its boundary."


def _panel(rows: Sequence[Row], depth: int, found: Stages | None) -> Panel:
    """Rows stacked on one x axis, below the stages' names."""
    x = layers(depth)
    names = _names(found.stages) if found else []
    head = NAME_LINE * sum(name.count("\n") + 1 for _, _, name in names)
    inner = head + len(rows) * (ROW + GAP)
    axes, marks, notes = [], [], _headings(names, depth, inner)
    for place, row in enumerate(rows):
        top = 1 - (head + place * (ROW + GAP) + GAP) / inner
        axes.append(replace(_y_axis(row), part=(max(0.0, top - ROW / inner), top)))
        marks += [replace(line(curve, row.metric, x), row=place) for curve in row.curves]
        notes.append(Note(text=row.title, x=0.0, y=top, y_of="panel", above=True, shift=(5.0, 0.0), bold=True))
    return Panel(
        name=NAME,
        title="What each layer costs, attends to and writes",
        marks=tuple(marks),
        x=x.axis(),
        y=tuple(axes),
        bands=tuple(_bands(found, depth)) if found else (),
        notes=tuple(notes),
        log=rows[0].log,
        height=inner + BELOW,
    )


def _y_axis(row: Row) -> Axis:
    if row.metric is not DENSITY:
        return y_axis(row.metric, row.log, False)
    return density_axis([value for curve in row.curves for value in curve.values.values()])


def density_axis(values: Sequence[Value]) -> Axis:
    """An axis fitted to the densities: they are often below 1%, so a range up to 100% would show nothing."""
    most = max([LEAST, *(value.mean for value in values)])
    return replace(y_axis(DENSITY, False, False), range=(-0.05 * most, 1.08 * most), form=".2~%")


def _names(found: Sequence[Stage]) -> list[tuple[int, int, str]]:
    """(first layer, last layer, name) of each stage."""
    return [(stage.first, stage.last, stage.title.replace(" + ", " +\n")) for stage in found]


def _headings(names: Sequence[tuple[int, int, str]], depth: int, inner: int) -> list[Note]:
    """Stage names, each on a separate line so that none overlap in a narrow figure: aligned with the left edge of the band,
    or with its right edge in the deeper half."""
    notes, down = [], 0
    for first, last, name in names:
        down += NAME_LINE * (name.count("\n") + 1)
        deep = first + last >= depth
        notes.append(
            Note(
                text=name,
                x=last + 0.5 if deep else first - 0.5,
                y=1 - down / inner,
                x_of="data",
                y_of="panel",
                align="right" if deep else "left",
                above=True,
                shift=(-5.0 if deep else 5.0, 0.0),
            )
        )
    return notes


def _bands(found: Stages, depth: int) -> list[Band]:
    """Bands behind the curves: one shade per stage, and a gradient of slices across each boundary's interval."""
    bands, left = [], -0.5
    for place, stage in enumerate(found.stages):
        shade, after = SHADES[place % 2], SHADES[(place + 1) % 2]
        if place + 1 == len(found.stages):
            bands.append(Band(left, depth - 0.5, shade))
            break
        low, high = _edge(found, stage.last + 1)
        bands.append(Band(left, low, shade))
        width = (high - low) / STEPS
        if width > 0:
            shares = [(i + 0.5) / STEPS for i in range(STEPS)]
            bands += [
                Band(low + i * width, low + (i + 1) * width, shade + share * (after - shade))
                for i, share in enumerate(shares)
            ]
        left = high
    return [band for band in bands if band.end > band.start]


def _edge(found: Stages, layer: int) -> tuple[float, float]:
    """The interval of the boundary before a layer; a point if there is no interval."""
    for one in found.boundaries:
        if one.layer == layer and one.low is not None and one.high is not None:
            return one.low - 0.5, one.high - 0.5
    return layer - 0.5, layer - 0.5


KIND = Kind(
    name=NAME,
    title="The model at a glance",
    source="Lad et al. 2024, figure 1",
    experiment=NAME,
    file="",
    build=build,
    look_for="whether the hypothesis holds: local attention and a costly layer first, a flat robust middle, "
    "prediction neurons that rise late and suppression neurons that overtake them at the end, each changing at a stage’s edge.",
)

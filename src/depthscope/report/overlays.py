"""Several runs in one figure per quantity, as curves over relative depth (the paper's figures 3 to 8)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from depthscope.edit_registry import title_of
from depthscope.errors import RunError
from depthscope.report.charts import Curve, XAxis, line, relative_axis, y_axis
from depthscope.report.measured import Series, Value, depth_of, read_sweep, read_table, series
from depthscope.report.palette import Look
from depthscope.report.panels import RELATIVE_DEPTH, Axis, Level, Panel
from depthscope.report.section import Section
from depthscope.report.sections.overview import DENSITY, density, density_axis
from depthscope.report.unexpected import as_run_error
from depthscope.report.wording import joined
from depthscope.run.references import about
from depthscope.run.store import RunDirectory
from depthscope.schema import attention, lens, norms
from depthscope.schema.metric import Metric
from depthscope.schema.neurons import KINDS
from depthscope.schema.sweep import AGREEMENT, ENTROPY_CHANGE, KL


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A run among others, with its title and look."""

    run: RunDirectory
    look: Look

    @property
    def depth(self) -> int:
        """Layers of the model; 1 if the manifest does not record it."""
        return depth_of(self.run.manifest, 1)


def reference_title(run: RunDirectory) -> str:
    """A run's model, and whether the run is a reference that ships with the package."""
    facts = about(run)
    return f"{facts.get('title', run.settings.model)} (reference)" if facts else run.settings.subject


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantity:
    """The quantity that one figure shows for every run."""

    name: str
    title: str
    metric: Metric
    read: Callable[[RunDirectory], Series]
    """Values by layer. Raises RunError if the run has none."""
    call: str
    """Label of a point, with `{}` for the layer."""
    log: bool = False
    after_last: bool = False
    """Whether there is also a value after the last layer, as for the lens."""
    ends_at_zero: bool = False
    """Whether that value is 0 by definition, and so not drawn."""
    level: float | None = None
    """The y value of a dotted line."""
    optional: bool = False
    """Whether a study measures it only on request: if none of the runs has it, it is left out without a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """A section of the comparison."""

    name: str
    title: str
    source: str
    look_for: str
    quantities: Sequence[Quantity]


def overlay(kind: Overlay, compared: Sequence[Compared]) -> Section:
    """A section's figures, each with the runs that have the quantity; missing quantities are reported."""
    panels, missing, definitions = [], [], []
    for quantity in kind.quantities:
        curves, without = _curves(quantity, compared)
        if without and (curves or not quantity.optional):
            missing.append(f"Missing {quantity.title[0].lower()}{quantity.title[1:]}: {joined(without)}.")
        if curves:
            panels.append(_panel(kind, quantity, curves))
            definitions.append(quantity.metric)
    return Section(
        panels=panels,
        missing=missing,
        legend=[one.look for one in compared],
        definitions=[*dict.fromkeys(definitions)],
        notes=["After the last layer the lens’s KL is 0 by definition, so its curves end one layer earlier."]
        if any(quantity.ends_at_zero for quantity in kind.quantities) and panels
        else [],
        log_note="Values of 0 are not shown on a logarithmic axis." if any(map(_hides, panels)) else None,
        across=3 if len([one for one in kind.quantities if not one.optional]) % 3 == 0 else 2,
    )


def _hides(panel: Panel) -> bool:
    """Whether a logarithmic axis hides points."""
    return panel.log and any(y is None for points in panel.points for y in panel.drawn_y(points))


def _curves(quantity: Quantity, compared: Sequence[Compared]) -> tuple[list[tuple[Curve, XAxis]], list[str]]:
    curves, without = [], []
    for one in compared:
        try:
            with as_run_error(one.run.path, quantity.title):
                values = quantity.read(one.run)
        except RunError:
            values = {}
        if not values:
            without.append(one.look.title)
            continue
        last = max(one.depth, max(values) + (0 if quantity.after_last else 1)) - (0 if quantity.after_last else 1)
        called = f"{one.look.title.replace('{', '(').replace('}', ')')}, {quantity.call}"
        if quantity.ends_at_zero:
            values = {depth: value for depth, value in values.items() if depth < last}
        curves.append((Curve(look=one.look, values=values, call=called), XAxis(title=RELATIVE_DEPTH, last=last)))
    return curves, without


def _panel(kind: Overlay, quantity: Quantity, curves: Sequence[tuple[Curve, XAxis]]) -> Panel:
    metric = quantity.metric
    points = [line(curve, metric, x) for curve, x in curves]
    room = 0.5 / max(min(x.last for _, x in curves), 1)
    return Panel(
        name=f"{kind.name}-{quantity.name}",
        title=quantity.title,
        unit="%" if metric.unit == "share" else metric.unit,
        marks=tuple(replace(one, x=tuple(map(Value, one.shares)), layers=one.x) for one in points),
        x=relative_axis(min(room, 0.05)),
        y=(_y_axis(quantity, [value for curve, _ in curves for value in curve.values.values()]),),
        levels=() if quantity.level is None else (Level(y=quantity.level),),
        log=quantity.log,
        together=False,
    )


def _y_axis(quantity: Quantity, values: Sequence[Value]) -> Axis:
    if quantity.metric is DENSITY:
        return density_axis(values)
    return y_axis(quantity.metric, quantity.log, quantity.metric is AGREEMENT)


def _swept(edit: str, metric: Metric, run: RunDirectory) -> Series:
    return read_sweep(run).series(edit, metric)


def _estimated(table: str, columns: dict, metric: Metric, run: RunDirectory) -> Series:
    return series(read_table(run, table, columns), metric)


def _edit(edit: str, metric: Metric, log: bool = False) -> Quantity:
    return Quantity(
        name=metric.name,
        title=f"{title_of(edit)}: {metric.title if metric is not KL else 'KL divergence'}",
        metric=metric,
        read=partial(_swept, edit, metric),
        call=f"{edit}({{}})",
        log=log,
    )


def _by_layer(table: str, columns: dict, metric: Metric, log: bool = False, level: float | None = None) -> Quantity:
    return Quantity(
        name=metric.name,
        title=metric.title,
        metric=metric,
        read=partial(_estimated, table, columns, metric),
        call="layer {}",
        log=log,
        level=level,
    )


def _lens(metric: Metric, log: bool = False) -> Quantity:
    return replace(_by_layer("lens", lens.LENS_TABLE, metric, log), call="x_{}", after_last=True, ends_at_zero=log)


def _fitted_lens(name: str, metric: Metric, log: bool = False) -> Quantity:
    """A quantity of the lens as a fitted lens has it."""
    read = partial(_estimated, lens.TABLE_OF[name], lens.LENS_TABLE, metric)
    title = f"{lens.LENSES[name].title}: {metric.title if metric is lens.KL else 'entropy'}"
    return replace(_lens(metric, log), name=f"{name}-{metric.name}", title=title, read=read, optional=True)


def _density(kind: str) -> Quantity:
    return Quantity(
        name=kind,
        title=f"{KINDS[kind].title} neurons",
        metric=DENSITY,
        read=partial(density, kind),
        call=f"layer {{}}, {kind}",
    )


_EDITED = ((KL, True), (AGREEMENT, False), (ENTROPY_CHANGE, False))
OVERLAYS = (
    Overlay(
        name="drop",
        title="Layer drops",
        source="Lad et al. 2024, figure 3 bottom",
        look_for="curves of one shape: a costly first layer, a robust middle, a rise at the end, at the same relative depth "
        "whatever the number of layers.",
        quantities=[_edit("drop", metric, log) for metric, log in _EDITED],
    ),
    Overlay(
        name="swap",
        title="Layer swaps",
        source="Lad et al. 2024, figure 3 top",
        look_for="deeper models with cheaper swaps: with more layers, neighbouring layers are more similar.",
        quantities=[_edit("swap", metric, log) for metric, log in _EDITED],
    ),
    Overlay(
        name="reads",
        title="Attention and output norms",
        source="Lad et al. 2024, figures 4, 5 and 7",
        look_for="local attention that falls after the early layers in every model, a ratio that falls below 1 with depth, "
        "and MLP norms that peak at the end; absolute norms depend on how a model was trained, so compare shapes.",
        quantities=[
            _by_layer("attention", attention.ATTENTION_TABLE, attention.PREVIOUS[5]),
            _by_layer("norms", norms.NORMS_TABLE, norms.NORM_RATIO, log=True, level=1.0),
            _by_layer("norms", norms.NORMS_TABLE, norms.MLP_NORM, log=True),
        ],
    ),
    Overlay(
        name="predictions",
        title="How predictions form",
        source="Lad et al. 2024, figures 6 and 8",
        look_for="KL that starts to fall at about the same relative depth, where prediction neurons appear, and suppression "
        "neurons that overtake them at the end.",
        quantities=[
            _lens(lens.KL, log=True),
            _lens(lens.ENTROPY),
            *(
                _fitted_lens(name, metric, metric is lens.KL)
                for name in lens.FITTED
                for metric in (lens.KL, lens.ENTROPY)
            ),
            _density("prediction"),
            _density("suppression"),
        ],
    ),
)
"""The sections of a comparison, after the stages."""

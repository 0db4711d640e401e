"""A training run on the page of a series: each quantity as a map of depth × training, and when each layer's effect forms."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import polars as pl

from depthscope.edit_registry import title_of
from depthscope.errors import RunError
from depthscope.report.charts import Curve, XAxis, heat, line
from depthscope.report.key_numbers import key_numbers
from depthscope.report.measured import Series, Value, read_sweep, series
from depthscope.report.overlays import OVERLAYS, Overlay, Quantity
from depthscope.report.palette import OWN, edit_looks
from depthscope.report.panels import Axis, Level, Panel, Points
from depthscope.report.section import Section, TextTable
from depthscope.report.unexpected import as_run_error
from depthscope.report.wording import joined
from depthscope.run.store import RunDirectory
from depthscope.schema.formation import CHANGE, HALF_CHANGE
from depthscope.schema.series import MemberEntry
from depthscope.schema.sweep import LOSS

LOOK_FOR = (
    "layers whose effect grows (full points) and the order in which they do; hollow points are of effects that shrink."
)
CHECKPOINT = "checkpoint"
STEP = "step"


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A training run: its checkpoints in order, and where its section stands."""

    name: str
    """Of its sections and panels."""
    title: str
    """Before the titles of its sections; empty if there is no other training run."""
    members: Sequence[tuple[MemberEntry, RunDirectory]]
    formation: pl.DataFrame | None
    """Its rows of FORMATION_TABLE."""

    def called(self, section: str) -> str:
        """The title of one of its sections."""
        return f"{self.title}: {section[0].lower()}{section[1:]}" if self.title else section

    @property
    def axis(self) -> str:
        """What the columns of its maps are: steps, or checkpoints whose names state none."""
        return CHECKPOINT if any(entry.step is None for entry, _ in self.members) else STEP

    @property
    def checkpoints(self) -> list[str]:
        """The names of the columns: steps as numbers, or the checkpoints' own names."""
        named = self.axis == CHECKPOINT
        return [(entry.checkpoint or entry.name) if named else f"{entry.step:,}" for entry, _ in self.members]


MAPS = {
    "quantity": pl.String,
    "unit": pl.String,
    "checkpoint": pl.String,
    "step": pl.Int64,
    "layer": pl.Int32,
    "mean": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
}
"""Columns of the numbers of a section's maps, a download of the page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSection:
    """Titles of a section, and what it shows."""

    name: str
    title: str
    source: str
    look_for: str
    section: Section
    frame: pl.DataFrame
    """The numbers of its maps."""


def training_sections(training: Training) -> list[TrainingSection]:
    """The sections of a training run: the loss and when effects form, then one for each group of quantities."""
    found = [_formed(training)]
    for kind in OVERLAYS:
        section, frame = _maps(training, kind)
        if section.panels:
            found.append(
                TrainingSection(
                    name=f"{training.name}-{kind.name}",
                    title=training.called(kind.title),
                    source=kind.source,
                    look_for="the training step at which a shape that the last checkpoint has first appears.",
                    section=section,
                    frame=frame,
                )
            )
    return found


def _formed(training: Training) -> TrainingSection:
    panels, missing, definitions = [], [], []
    loss = _loss(training)
    if loss is not None:
        panels.append(loss)
        definitions.append(LOSS)
    formed = [] if training.formation is None else _half_change(training, training.formation)
    panels += formed
    if formed:
        definitions += [HALF_CHANGE, CHANGE]
    else:
        missing.append("No table says when effects form: it needs sweeps of the same tokens at checkpoints with steps.")
    return TrainingSection(
        name=f"{training.name}-formation",
        title=training.called("When the layers’ effects form"),
        source="Lad et al. 2024, figure 3, at every checkpoint",
        look_for=LOOK_FOR,
        section=Section(
            panels=panels,
            missing=missing,
            notes=[
                "Exploratory: the step of half of the change depends on which checkpoints there are, and is interpolated "
                "between them. Layers whose change may be 0 have no point."
            ]
            if formed
            else [],
            tables=[_numbers(training)],
            definitions=definitions,
            across=2,
        ),
        frame=pl.DataFrame() if training.formation is None else training.formation,
    )


def _loss(training: Training) -> Panel | None:
    """The unmodified model's loss by checkpoint, and that of predicting by token frequency alone."""
    values: dict[str, Value] = {}
    for called, (_, run) in zip(training.checkpoints, training.members, strict=True):
        try:
            value = read_sweep(run).baseline(LOSS)
        except RunError:
            continue
        if value is not None:
            values[called] = value
    if not values:
        return None
    points = line(Curve(look=OWN, values=dict(enumerate(values.values())), call="{}"), LOSS, _columns(training))
    named = Points(
        name=points.name,
        look=points.look,
        x=tuple(values),
        y=points.y,
        hover=tuple(
            one._replace(head=f"{training.axis} {name}") for one, name in zip(points.hover, values, strict=True)
        ),
    )
    unigram = training.members[-1][1].manifest.text.token_entropy
    return Panel(
        name=f"{training.name}-loss",
        title="Loss of the unmodified model",
        unit=LOSS.unit,
        marks=(named,),
        x=Axis(title=training.axis, scale="category", grid=False),
        y=(Axis(form="~g"),),
        levels=() if unigram is None else (Level(y=unigram, text="token frequencies alone"),),
        together=False,
    )


def _columns(training: Training) -> XAxis:
    return XAxis(title=training.axis, last=len(training.members) - 1, relative=False)


def _half_change(training: Training, table: pl.DataFrame) -> list[Panel]:
    """For each kind of edit, the step at which half of each layer's change in KL is done, on a logarithmic axis."""
    edits = table["edit"].unique(maintain_order=True).to_list()
    looks = edit_looks(edits)
    curves = []
    for edit in edits:
        values = series(table, HALF_CHANGE, edit=edit)
        shifted = {layer: _plus_one(value) for layer, value in values.items() if edit in looks}
        if shifted:
            call = f"{title_of(edit)} {{}}, half of the change at 1 +"
            curves.append((edit, Curve(look=looks[edit], values=shifted, call=call)))
    depth = 1 + max((max(curve.values) for _, curve in curves), default=0)
    return [
        Panel(
            name=f"{training.name}-half-{edit}",
            title=f"{title_of(edit)}: half of the change in KL",
            unit="1 + step",
            marks=(
                _grown(
                    line(curve, HALF_CHANGE, XAxis(title="layer", last=depth - 1)), series(table, CHANGE, edit=edit)
                ),
            ),
            x=XAxis(title="layer", last=depth - 1).axis(),
            y=(Axis(scale="log"),),
            together=False,
        )
        for edit, curve in curves
    ]


def _grown(points: Points, change: Series) -> Points:
    """The points of effects that shrink over training hollow."""
    layers = [int(row.layer) for row in points.rows()]
    return replace(points, hollow=tuple(change[layer].mean < 0 for layer in layers))


def _plus_one(value: Value) -> Value:
    """1 + step, which is positive and so on a logarithmic axis for the first checkpoint too."""
    return Value(value.mean + 1, *(None if end is None else end + 1 for end in (value.low, value.high)))


def _maps(training: Training, kind: Overlay) -> tuple[Section, pl.DataFrame]:
    panels, missing, definitions, rows = [], [], [], []
    for quantity in kind.quantities:
        read = [_read(quantity, run) for _, run in training.members]
        without = [name for name, values in zip(training.checkpoints, read, strict=True) if not values]
        if len(without) == len(read):
            continue
        if without:
            missing.append(f"Missing {quantity.title[0].lower()}{quantity.title[1:]} at {joined(without)}.")
        panels.append(_map(training, kind, quantity, read))
        definitions.append(quantity.metric)
        rows += _rows(training, quantity, read)
    section = Section(
        panels=panels,
        missing=missing,
        notes=["Colours of quantities that range over powers of ten are by their logarithm; cells at 0 are empty then."]
        if any(quantity.log for quantity in kind.quantities) and panels
        else [],
        definitions=[*dict.fromkeys(definitions)],
        across=3 if len(panels) % 3 == 0 else 2,
    )
    return section, pl.DataFrame(rows, schema=MAPS, orient="row")


def _read(quantity: Quantity, run: RunDirectory) -> Series:
    try:
        with as_run_error(run.path, quantity.title):
            return quantity.read(run)
    except RunError:
        return {}


def _map(training: Training, kind: Overlay, quantity: Quantity, read: Sequence[Series]) -> Panel:
    """Depth upwards, training to the right."""
    cells = {(layer, column): value for column, values in enumerate(read) for layer, value in values.items()}
    return heat(
        f"{training.name}-{kind.name}-{quantity.name}",
        quantity.title,
        quantity.metric,
        cells,
        (1 + max(layer for layer, _ in cells), len(read)),
        (_depth_axis(quantity), training.axis),
        columns_named=training.checkpoints,
        log=quantity.log and any(value.mean > 0 for value in cells.values()),
    )


def _depth_axis(quantity: Quantity) -> str:
    return "depth" if quantity.after_last else "layer"


def _rows(training: Training, quantity: Quantity, read: Sequence[Series]) -> list[tuple[object, ...]]:
    return [
        (
            quantity.title,
            quantity.metric.unit,
            entry.checkpoint or entry.name,
            entry.step,
            layer,
            value.mean,
            value.low,
            value.high,
        )
        for (entry, _), values in zip(training.members, read, strict=True)
        for layer, value in values.items()
    ]


def _numbers(training: Training) -> TextTable:
    """The key numbers, a row per checkpoint."""
    titles: dict[str, None] = {}
    cells: list[dict[str, tuple[str, str]]] = []
    for _, run in training.members:
        found = {number.title: (number.value, number.interval or number.note) for number in key_numbers(run)}
        titles |= dict.fromkeys(found)
        cells.append(found)
    return TextTable(
        title="Key numbers over training",
        head=(training.axis, *titles),
        rows=[
            (called, *(row.get(title, "–") for title in titles))
            for called, row in zip(training.checkpoints, cells, strict=True)
        ],
    )

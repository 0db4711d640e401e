"""Reference runs as faint lines in a run's figures, over relative depth."""

from collections.abc import Sequence
from dataclasses import replace

from depthscope.errors import RunError
from depthscope.report.charts import hover
from depthscope.report.measured import Value
from depthscope.report.overlays import OVERLAYS, Compared, Quantity, reference_title
from depthscope.report.palette import REFERENCE, Look
from depthscope.report.panels import Panel, Points
from depthscope.report.section import Section
from depthscope.report.unexpected import as_run_error
from depthscope.run.store import RunDirectory

DRAWN_IN = {
    "sweep-kl": ("drop", "kl"),
    "sweep-agreement": ("drop", "agreement"),
    "sweep-entropy_change": ("drop", "entropy_change"),
    "lens-kl": ("predictions", "kl"),
    "lens-entropy": ("predictions", "entropy"),
    "norms-ratio": ("reads", "norm_ratio"),
}
"""Panels by name, each with the overlay and the quantity of `overlays.OVERLAYS` that is drawn in it."""
DASHES = (("dash", "╌"), ("dot", "┈"), ("dashdot", "·╌"), ("longdash", "╍"))
"""Dashes of the references in turn, and the same as characters for the legend."""
_QUANTITIES = {(kind.name, quantity.name): quantity for kind in OVERLAYS for quantity in kind.quantities}


def with_references(section: Section, references: Sequence[RunDirectory]) -> Section:
    """The section with the reference runs' curves behind its own, in the panels of DRAWN_IN; references without the quantity
    are left out. Sweeps show the references' layer drops."""
    panels = [_with_lines(panel, references) for panel in section.panels]
    if all(new is old for new, old in zip(panels, section.panels, strict=True)):
        return section
    looks = [_look(place, run) for place, run in enumerate(references)]
    return replace(
        section,
        panels=panels,
        legend=[*section.legend, *looks],
        notes=[
            *section.notes,
            "Grey lines are reference models at the same relative depth (sweeps: their layer drops).",
        ],
    )


def _look(place: int, run: RunDirectory) -> Look:
    dash, glyph = DASHES[place % len(DASHES)]
    return replace(REFERENCE, title=reference_title(run), definition="", dash=dash, glyph=glyph)


def _with_lines(panel: Panel, references: Sequence[RunDirectory]) -> Panel:
    quantity = _QUANTITIES.get(DRAWN_IN.get(panel.name, ("", "")))
    if quantity is None or panel.relative is None or panel.x.range is None:
        return panel
    last = panel.x.range[1] - 0.5  # the axis is half a layer wider than the layers
    lines = [line for place, run in enumerate(references) if (line := _line(quantity, run, place, last)) is not None]
    return replace(panel, marks=(*lines, *panel.marks)) if lines else panel


def _line(quantity: Quantity, run: RunDirectory, place: int, last: float) -> Points | None:
    try:
        with as_run_error(run.path, quantity.title):
            values = quantity.read(run)
    except RunError:
        return None
    look = _look(place, run)
    deepest = Compared(run=run, look=look).depth - (0 if quantity.after_last else 1)
    if quantity.ends_at_zero:
        values = {layer: value for layer, value in values.items() if layer < deepest}
    shares = tuple(layer / max(deepest, 1) for layer in values)
    return Points(
        name=look.title,
        look=look,
        x=tuple(Value(share * last) for share in shares),
        # Without intervals: those of several models would hide the run's own.
        y=tuple(Value(value.mean) for value in values.values()),
        hover=tuple(
            hover(f"{look.title}, {quantity.call.replace('{}', str(layer))}", value, quantity.metric)
            for layer, value in values.items()
        ),
        layers=tuple(Value(float(layer)) for layer in values),
        shares=shares,
        size=2.0,
    )

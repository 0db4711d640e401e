"""The stages of several models, one above the other, and which model supports which signature."""

from collections.abc import Sequence
from dataclasses import replace

import polars as pl

from depthscope.errors import RunError
from depthscope.report import downloads
from depthscope.report.charts import relative_axis
from depthscope.report.compared_transitions import transition_table, transitions_said
from depthscope.report.measured import NBSP, Value
from depthscope.report.overlays import Compared
from depthscope.report.panels import Axis, Bar, Bars, Hover, Note, Panel, Points
from depthscope.report.section import Section, TextTable
from depthscope.report.sections.stage_map import before_layer, in_sentence, own_layer, said_number, span, stage_title
from depthscope.report.sections.stages import read_stages
from depthscope.report.wording import joined
from depthscope.schema.found_stages import Boundary, SignatureVerdict, Stage
from depthscope.schema.found_stages import Stages as FoundStages
from depthscope.schema.stages import CANNOT_TELL, NOT_SUPPORTED, STAGES, SUPPORTED, verdict_shown

NAME = "stages"
ROW = 64
"""Height in pixels of a model's row: its name with a bar of stages below."""
OPACITY = dict(zip(STAGES, (0.5, 0.14, 0.3, 0.62), strict=True))
"""Opacity of each stage, the same for every model."""
MARKS = {SUPPORTED: "✓", NOT_SUPPORTED: "✗", CANNOT_TELL: "?"}
Found = list[tuple[Compared, FoundStages]]


class Stages:
    """The section's titles."""

    name = NAME
    title = "The stages, model by model"
    source = "Lad et al. 2024, figure 1 and table 1"
    look_for = (
        "boundaries at the same relative depth in every model, and signatures that all models support: what only some show "
        "does not hold in general."
    )


def compared_stages(compared: Sequence[Compared]) -> tuple[Section, dict[str, pl.DataFrame]]:
    """The section and its downloadable tables, each with a column `model`."""
    found, without = _read(compared)
    section = Section(
        panels=[_bars(found)] if any(one.stages for _, one in found) else [],
        sentences=[*transitions_said([one for _, one in found]), *signatures_said(found)],
        missing=[f"No readable stages (not run, or damaged): {joined(without)}."] if without else [],
        notes=["Points on the bars are boundaries, with their 95% intervals over documents and layer noise."]
        if found
        else [],
        tables=[*_transitions(found), signature_table(found)] if found else [],
        across=1,
    )
    return section, _frames(found)


def _transitions(found: Found) -> list[TextTable]:
    """Runs of the first finder have no tests of transitions."""
    tested = [(one.look.title, stages) for one, stages in found if stages.transitions]
    return [transition_table(tested)] if tested else []


def _read(compared: Sequence[Compared]) -> tuple[Found, list[str]]:
    found, without = [], []
    for one in compared:
        try:
            found.append((one, read_stages(one.run)))
        except RunError:
            without.append(one.look.title)
    return found, without


def signatures_said(found: Found) -> list[str]:
    """Which signatures all models support, which none, and on which they differ."""
    if len(found) < 2:
        return []
    verdicts: dict[str, list[str]] = {}
    titles_of: dict[str, str] = {}  # runs of two versions may put one signature into different words
    for _, one in found:
        for signature in one.signatures:
            verdicts.setdefault(signature.name, []).append(signature.verdict)
            titles_of.setdefault(signature.name, signature.title)
    by_all = [name for name, said in verdicts.items() if said.count(SUPPORTED) == len(found)]
    by_none = [name for name, said in verdicts.items() if SUPPORTED not in said]
    others = [name for name in verdicts if name not in (*by_all, *by_none)]
    parts = ((by_all, "supported in every model"), (by_none, "supported in none"), (others, "supported in some only"))
    return [
        f"{len(names)} of {len(verdicts)} signatures are {what}: {'; '.join(in_sentence(titles_of[name]) for name in names)}."
        for names, what in parts
        if names
    ]


def signature_table(found: Found) -> TextTable:
    """A row per signature, a column per model: verdict, effect, interval."""
    order: dict[str, tuple[str, str]] = {}
    cells: dict[tuple[str, int], tuple[str, str]] = {}
    for place, (_, one) in enumerate(found):
        for signature in one.signatures:
            order.setdefault(signature.name, (signature.title, stage_title(signature.stage)))
            cells[signature.name, place] = _verdict(signature)
    rows = [(shown, *(cells.get((name, place), "–") for place in range(len(found)))) for name, shown in order.items()]
    return TextTable(
        title=f"Signatures ({', '.join(f'{mark} {verdict_shown(verdict)}' for verdict, mark in MARKS.items())})",
        head=("Signature", *(one.look.title for one, _ in found)),
        rows=rows,
    )


def _verdict(signature: SignatureVerdict) -> tuple[str, str]:
    verdict = signature.verdict
    mark = MARKS.get(verdict, verdict)
    if signature.effect is None:
        return mark, verdict_shown(verdict)
    low, high, unit = signature.ci_low, signature.ci_high, signature.unit
    bounds = "" if low is None or high is None else f"{said_number(low, unit)}{NBSP}to{NBSP}{said_number(high, unit)}"
    return f"{mark}{NBSP}{said_number(signature.effect, unit)}", bounds


def _bars(found: Found) -> Panel:
    """Layer l is at l / (L − 1), as in the curves, with a margin of half a layer at both ends."""
    marks, names = [], []
    for row, (one, stages) in enumerate(reversed(found)):
        last = max(stages.layers - 1, 1)
        marks.append(_bar(one, stages.stages, row, last))
        if bounds := [boundary for boundary in stages.boundaries if boundary.low is not None]:
            marks.append(_bounds(one, bounds, row, last))
        text = one.look.title if stages.stages else f"{one.look.title}: no stages found"
        names.append(Note(text=text, x=0.0, y=row + 0.44, bold=True))
    room = max((0.5 / max(stages.layers - 1, 1) for _, stages in found), default=0.05)
    return Panel(
        name="stages-compared",
        title="Stages over relative depth",
        marks=tuple(marks),
        x=replace(relative_axis(room), grid=False),
        y=(Axis(range=(-0.6, len(found) - 0.35), labelled=False, grid=False),),
        notes=tuple(names),
        together=False,
        height=ROW * len(found) + 60,
        left=8,
    )


def _bar(one: Compared, stages: list[Stage], row: int, last: int) -> Bars:
    return Bars(
        name=one.look.title,
        look=one.look,
        bars=tuple(
            Bar(
                (stage.first - 0.5) / last,
                (stage.last + 0.5) / last,
                _opacity(stage.name),
                stage.title.replace(" + ", " +\n"),
                Hover(stage.title, f"\n{one.look.title}, {span(stage)}"),
            )
            for stage in stages
        ),
        y=float(row),
        thickness=0.5,
    )


def _bounds(one: Compared, bounds: list[Boundary], row: int, last: int) -> Points:
    return Points(
        name=one.look.title,
        look=one.look,
        x=tuple(before_layer(bound, last) for bound in bounds),
        y=(Value(float(row)),) * len(bounds),
        hover=tuple(
            Hover("", f"{one.look.title}: boundary before layer {b.layer} ({b.low} to {b.high})") for b in bounds
        ),
        layers=tuple(map(own_layer, bounds)),
        line=False,
        size=7.0,
        bar=3.0,
        caps=True,
        legend=False,
    )


def _opacity(name: str) -> float:
    """Merged stages, which could not be distinguished, get the mean of their opacities."""
    parts = [OPACITY.get(part, 0.2) for part in name.split("+")]
    return sum(parts) / len(parts)


def _frames(found: Found) -> dict[str, pl.DataFrame]:
    by_name: dict[str, list[pl.DataFrame]] = {}
    for one, stages in found:
        for name, frame in downloads.of_stages(stages).items():
            model = pl.Series("model", [one.look.title] * len(frame), dtype=pl.String)
            by_name.setdefault(name, []).append(frame.insert_column(0, model))
    return {name: pl.concat(frames) for name, frames in by_name.items()}

"""The page of a run: one HTML file with results, figures and methods; it works offline.

First the headline, five key numbers and the model at a glance; then a section per experiment; then how far to trust it.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from depthscope.errors import RunError
from depthscope.report import downloads, findings, method
from depthscope.report.figures import figures
from depthscope.report.html import fill, section_shown
from depthscope.report.key_numbers import key_numbers
from depthscope.report.measured import SweepValues, decimals_for, interval, number, read_sweep
from depthscope.report.page_file import require_replaceable, write_page_file
from depthscope.report.palette import LOOKS, edit_looks
from depthscope.report.reference_lines import with_references
from depthscope.report.section import Kind, Section
from depthscope.report.sections import overview, stages
from depthscope.report.trust import trust
from depthscope.report.unexpected import as_run_error
from depthscope.run.store import RunDirectory
from depthscope.schema.experiments import on_request
from depthscope.schema.manifest import Settings
from depthscope.schema.sweep import AGREEMENT, KL


def write_page(run: RunDirectory, out: Path, references: Sequence[RunDirectory] = ()) -> Path:
    """Write the page of a run, complete or not, to `out` and return `out`.

    Raises RunError if it cannot be written, would replace a file that is not a page as depthscope wrote it, or if the run is
    none that a page can be made of. `references` are other models' runs, drawn as faint lines.
    """
    require_replaceable(out)
    with as_run_error(run.path, "the page"):
        content = render(run, references)
    return write_page_file(content, out)


def render(run: RunDirectory, references: Sequence[RunDirectory] = ()) -> str:
    """The page as HTML, with the curves of `references` behind the run's own.

    Missing or damaged tables are reported in place of their figures.
    """
    measured = _measured(run)
    tables, sections = _with_downloads(run, _sections(run, references))
    names = [one["name"] for one in sections]
    table = _table(measured)
    others = [("table", "Every layer in numbers")] if table else []
    return fill(
        "page.html",
        title=run.settings.subject,
        looks=LOOKS | {look.name: look for look in edit_looks(measured.edits if measured else ()).values()},
        panels=[panel for section in sections for panel in section["panels"]],
        tables=tables,
        has_intervals=measured is not None and any(value.has_interval for value in measured.values.values()),
        facts=method.facts(run.manifest, measured),
        method=method.method(run.manifest),
        trust=trust(run.manifest, measured),
        incomplete=_incomplete(run),
        answer=_answer(run, measured, sections),
        numbers=key_numbers(run),
        overview=next((section for section in sections if section["name"] == overview.NAME), None),
        sections=[section for section in sections if section["name"] != overview.NAME],
        not_asked=_not_asked(run, names),
        table=table,
        contents=[*others, ("trust", "How far to trust this"), ("method", "How this was measured")],
    )


def _not_asked(run: RunDirectory, shown: Sequence[str]) -> list[str]:
    """Titles of the figures that the page lacks, without those of experiments that no study runs unless asked to."""
    others = {name: kind for name, kind in figures(run).items() if name not in shown and kind.file}
    return [kind.title for kind in others.values() if kind.experiment not in on_request()]


def _measured(run: RunDirectory) -> SweepValues | None:
    """The sweep's table; None if it is missing or unreadable, which its section reports."""
    try:
        with as_run_error(run.path, "the sweep"):
            return read_sweep(run)
    except RunError:
        return None


def _answer(run: RunDirectory, measured: SweepValues | None, sections: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The headline, from the sweep or else from the first section that has a sentence."""
    said = [sentence for section in sections for sentence in section["sentences"]]
    if measured is None and not said:
        return None
    documents = measured.documents if measured else run.manifest.text.documents
    note = findings.intervals_note(documents, run.manifest.text) if documents else None
    try:
        with as_run_error(run.path, "the headline"):
            headline = findings.headline(measured) if measured else said[0]
            further = findings.further(measured) if measured else []
    except RunError as error:
        headline, further = f"{error}.", []
    return {"headline": headline, "further": further, "notes": [note] if note else []}


def _incomplete(run: RunDirectory) -> list[str]:
    """What is missing from an incomplete run."""
    if run.complete:
        return []
    said = ["This run is incomplete."]
    units = _units(run.settings)
    stored = [
        f"{name} {len(list((run.path / 'shards' / name).glob('*.parquet')))}"
        for name in run.settings.experiments
        if (run.path / "shards" / name).is_dir()
    ]
    if stored:
        of = f" (a pass over the text has {units})" if units else ""
        said.append(f"Work units stored{of}: {', '.join(stored)}.")
    said.append(
        "The tables below are complete: a table is only written once all its work units are stored."
        if run.tables()
        else "There are no tables yet, so no measurements can be shown."
    )
    said.append("Run the same command on the same directory to resume it.")
    return said


def _units(settings: Settings) -> int | None:
    """The number of work units in a pass over the text; None if the manifest does not record it."""
    tokens, window, per_unit = settings.tokens, settings.window, settings.windows_per_unit
    return math.ceil(tokens / window / per_unit) if tokens and window and per_unit else None


def _sections(run: RunDirectory, references: Sequence[RunDirectory]) -> list[tuple[Kind, Section]]:
    """The sections of the page: those with results, and those that were requested but have none."""
    sections = []
    for kind in figures(run).values():
        try:
            section = with_references(kind.section(run), references)
        except RunError as error:
            reason = _gap(kind, run, error)
            section = Section(panels=(), missing=[reason]) if reason else None
        if section:
            sections.append((kind, section))
    return sections


def _with_downloads(
    run: RunDirectory, sections: list[tuple[Kind, Section]]
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """The packed tables of all sections by name, and the sections as template data with their tables' names."""
    tables: dict[str, str] = {}
    shown = []
    for kind, section in sections:
        if kind.file.endswith(".parquet"):
            room = downloads.ROOM - sum(map(len, tables.values()))
            names = (Path(kind.file).stem, *kind.more_tables)
            packed = {name: tables[name] for name in names if name in tables}  # two sections share the sweep
            fitting, too_large = downloads.packed_tables(run, [name for name in names if name not in tables], room)
            fitting = packed | fitting
        else:
            fitting, too_large = _own_tables(kind, section, run), []
        tables |= fitting
        shown.append(section_shown(kind, section, list(fitting), too_large))
    return tables, shown


def _own_tables(kind: Kind, section: Section, run: RunDirectory) -> dict[str, str]:
    """The packed tables of a section whose numbers are not in any table of the run."""
    if not section.panels and not section.tables:
        return {}
    frames = (
        downloads.of_stages(stages.read_stages(run))
        if kind.name == stages.NAME
        else {kind.name: downloads.drawn(section.panels)}
    )
    return {name: downloads.packed(downloads.csv(frame)) for name, frame in frames.items()}


def _gap(kind: Kind, run: RunDirectory, error: RunError) -> str | None:
    """Why a requested experiment has no results; None if it was not requested."""
    not_done = run.manifest.not_done
    if not kind.file:
        return None
    if kind.experiment in not_done:
        return f"This could not be done: {not_done[kind.experiment]}."
    if (run.path / kind.file).exists():
        return f"This cannot be shown: {str(error).replace(str(run.path), 'this run')}."
    if kind.experiment in run.settings.experiments and kind.experiment != stages.NAME:
        return "No table yet: the run is incomplete."
    return None


def _table(measured: SweepValues | None) -> dict[str, Any] | None:
    """Rows per layer; cells are (mean, interval), or None if the edit has no such layer. KL cells share their decimals."""
    if measured is None or not measured.edits:
        return None
    columns = [(edit, metric, measured.series(edit, metric)) for edit in measured.edits for metric in (KL, AGREEMENT)]
    digits = decimals_for([value.mean for _, metric, series in columns if metric is KL for value in series.values()])
    digits = min(digits, 5)
    rows = []
    for layer in range(measured.depth):
        cells = []
        for _, metric, series in columns:
            value = series.get(layer)
            cells.append((number(value.mean, metric, digits), interval(value, metric, digits)) if value else None)
        rows.append((layer, cells))
    return {"edits": list(edit_looks(measured.edits).values()), "rows": rows}

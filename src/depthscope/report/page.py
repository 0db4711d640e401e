"""The page of a run: one HTML file that says what was found, shows it, and how it was measured; it opens offline.

First the answer, five numbers and the model at a glance; then a section per experiment; then how far to trust it.
"""

import math
from pathlib import Path
from typing import Any

from depthscope.errors import RunError
from depthscope.report import downloads, findings, method
from depthscope.report.figures import FIGURES
from depthscope.report.html import fill, section_shown
from depthscope.report.key_numbers import key_numbers
from depthscope.report.measured import Measured, decimals_for, interval, number, read_sweep
from depthscope.report.palette import LOOKS, SHOWN
from depthscope.report.section import Kind, Section
from depthscope.report.sections import overview, stages
from depthscope.report.trust import trust
from depthscope.run.store import RunDirectory, atomic_file
from depthscope.schema.sweep import AGREEMENT, KL


def write_page(run: RunDirectory, out: Path) -> Path:
    """Write the page of a run, finished or not, to `out` and return it. Raises RunError where it cannot be written."""
    content = render(run).encode()
    with atomic_file(out) as stream:
        stream.write(content)
    return out


def render(run: RunDirectory) -> str:
    """The page as HTML: what is there is shown, what is missing or damaged is said."""
    measured = _measured(run)
    tables, sections = _with_downloads(run, _sections(run))
    names = [one["name"] for one in sections]
    table = _table(measured)
    others = [("table", "Every layer in numbers")] if table else []
    return fill(
        "page.html",
        title=str(run.settings.get("model", "a model")),
        looks=LOOKS,
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
        not_asked=[kind.title for name, kind in FIGURES.items() if name not in names and kind.file],
        table=table,
        contents=[*others, ("trust", "How far to trust this"), ("method", "How this was measured")],
    )


def _measured(run: RunDirectory) -> Measured | None:
    """The sweep's table; None where there is none that can be read, which its section says."""
    try:
        return read_sweep(run)
    except RunError:
        return None


def _answer(run: RunDirectory, measured: Measured | None, sections: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The headline, from the sweep or else from the first section that says something."""
    said = [sentence for section in sections for sentence in section["sentences"]]
    if measured is None and not said:
        return None
    documents = measured.documents if measured else run.manifest.get("text", {}).get("documents")
    note = findings.intervals_note(documents) if documents else None
    return {
        "headline": findings.headline(measured) if measured else said[0],
        "further": findings.further(measured) if measured else [],
        "notes": [note] if note else [],
    }


def _incomplete(run: RunDirectory) -> list[str]:
    """What is missing from a run that has not come to its end."""
    if run.complete:
        return []
    said = ["This run has not come to its end."]
    units = _units(run.settings)
    stored = [
        f"{name} {len(list((run.path / 'shards' / name).glob('*.parquet')))}"
        for name in run.settings.get("experiments", {})
        if (run.path / "shards" / name).is_dir()
    ]
    if stored:
        of = f" (a pass over the text has {units})" if units else ""
        said.append(f"Work units stored{of}: {', '.join(stored)}.")
    said.append(
        "The tables below are whole: they are only ever made from all work units."
        if run.tables()
        else "There are no tables yet, so there is nothing to show of what was measured."
    )
    said.append("The same command on the same directory goes on where it stopped.")
    return said


def _units(settings: dict[str, Any]) -> int | None:
    """How many work units a pass over the text has in all, None where the manifest does not say."""
    tokens, window, per_unit = (settings.get(key) for key in ("tokens", "window", "windows_per_unit"))
    return math.ceil(tokens / window / per_unit) if tokens and window and per_unit else None


def _sections(run: RunDirectory) -> list[tuple[Kind, Section]]:
    """The sections of the page: those with something to show, and those that were asked for and have nothing."""
    sections = []
    for kind in FIGURES.values():
        try:
            section = kind.build(run)
        except RunError as error:
            reason = _gap(kind, run, error)
            section = Section(panels=(), missing=[reason]) if reason else None
        if section:
            sections.append((kind, section))
    return sections


def _with_downloads(
    run: RunDirectory, sections: list[tuple[Kind, Section]]
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """The packed tables of all sections by name, and the sections as the template reads them, with their tables' names."""
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
    """The packed tables of a section whose numbers are in no table of the run."""
    if not section.panels and not section.tables:
        return {}
    frames = (
        downloads.of_stages(stages.read_stages(run))
        if kind.name == stages.NAME
        else {kind.name: downloads.drawn(section.panels)}
    )
    return {name: downloads.packed(downloads.csv(frame)) for name, frame in frames.items()}


def _gap(kind: Kind, run: RunDirectory, error: RunError) -> str | None:
    """Why an experiment that was asked for has nothing to show; None where it was not asked for."""
    not_done = run.manifest.get("not_done", {})
    if not kind.file:
        return None
    if kind.experiment in not_done:
        return f"This could not be done: {not_done[kind.experiment]}."
    if (run.path / kind.file).exists():
        return f"This cannot be shown: {str(error).replace(str(run.path), 'this run')}."
    if kind.experiment in run.settings.get("experiments", {}) and kind.experiment != stages.NAME:
        return "There is no table of this yet: the run has not come so far."
    return None


def _table(measured: Measured | None) -> dict[str, Any] | None:
    """Rows per layer; cells (mean, interval), None where the edit has no such layer. KL's decimals are one for all."""
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
    return {"edits": [SHOWN[edit] for edit in measured.edits], "rows": rows}

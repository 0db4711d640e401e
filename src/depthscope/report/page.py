"""The page of a run: one HTML file that says what was found, shows it, and how it was measured; it opens offline.

Everything it needs stands in it, plotly.js too (4.8 MB of the file), and its content security policy forbids any request.
"""

import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from depthscope.errors import RunError
from depthscope.report import findings, method
from depthscope.report.figures import FIGURES
from depthscope.report.measured import Measured, decimals_for, interval, number, read_sweep
from depthscope.report.palette import FONT, LOOKS, SHOWN
from depthscope.report.panels import Panel
from depthscope.report.section import Kind, Section
from depthscope.report.sections import stages
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
    sections = _sections(run)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    figures = {panel.name: _specification(panel) for section in sections for panel in section["panels"]}
    return environment.from_string(_part("page.html")).render(
        css=_part("page.css"),
        js=_part("page.js"),
        plotly=get_plotlyjs() if figures else "",
        figures=script_json(figures),
        has_figures=bool(figures),
        has_intervals=measured is not None and any(value.has_interval for value in measured.values.values()),
        looks=LOOKS,
        model=str(run.settings.get("model", "a model")),
        facts=method.facts(run.manifest, measured),
        method=method.method(run.manifest),
        incomplete=_incomplete(run),
        answer=_answer(run, measured, sections),
        sections=sections,
        not_asked=[kind.title for name, kind in FIGURES.items() if name not in {one["name"] for one in sections}],
        table=_table(measured),
    )


def script_json(data: Any) -> str:
    """JSON that can stand in a script element: no text in it can close the element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _specification(panel: Panel) -> dict[str, Any]:
    """A panel as the page's script draws it, without title and legend: the page has its own."""
    shown = go.Figure(panel.traces, panel.layout)
    shown.update_layout(xaxis=panel.xaxis, yaxis=panel.yaxis)
    shown.update_layout(
        # The default template would put some 7 kB of styles for other kinds of charts into each panel.
        template="none",
        font={"family": FONT, "size": 12},
        margin={"l": panel.left, "r": 8, "t": 8, "b": 40},
        height=panel.height,
        showlegend=False,
        dragmode=False,
        hovermode=panel.layout.get("hovermode", "x unified"),
    )
    return {**json.loads(shown.to_json() or "{}"), "relative": panel.relative, "log": panel.log}


def _part(name: str) -> str:
    return resources.files("depthscope.report").joinpath(name).read_text(encoding="utf-8")


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


def _sections(run: RunDirectory) -> list[dict[str, Any]]:
    """The sections of the page: those with something to show, and those that were asked for and have nothing."""
    sections = []
    for kind in FIGURES.values():
        try:
            section = kind.build(run)
        except RunError as error:
            reason = _gap(kind, run, error)
            section = Section(panels=(), missing=[reason]) if reason else None
        if section:
            sections.append(_shown(kind, section))
    return sections


def _shown(kind: Kind, section: Section) -> dict[str, Any]:
    """A section as the page's template reads it."""
    return {
        "name": kind.name,
        "title": kind.title,
        "source": kind.source,
        "sentences": [sentence for sentence in section.sentences if sentence],
        "missing": section.missing,
        "panels": section.panels,
        "across": section.across,
        "legend": section.legend,
        "by_layer": any(panel.relative for panel in section.panels),
        "log": any(panel.log for panel in section.panels),
        "notes": section.notes,
        "log_note": section.log_note,
        "tables": section.tables,
        "definitions": section.definitions,
    }


def _gap(kind: Kind, run: RunDirectory, error: RunError) -> str | None:
    """Why an experiment that was asked for has nothing to show; None where it was not asked for."""
    not_done = run.manifest.get("not_done", {})
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

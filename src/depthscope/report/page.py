"""The page of a run: one HTML file that says what was found, shows it, and how it was measured; it opens offline.

Everything it needs stands in it, plotly.js too (4.8 MB of the file), and its content security policy forbids any request.
"""

import json
import math
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from plotly.offline import get_plotlyjs

from depthscope.report import findings, method
from depthscope.report.figures import KINDS, PANELS, figure_kind, panel, shown_edits
from depthscope.report.measured import TABLE, Measured, decimals_for, interval, number, read_sweep, unit_of
from depthscope.report.palette import SHOWN
from depthscope.run.store import RunDirectory, atomic_file
from depthscope.schema.sweep import AGREEMENT, KL


def write_page(run: RunDirectory, out: Path) -> Path:
    """Write the page of a run, finished or not, to `out` and return it. Raises RunError where it cannot be written."""
    content = render(run).encode()
    with atomic_file(out) as stream:
        stream.write(content)
    return out


def render(run: RunDirectory) -> str:
    """The page as HTML. Raises RunError where the sweep table is there but damaged."""
    measured = read_sweep(run) if TABLE in run.tables() else None
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    figures = figure_data(measured)
    return environment.from_string(_part("page.html")).render(
        css=_part("page.css"),
        js=_part("page.js"),
        plotly=get_plotlyjs() if figures else "",
        figures=script_json(figures),
        has_figures=bool(figures),
        has_intervals=measured is not None and any(value.has_interval for value in measured.values.values()),
        shown=SHOWN,
        model=str(run.settings.get("model", "a model")),
        facts=method.facts(run.manifest, measured),
        method=method.method(run.manifest, measured),
        incomplete=_incomplete(run, measured),
        answer=_answer(measured),
        sections=_sections(run, measured),
        table=_table(measured),
    )


def figure_data(measured: Measured | None) -> dict[str, Any]:
    """Plotly specifications by panel, `sweep-kl` and so on; empty where nothing was measured."""
    if measured is None:
        return {}
    return {
        f"{name}-{metric.name}": json.loads(panel(measured, edits, metric).to_json() or "{}")
        for name, kind in KINDS.items()
        for metric in PANELS
        if (edits := shown_edits(kind, measured))
    }


def script_json(data: Any) -> str:
    """JSON that can stand in a script element: no text in it can close the element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _part(name: str) -> str:
    return resources.files("depthscope.report").joinpath(name).read_text(encoding="utf-8")


def _answer(measured: Measured | None) -> dict[str, Any] | None:
    if measured is None:
        return None
    return {
        "headline": findings.headline(measured),
        "further": findings.further(measured),
        "notes": [note for note in (findings.intervals_note(measured),) if note],
    }


def _incomplete(run: RunDirectory, measured: Measured | None) -> list[str]:
    """What is missing from a run that has not come to its end."""
    if run.complete and measured is not None:
        return []
    said = ["This run is marked complete." if run.complete else "This run has not come to its end."]
    done = len(list((run.path / "shards" / TABLE).glob("*.parquet")))
    units = _units(run.settings)
    of = f" of {units}" if units else ""
    if not run.complete:
        said.append(f"{done}{of} work units of the sweep are stored.")
    said.append(
        "There is no sweep table yet, so there is nothing to show of what was measured."
        if measured is None
        else "The sweep table below is whole: it is only ever made from all work units."
    )
    said.append("The same command on the same directory goes on where it stopped.")
    return said


def _units(settings: dict[str, Any]) -> int | None:
    """How many work units the run has in all, None where the manifest does not say."""
    tokens, window, per_unit = (settings.get(key) for key in ("tokens", "window", "windows_per_unit"))
    return math.ceil(tokens / window / per_unit) if tokens and window and per_unit else None


def _sections(run: RunDirectory, measured: Measured | None) -> list[dict[str, Any]]:
    """The figures of the page: title, sentences, key and panels, or why there are none."""
    if measured is None:
        return []
    not_done = run.manifest.get("not_done", {})
    sections = []
    for name in KINDS:
        kind = figure_kind(name)
        edits = shown_edits(kind, measured)
        missing = [edit for edit in kind.needs if edit not in measured.edits]
        sections.append(
            {
                "name": name,
                "title": kind.title,
                "edits": edits,
                "sentences": findings.components(measured) if name == "components" and edits else [],
                "missing": [_why_missing(edit, measured, not_done) for edit in missing],
                "panels": [
                    {
                        "id": f"{name}-{metric.name}",
                        "title": metric.title,
                        "unit": unit_of(metric),
                        "metric": metric.name,
                    }
                    for metric in PANELS
                ],
                "note": findings.zeros_note(measured, [edit.name for edit in edits]),
            }
        )
    return sections


def _why_missing(edit: str, measured: Measured, not_done: dict[str, str]) -> str:
    title = SHOWN[edit].title
    if edit in not_done:
        return f"{title} could not be done: {not_done[edit]}."
    if edit == "swap" and measured.depth == 1:
        return f"{title}: a model of one layer has no neighbours that could change places."
    return f"{title} was not part of this run."


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

"""Rendering of pages: templates, with plots and tables embedded as data.

A page is self-contained, including plotly.js (4.8 MB), and its content security policy forbids any request, and any script but
the two that belong to the page.
"""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, Protocol, runtime_checkable

import jinja2
import numpy as np
from plotly.io.json import to_json_plotly
from plotly.offline import get_plotlyjs

from depthscope.report.palette import FONT, Look
from depthscope.report.panels import Panel
from depthscope.report.section import Section
from depthscope.report.traces import alone, axis, hovermode, layout, traces, with_margins

TEMPLATES = ("base.html", "parts.html", "page.html", "comparison.html", "series.html")


@runtime_checkable
class Titled(Protocol):
    """Name, title, source and reading advice of a section."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def title(self) -> str: ...  # noqa: D102
    @property
    def source(self) -> str: ...  # noqa: D102
    @property
    def look_for(self) -> str: ...  # noqa: D102


def fill(
    template: str,
    *,
    title: str,
    looks: Mapping[str, Look],
    panels: Sequence[Panel],
    tables: Mapping[str, str],
    **content: Any,
) -> str:
    """Render a template. `looks` are the page's colours by name, `tables` packed CSV files by name (downloads.py)."""
    figures = {panel.name: specification(panel) for panel in panels}
    js, plotly = _part("page.js"), get_plotlyjs() if figures else ""
    return (
        _templates()
        .get_template(template)
        .render(
            title=title,
            looks=looks,
            css=_part("page.css"),
            js=js,
            plotly=plotly,
            scripts=[_digest(one) for one in (plotly, js)],
            figures=figures,
            figures_json=script_json(figures),
            tables=tables,
            tables_json=script_json(tables),
            **content,
        )
    )


def section_shown(kind: Titled, section: Section, saved: list[str], too_large: list[str]) -> dict[str, Any]:
    """A section as template data. `saved`: tables offered for download; `too_large`: tables too large to offer."""
    return {
        "name": kind.name,
        "title": kind.title,
        "source": kind.source,
        "sentences": [sentence for sentence in section.sentences if sentence],
        "missing": section.missing,
        "look_for": kind.look_for,
        "panels": section.panels,
        "across": section.across,
        "legend": section.legend,
        "by_layer": any(panel.relative for panel in section.panels),
        "log": any(panel.log for panel in section.panels),
        "notes": section.notes,
        "log_note": section.log_note,
        "tables": section.tables,
        "downloads": saved,
        "too_large": too_large,
        "definitions": section.definitions,
    }


def script_json(data: Any) -> str:
    """JSON that is safe inside a script element: no text in it can close the element."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def specification(panel: Panel) -> dict[str, Any]:
    """A panel as plotly JSON for the page's script, without title and legend: the page has its own."""
    cell = alone(panel)
    arranged = with_margins(layout(panel, cell)) | {
        "font": {"family": FONT, "size": 12},
        "margin": {"l": panel.left, "r": 8, "t": 8, "b": 40},
        "height": panel.height,
        "showlegend": False,
        "dragmode": False,
        "hovermode": hovermode([panel]),
    }
    data = [{key: _compact(value) for key, value in trace.items()} for trace in traces(panel, cell)]
    # plotly's encoder writes what JSON has no number for as null.
    drawn = json.loads(to_json_plotly({"data": data, "layout": arranged}) or "{}")
    relative = axis(panel.relative) if panel.relative else None
    return {**drawn, "relative": relative, "log": panel.log, "called": panel.called}


def _compact(value: Any) -> Any:
    """An array as plotly's typed array: half as long as its numbers in JSON, and NaN stays."""
    if not isinstance(value, np.ndarray):
        return value
    content = base64.b64encode(np.ascontiguousarray(value, dtype="<f8").tobytes()).decode()
    return {"dtype": "f8", "bdata": content, "shape": ", ".join(map(str, value.shape))}


@cache
def _templates() -> jinja2.Environment:
    """The templates, compiled once."""
    return jinja2.Environment(
        loader=jinja2.DictLoader({name: _part(name) for name in TEMPLATES}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _digest(script: str) -> str:
    """The source expression of a script in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _part(name: str) -> str:
    return resources.files("depthscope.report").joinpath(name).read_text(encoding="utf-8")

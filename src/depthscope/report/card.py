"""A short HTML summary of a run for notebooks: model, text, state, key numbers, stages and available tables."""

from html import escape

from depthscope.errors import RunError
from depthscope.report.key_numbers import KeyNumber, key_numbers
from depthscope.report.sections.stage_map import span
from depthscope.report.sections.stages import read_stages
from depthscope.report.wording import counted_documents
from depthscope.run.store import RunDirectory
from depthscope.schema.found_stages import Stage

GREYS = ("rgba(128, 128, 128, 0.38)", "rgba(128, 128, 128, 0.16)")
"""Of neighbouring stages; visible on light and dark backgrounds."""
SMALL = "font-size: 0.85em; opacity: 0.75"


def card(run: RunDirectory) -> str:
    """The run as one HTML element with inline styles and no script; text takes the notebook's colour."""
    parts = [_heading(run), _numbers(key_numbers(run)), _stages(run), _tables(run)]
    return f'<div style="max-width: 56em; line-height: 1.4">{"".join(parts)}</div>'


def _heading(run: RunDirectory) -> str:
    settings, documents = run.settings, counted_documents(run.manifest.text)
    text = [f"{settings.tokens:,} tokens" if settings.tokens else "text"]
    text += [f"of {documents}"] if documents else []
    text += [f"({settings.data})"] if settings.data else []
    state = "" if run.complete else ", incomplete: the same call resumes"
    said = escape(f"{' '.join(text)}{state} · {run.path}")
    return f'<div><b>{escape(settings.subject)}</b></div><div style="{SMALL}">{said}</div>'


def _numbers(numbers: list[KeyNumber]) -> str:
    cells = "".join(
        f'<div style="margin-right: 1.75em; margin-top: 0.5em"><div style="{SMALL}">{escape(one.title)}</div>'
        f'<div><b>{escape(one.value)}</b> <span style="{SMALL}">{escape(one.interval)}</span></div></div>'
        for one in numbers
    )
    return f'<div style="display: flex; flex-wrap: wrap">{cells}</div>' if cells else ""


def _stages(run: RunDirectory) -> str:
    """The layers as a bar divided into stages, each proportional to its number of layers."""
    try:
        found = read_stages(run)
    except RunError:
        return ""
    if not found.stages:
        return f'<div style="{SMALL}; margin-top: 0.6em">{escape(found.summary)}</div>'
    bar = "".join(_stage(stage, GREYS[place % 2]) for place, stage in enumerate(found.stages))
    names = "".join(
        f"<li>{escape(stage.title)}: {escape(span(stage))}, {stage.supported} of {stage.signatures} signatures supported</li>"
        for stage in found.stages
    )
    return (
        f'<div style="display: flex; margin-top: 0.8em" aria-hidden="true">{bar}</div>'
        f'<ul style="{SMALL}; margin: 0.3em 0 0; padding-left: 1.2em">{names}</ul>'
    )


def _stage(stage: Stage, grey: str) -> str:
    first, last = stage.first, stage.last
    layers = f"{first}" if first == last else f"{first}–{last}"
    return (
        f'<div title="{escape(stage.title)}" style="flex: {last - first + 1} 1 0; min-width: 1.5em; padding: 0.15em 0; '
        f'text-align: center; font-size: 0.8em; background: {grey}">{layers}</div>'
    )


def _tables(run: RunDirectory) -> str:
    names = ", ".join(run.tables()) or "none yet"
    return f'<div style="{SMALL}; margin-top: 0.6em">tables: {escape(names)}</div>'

"""The page that compares runs: curves of all models over relative depth, with stages and signatures side by side."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from depthscope.errors import DepthscopeError, RunError
from depthscope.report import downloads, method
from depthscope.report.compared_stages import Stages, compared_stages
from depthscope.report.html import fill, section_shown
from depthscope.report.key_numbers import key_numbers
from depthscope.report.measured import SweepValues, read_sweep
from depthscope.report.overlays import OVERLAYS, Compared, Overlay, overlay, reference_title
from depthscope.report.page_file import require_replaceable, write_page_file
from depthscope.report.palette import MOST_RUNS, run_look
from depthscope.report.section import Section, TextTable
from depthscope.report.unexpected import as_run_error
from depthscope.report.wording import joined
from depthscope.run.store import RunDirectory


def write_comparison(runs: Sequence[RunDirectory], out: Path) -> Path:
    """Write the page that compares runs to `out` and return `out`.

    Raises DepthscopeError for fewer than two runs or more than can be distinguished; RunError if it cannot be written, or
    would replace a file that is not a page as depthscope wrote it.
    """
    require_replaceable(out)
    with as_run_error("the compared runs", "the page"):
        content = render_comparison(runs)
    return write_page_file(content, out)


def render_comparison(runs: Sequence[RunDirectory]) -> str:
    """The page as HTML. What a run lacks is reported, and the other runs are shown."""
    compared = side_by_side(runs)
    tables: dict[str, str] = {}
    shown = []
    for kind, section, frames in comparison_sections(compared):
        packed = {name: downloads.packed(downloads.csv(frame)) for name, frame in frames.items()}
        tables |= packed
        shown.append(section_shown(kind, section, list(packed), []))
    names = [one.look.title for one in compared]
    return fill(
        "comparison.html",
        title=joined(names) if len(names) <= 3 else f"{len(names)} models",
        looks={one.look.name: one.look for one in compared},
        panels=[panel for section in shown for panel in section["panels"]],
        tables=tables,
        names=names,
        warnings=warnings(compared),
        numbers=numbers_table(compared),
        facts=facts_table(compared),
        sections=shown,
        method={"replay": method.REPLAY, "estimator": method.ESTIMATOR},
    )


def comparison_sections(
    compared: Sequence[Compared],
) -> list[tuple[Stages | Overlay, Section, dict[str, Any]]]:
    """(titles, section, downloadable tables) of each part of the page."""
    try:
        with as_run_error("the compared runs", "the stages"):
            section, frames = compared_stages(compared)
    except RunError as error:
        section, frames = Section(panels=(), missing=[f"{error}."]), {}
    found: list[tuple[Stages | Overlay, Section, dict[str, Any]]] = [(Stages(), section, frames)]
    for kind in OVERLAYS:
        section = overlay(kind, compared)
        found.append((kind, section, {kind.name: downloads.drawn(section.panels)} if section.panels else {}))
    return found


def side_by_side(runs: Sequence[RunDirectory]) -> list[Compared]:
    """Runs with their names and looks. Runs of the same model also get their directory's name.

    Raises DepthscopeError for fewer than two runs or more than can be distinguished.
    """
    if not 2 <= len(runs) <= MOST_RUNS:
        raise DepthscopeError(f"expected 2 to {MOST_RUNS} runs to compare, got {len(runs)}")
    models = [reference_title(run) for run in runs]
    seen = Counter(models)
    names = [
        f"{model} ({run.path.resolve().name})" if seen[model] > 1 else model
        for run, model in zip(runs, models, strict=True)
    ]
    again = Counter(names)
    names = [f"{name} #{place + 1}" if again[name] > 1 else name for place, name in enumerate(names)]
    return [
        Compared(run=run, look=run_look(place, name)) for place, (run, name) in enumerate(zip(runs, names, strict=True))
    ]


ALIKE = {
    "data": "The runs use different texts, so differences may come from the text",
    "tokens": "The runs use different amounts of text",
    "window": "Windows differ in length, so positions have different amounts of context",
    "bos": "BOS policies differ",
    "dtype": "The models were run in different dtypes",
}
"""Settings that should agree between compared runs, and the warning if they do not."""


def warnings(compared: Sequence[Compared]) -> list[str]:
    """Differences that make the runs less comparable."""
    said = []
    for key, what in ALIKE.items():
        values = [getattr(one.run.settings, key) for one in compared]
        if len(set(map(str, values))) > 1:
            pairs = zip(compared, values, strict=True)
            said.append(f"{what}: {joined([f'{one.look.title} {value}' for one, value in pairs])}.")
    hashes = [one.run.settings.token_hash for one in compared]
    vocabularies = [one.run.manifest.model.vocabulary for one in compared]
    if any(a != b for a, b in pairwise(vocabularies)):
        said.append("Vocabularies differ, so values in nats per token are not directly comparable.")
    elif any(a != b for a, b in pairwise(hashes)):
        said.append("The token sequences are not the same.")
    protocols = [_protocols(one) for one in compared]
    if any(a != b for a, b in pairwise(protocols)):
        said.append(
            "Some runs follow the paper’s text, others its first script (protocol lad2024), where the two differ."
        )
    if incomplete := [one.look.title for one in compared if not one.run.complete]:
        said.append(f"Incomplete: {joined(incomplete)}.")
    return said


def _protocols(one: Compared) -> bool:
    return any(own.get("protocol") == "lad2024" for own in one.run.settings.experiments.values())


def numbers_table(compared: Sequence[Compared]) -> TextTable:
    """The key numbers, a column per model."""
    cells = {
        (number.title, one.look.name): (number.value, number.interval or number.note)
        for one in compared
        for number in key_numbers(one.run)
    }
    titles = dict.fromkeys(title for title, _ in cells)
    return TextTable(
        title="Key numbers",
        head=("", *(one.look.title for one in compared)),
        rows=[(title, *(cells.get((title, one.look.name), "–") for one in compared)) for title in titles],
    )


def facts_table(compared: Sequence[Compared]) -> TextTable:
    """Models and texts, a column per run."""
    entries: dict[str, dict[str, str]] = {}
    for one in compared:
        for heading, facts in method.facts(one.run.manifest, _measured(one.run)):
            for name, value in facts:
                entries.setdefault(f"{heading}: {name}", {})[one.look.name] = value
        entries.setdefault("Run", {})[one.look.name] = one.run.path.resolve().name
    return TextTable(
        title="Models and texts",
        head=("", *(one.look.title for one in compared)),
        rows=[(_short(name), *(cells.get(one.look.name, "–") for one in compared)) for name, cells in entries.items()],
    )


def _short(name: str) -> str:
    heading, _, own = name.partition(": ")
    return own if heading in ("Model", "Text") and own else name


def _measured(run: RunDirectory) -> SweepValues | None:
    try:
        with as_run_error(run.path, "the sweep"):
            return read_sweep(run)
    except RunError:
        return None

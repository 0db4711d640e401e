"""The page of a series: its studies, each training run as maps of depth × training, and the models compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from depthscope.errors import RunError
from depthscope.report import downloads, method
from depthscope.report.comparison import comparison_sections, facts_table, numbers_table, side_by_side, warnings
from depthscope.report.html import fill, section_shown
from depthscope.report.page_file import require_replaceable, write_page_file
from depthscope.report.palette import MOST_RUNS, OWN, Look, edit_looks
from depthscope.report.training import Training, training_sections
from depthscope.report.unexpected import as_run_error
from depthscope.report.wording import joined
from depthscope.run.frames import sealed_bytes
from depthscope.run.inside import inside
from depthscope.run.layout import PAGE as RUN_PAGE
from depthscope.run.layout import TABLES
from depthscope.run.series import PAGE, RUNS, Member, SeriesDirectory, trajectories
from depthscope.schema.formation import FORMATION_TABLE
from depthscope.schema.formation import NAME as FORMATION
from depthscope.schema.series import MemberEntry

AGAIN = "Give the command that made the series again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A study in the page's list."""

    name: str
    model: str
    text: str
    state: str
    link: str
    """The study's own page, relative to the series; empty if there is none."""


def write_series(series: SeriesDirectory, out: Path | None = None) -> Path:
    """Write the page of a series, SERIES/index.html by default, and return its path.

    Raises RunError if it cannot be written, or would replace a file that is not a page as depthscope wrote it.
    """
    place = series.path / PAGE if out is None else out
    require_replaceable(place)
    with as_run_error(series.path, "the page"):
        content = render_series(series)
    return write_page_file(content, place)


def render_series(series: SeriesDirectory) -> str:
    """The page as HTML."""
    trained = _trainings(series)
    tables: dict[str, str] = {}
    shown = []
    for training in trained:
        for one in training_sections(training):
            saved = _packed(one.name, one.frame, tables)
            shown.append(section_shown(one, one.section, saved, []))
    compared = side_by_side([run for _, run in _compared(series)[:MOST_RUNS]]) if len(_compared(series)) > 1 else []
    for kind, section, frames in comparison_sections(compared) if compared else ():
        saved = [name for label, frame in frames.items() for name in _packed(label, frame, tables)]
        shown.append(section_shown(kind, section, saved, []))
    looks: dict[str, Look] = {look.name: look for look in (OWN, *(one.look for one in compared))}
    swept = [name for training in trained if training.formation is not None for name in training.formation["edit"]]
    looks |= edit_looks(dict.fromkeys(swept))
    return fill(
        "series.html",
        title=_title(series.members),
        looks=looks,
        panels=[panel for section in shown for panel in section["panels"]],
        tables=tables,
        rows=[_row(series, member) for member in series.members],
        failures=[(member.name, member.failed) for member in series.members if member.failed],
        warnings=_caveats(len(_compared(series)), trained, compared),
        numbers=numbers_table(compared) if compared else None,
        facts=facts_table(compared) if compared else None,
        sections=shown,
        method={"replay": method.REPLAY, "estimator": method.ESTIMATOR},
    )


def _trainings(series: SeriesDirectory) -> list[Training]:
    table = _formation(series)
    found = []
    every = list(trajectories(series))
    for place, members in enumerate(every):
        entry = members[0][0]
        own = None if table is None else table.filter(study=members[-1][0].name)
        found.append(
            Training(
                name=f"training-{place}",
                title=_short(entry.trained or "") if len(every) > 1 else "",
                members=members,
                formation=None if own is None or own.is_empty() else own,
            )
        )
    return found


def _formation(series: SeriesDirectory) -> pl.DataFrame | None:
    if not (series.path / TABLES / f"{FORMATION}.parquet").exists():
        return None
    file = inside(series.path, TABLES, f"{FORMATION}.parquet")
    content, _ = sealed_bytes(file, AGAIN)
    table = pl.read_parquet(content)
    if dict(table.schema) != FORMATION_TABLE:
        raise RunError(f"{file} has other columns than expected, {', '.join(FORMATION_TABLE)}. {AGAIN}")
    return table


def _compared(series: SeriesDirectory) -> list[Member]:
    """The runs that are compared: of each training run only the last checkpoint."""
    earlier = {entry.name for members in trajectories(series) for entry, _ in members[:-1]}
    return [(entry, run) for entry, run in series.runs() if entry.name not in earlier]


def _caveats(there: int, trained: Sequence[Training], compared: Sequence[Any]) -> list[str]:
    said = warnings(compared) if compared else []
    if there > MOST_RUNS:
        said.append(
            f"Only the first {MOST_RUNS} of {there} runs are compared here, as many as a figure can distinguish: depthscope "
            "compare shows others."
        )
    if several := [
        _short(one.members[0][0].trained or "")
        for one in trained
        if len({run.settings.token_hash for _, run in one.members}) > 1
    ]:
        said.append(f"The checkpoints of {joined(several)} were measured on different tokens.")
    return said


def _packed(name: str, frame: Any, tables: dict[str, str]) -> list[str]:
    """Add a table to the page's downloads, if it has rows and fits; the names of those that were added."""
    if frame.is_empty() or len(content := downloads.packed(downloads.csv(frame))) > downloads.LARGEST:
        return []
    tables[name] = content
    return [name]


def _row(series: SeriesDirectory, member: MemberEntry) -> Row:
    own = series.run_path(member) / RUN_PAGE
    named = member.checkpoint if member.checkpoint is not None else member.revision
    at = "" if member.checkpoint is not None and member.revision is None else f" at {named}" if named else ""
    return Row(
        name=member.name,
        model=f"{member.model}{at}",
        text=member.text,
        state="failed" if member.failed else "finished" if member.finished else "not finished",
        link=f"{RUNS}/{member.name}/{RUN_PAGE}" if own.exists() else "",
    )


def _title(members: Sequence[MemberEntry]) -> str:
    models = list(dict.fromkeys(member.trained or member.model for member in members))
    if len(models) == 1 and members[0].trained is not None:
        return f"{_short(models[0])} over training"
    return joined([_short(name) for name in models]) if len(models) <= 3 else f"{len(models)} models"


def _short(model: str) -> str:
    """The name of a model; of a path the last two components."""
    return "/".join(Path(model).parts[-2:])

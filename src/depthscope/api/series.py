"""Series of studies: `ds.study_recipe` and `ds.study_revisions` measure, `ds.Series` reads what was measured."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from depthscope.api.inputs import corpus
from depthscope.api.study import Study
from depthscope.data.corpus import BOOKSHELF, Corpus
from depthscope.errors import DepthscopeError, RunError
from depthscope.printable import shown
from depthscope.run.cluster import Cluster
from depthscope.run.layout import table_path
from depthscope.run.mirror import destination, local_copy
from depthscope.run.series import RUNS, SeriesDirectory
from depthscope.schema.formation import NAME as FORMATION
from depthscope.schema.series import MemberEntry
from depthscope.studies.checkpoints import revision_studies
from depthscope.studies.formation import write_formation
from depthscope.studies.planned import LOADING, Planned
from depthscope.studies.recipe import read_recipe
from depthscope.studies.run_series import DONE, Report, run_series
from depthscope.studies.studied import Progress


class Series:
    """A series of studies in one directory: their runs, tables over all of them, and the page. Only reads files."""

    def __init__(self, path: str | Path) -> None:
        self.directory = SeriesDirectory.reading(local_copy(path))

    @property
    def path(self) -> Path:
        """The directory of the series."""
        return self.directory.path

    @property
    def studies(self) -> dict[str, Study]:
        """The studies that have begun, by name, in order."""
        return {entry.name: Study(run.path) for entry, run in self.directory.runs()}

    @property
    def failed(self) -> dict[str, str]:
        """Why studies could not be done, by name."""
        return {member.name: member.failed for member in self.directory.members if member.failed}

    def table(self, name: str) -> pl.DataFrame:
        """A table of all studies that have it, with the columns study, model, checkpoint, step and text in front.

        `formation` is made from the checkpoints of a training run. Raises RunError if no study has a table of that name.
        """
        if name == FORMATION and (file := table_path(self.path, FORMATION)).exists():
            return pl.read_parquet(file)
        found = [_named(entry, run.table(name)) for entry, run in self.directory.runs() if name in run.tables()]
        if not found:
            raise RunError(f"no study of {self.path} has a table {name!r}")
        return pl.concat(found, how="diagonal")

    def report(self, out: str | Path | None = None) -> Path:
        """Write the page, one file that opens offline (SERIES/index.html by default), and return its path."""
        from depthscope.report.series_page import write_series

        return write_series(self.directory, Path(out) if out else None)

    def __repr__(self) -> str:
        members = self.directory.members
        return f"Series({str(self.path)!r}: {sum(one.finished for one in members)} of {len(members)} studies finished)"


def study_recipe(recipe: str | Path, *, out: str | Path, progress: bool | Progress = True) -> Series:
    """Study each model of a recipe on each text, and keep the results in `out`, a directory or a URL.

    A recipe is a TOML file with tables [[models]] and [[texts]] (see the guide on series). The same call resumes; with a recipe
    that has more models, texts or experiments, only what is new is done. A study that cannot be done is in `Series.failed`, and
    the others are done. Raises DepthscopeError for a recipe that cannot be read.
    """
    return run_planned(read_recipe(recipe), out, progress)


def study_revisions(
    model: str,
    revisions: str | Sequence[str],
    text: Corpus | str | Path | Sequence[Any] = BOOKSHELF,
    *,
    out: str | Path,
    tokens: int | None = None,
    progress: bool | Progress = True,
    **settings: Any,
) -> Series:
    """Study the checkpoints of a training run on one text, and keep the results in `out`, a directory or a URL.

    `model` is a folder with a folder for each checkpoint, whose names are the revisions (`all` for every one), or a Hugging
    Face id with revisions there. `settings` are those of `ds.study` and of `ds.load` (dtype, device, stream, adapter). The
    table `formation` has, for each edit and layer, the step of training at which half of the change in KL is done.
    """
    if not isinstance(model, str):
        raise DepthscopeError(
            f"model is {shown(model)}: expected a folder of checkpoints or a Hugging Face id, as text"
        )
    names = revisions.split(",") if isinstance(revisions, str) else list(revisions)
    if not all(isinstance(name, str) for name in names):
        raise DepthscopeError(f"revisions is {shown(revisions)}: expected names of checkpoints")
    loading = {name: settings.pop(name) for name in LOADING if name in settings}
    text = text if isinstance(text, Corpus) else corpus(text)
    text = text if tokens is None else replace(text, tokens=tokens)
    return run_planned(revision_studies(model, names, text, loading, settings), out, progress)


def run_planned(
    planned: Sequence[Planned],
    out: str | Path,
    progress: bool | Progress = True,
    report: Report | None = None,
    cluster: Cluster | None = None,
) -> Series:
    """Do the remaining studies of a series, write each study's page, the tables over training runs and the series' page."""
    with destination(out) as directory:
        return _run_in(directory, planned, progress, report, cluster)


def _run_in(
    out: Path, planned: Sequence[Planned], progress: bool | Progress, report: Report | None, cluster: Cluster | None
) -> Series:
    def finished(study: Planned, state: str, why: str) -> None:
        if state == DONE:
            Study(out / RUNS / study.name).report()
        if report is not None:
            report(study, state, why)

    if progress is True:
        from depthscope.progress import progress_bar

        with progress_bar() as tell:
            directory = run_series(planned, out, tell, finished, cluster)
    else:
        directory = run_series(planned, out, progress or None, finished, cluster)
    write_formation(directory)
    series = Series(out)
    series.report()
    return series


def _named(entry: MemberEntry, table: pl.DataFrame) -> pl.DataFrame:
    columns = {
        "study": (entry.name, pl.String),
        "model": (entry.trained or entry.model, pl.String),
        "checkpoint": (entry.checkpoint, pl.String),
        "step": (entry.step, pl.Int64),
        "text": (entry.text, pl.String),
    }
    return table.select(*(pl.lit(value, dtype=kind).alias(name) for name, (value, kind) in columns.items()), pl.all())

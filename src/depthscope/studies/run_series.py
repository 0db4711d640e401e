"""Running a series: each study in its own run directory, finished ones skipped, failed ones reported, the others done."""

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from depthscope.errors import DepthscopeError
from depthscope.models.load import load
from depthscope.models.model import Model
from depthscope.run.cluster import Cluster
from depthscope.run.series import RUNS, SeriesDirectory
from depthscope.run.store import MANIFEST, RunDirectory
from depthscope.schema.experiments import STAGES
from depthscope.studies.planned import Planned, check_planned
from depthscope.studies.run_study import run_study
from depthscope.studies.studied import Progress

SKIPPED, DONE, FAILED = "unchanged", "done", "failed"
Report = Callable[[Planned, str, str], None]
"""Called with a study, what became of it (SKIPPED, DONE or FAILED) and the reason."""


def run_series(
    planned: Sequence[Planned],
    out: str | Path,
    progress: Progress | None = None,
    report: Report | None = None,
    cluster: Cluster | None = None,
) -> SeriesDirectory:
    """Do the remaining studies of a series in directory `out`, with a `cluster` on it.

    A study that was finished with the same request, from files that have not changed since, is skipped without loading its
    model. A study that cannot be done is recorded with the reason, and the others go on. A model is loaded once for
    consecutive studies. Raises DepthscopeError for studies that are impossible whatever the model.
    """
    check_planned(planned)
    say = report or (lambda study, state, why: None)
    loaded: _Loaded = _Loaded()
    with SeriesDirectory.writing(out, [one.entry for one in planned]) as series:
        for one in planned:
            sources = one.sources()
            if _is_done(series, one, sources):
                say(one, SKIPPED, "")
                continue
            series.update(one.name, finished=False, failed=None, sources=None)
            try:
                into = series.path / RUNS / one.name
                run_study(loaded.model(one), one.text, into, one.checked, _named(one, progress), cluster)
            except DepthscopeError as error:
                series.update(one.name, failed=str(error))
                say(one, FAILED, str(error))
                continue
            series.update(one.name, finished=True, sources=sources)
            say(one, DONE, "")
    return series


class _Loaded:
    """The model that was loaded last: studies of one model on several texts load it once."""

    def __init__(self) -> None:
        self._of: Any = None
        self._model: Model | None = None

    def model(self, planned: Planned) -> Model:
        of = (planned.model, planned.revision, dict(planned.loading))
        if self._model is None or of != self._of:
            self._model = None
            gc.collect()  # before the next one takes its memory
            self._model, self._of = load(planned.model, revision=planned.revision, **planned.loading), of
        return self._model


def _is_done(series: SeriesDirectory, planned: Planned, sources: str | None) -> bool:
    """Whether a study need not be looked at again: finished with this request from these files, and still there."""
    member = next(one for one in series.members if one.name == planned.name)
    path = series.run_path(member)
    if not member.finished or sources is None or member.sources != sources or not (path / MANIFEST).exists():
        return False
    try:
        run = RunDirectory.reading(path)
    except DepthscopeError:
        return False
    asked = [name for name in planned.checked.experiments if name != STAGES]
    finished = {*run.manifest.finished, *run.manifest.not_done}
    return run.complete and finished >= set(asked) and set(run.manifest.tables) <= set(run.tables())


def _named(planned: Planned, progress: Progress | None) -> Progress | None:
    if progress is None:
        return None
    return lambda what, done, units: progress(f"{planned.name}: {what}", done, units)

"""A study: experiments on one model and one text, in one run directory."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import polars as pl

from depthscope.data.corpus import Corpus
from depthscope.errors import DepthscopeError, MemoryShortError, NumericError
from depthscope.experiments import sweep
from depthscope.experiments.experiment import Aimed, Explained, OwnUnits, Partial, Prepared, Reading, Running, Subject
from depthscope.models.memory import MEASURING, memory_errors, require_headroom
from depthscope.models.model import Model
from depthscope.run.cluster import Cluster
from depthscope.run.store import RunDirectory
from depthscope.schema.experiments import STAGES, declared_experiments
from depthscope.stages import find as stages
from depthscope.stages.signals import ResampledLayers, read_measured
from depthscope.studies import precision
from depthscope.studies.do_units import do_units
from depthscope.studies.entries import facts_entry, settings_entry
from depthscope.studies.read_windows import require_memory_for
from depthscope.studies.settings import StudySettings
from depthscope.studies.studied import Progress, Studied, studied
from depthscope.studies.threads import same_sums

REDUCE = "Use a shorter --window, --stream yes, --dtype bfloat16, or fewer --experiments at a time"
"""What to do where memory is short."""


@memory_errors("measure", f"{REDUCE}; the same command goes on where this one ended")
def run_study(
    model: Model,
    corpus: Corpus,
    out: str | Path,
    settings: StudySettings,
    progress: Progress | None = None,
    cluster: Cluster | None = None,
) -> RunDirectory:
    """Do the remaining work of a study in directory `out`, then write its tables. With a `cluster`, replicas on it compute the
    units.

    Experiments requested later are added to those already there. Raises RunMismatchError if `out` was made with other
    settings, whatever reading text or measuring raises, and, if only one experiment was requested, the reason why it cannot
    be done.
    """
    require_headroom("a study", MEASURING)
    model.kernels.forget()
    names = settings.experiments
    tell = progress or (lambda what, done, units: None)
    subject = studied(model, corpus, settings, tell)
    return run_experiments(subject, *_make_experiments(names, subject), out, tell, cluster=cluster)


def run_experiments(
    subject: Studied,
    readings: Sequence[Reading],
    others: Sequence[OwnUnits],
    not_done: Mapping[str, str],
    out: str | Path,
    tell: Progress,
    more_versions: Mapping[str, str] | None = None,
    cluster: Cluster | None = None,
) -> RunDirectory:
    """The same for experiments that have been made; `not_done` are the reasons why others could not be.

    `more_versions` are those of further packages that affect numbers. `subject.windows` is the text of the readings.
    """
    settings, names = subject.settings, subject.settings.experiments
    made: list[Running] = [*readings, *others]
    require_memory_for(subject.model, subject.windows.length, REDUCE)
    asked = settings_entry(subject, made)
    if settings.precision is not None:
        if precision.aim_of(readings) is None:
            why = next((not_done[name] for name in settings.experiments if name in not_done), "none was asked for")
            raise DepthscopeError(f"--precision is a goal for a sweep or map, which cannot be done: {why}")
        asked = precision.comparable(asked, out, names)
    facts = facts_entry(subject)
    facts["versions"] |= more_versions or {}
    with RunDirectory.writing(out, asked, facts) as run:
        again = {experiment.name for experiment in made}
        earlier = {what: why for what, why in run.manifest.not_done.items() if what not in again}
        run.update(not_done={**earlier, **not_done})
        _prepare(made, run.path, tell)
        units_done = do_units(run, subject, readings, others, tell, cluster)
        units_of = {one.name: one.units if isinstance(one, OwnUnits) else units_done for one in made}
        require_headroom("writing the tables")
        for experiment in made:
            with same_sums():
                tables = experiment.tables(_shards(run, subject, experiment, units_of[experiment.name]))
            for name, table in tables.items():
                run.write_table(name, table, experiment.name)
            if isinstance(experiment, Explained):
                run.update(**experiment.facts(tables))
        run.finish(list(units_of), units_of)
        if STAGES in names:
            with same_sums():
                found = stages.find_stages(_measured(run, subject, units_done))
            run.write_stages(found)
    return run


def _prepare(made: Sequence[Running], directory: Path, tell: Progress) -> None:
    for experiment in made:
        if isinstance(experiment, Prepared):
            experiment.prepare(directory, tell)


def _make_experiments(names: Sequence[str], subject: Subject) -> tuple[list[Reading], list[OwnUnits], dict[str, str]]:
    """The experiments with these names, readings separate from those with own units, and why others cannot be done.

    Raises the reason if it is the only experiment requested.
    """
    readings, others, not_done = [], [], {}
    declared = declared_experiments()
    for name in (name for name in names if name in declared):
        try:
            made = declared[name].maker()(subject)
        except (
            NumericError,
            MemoryShortError,
        ):  # not what the model lacks: a study without it would not be the one requested
            raise
        except DepthscopeError as error:
            if len(names) == 1:
                raise
            not_done[name] = str(error)
            continue
        not_done |= made.not_done if isinstance(made, Partial) else {}
        (readings if isinstance(made, Reading) else others).append(made)
    return readings, others, not_done


def _shards(run: RunDirectory, subject: Studied, experiment: Running, units: int) -> Iterable[pl.DataFrame]:
    """An experiment's shards, each document's rows together."""
    if isinstance(experiment, OwnUnits):
        return run.shards(experiment.name, units)
    read = partial(run.shards, experiment.name, units)
    if subject.aimed and isinstance(experiment, Aimed):
        return subject.document_by_document(lambda: experiment.summed(read()), units)
    return subject.document_by_document(read, units)


def _measured(run: RunDirectory, subject: Studied, units: int) -> ResampledLayers:
    """What the run has measured so far, in this command and earlier ones."""

    def shards(experiment: str) -> Iterable[pl.DataFrame]:
        found = run.shards(experiment, units)
        return sweep.summed(found, subject.windows.length) if experiment == sweep.NAME else found

    return read_measured(
        run, lambda name: subject.document_by_document(partial(shards, name), units), subject.model.depth
    )

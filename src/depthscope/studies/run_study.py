"""A study: experiments on one model and one text, in one run directory."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from depthscope.data.corpus import Corpus
from depthscope.data.windows import Windows, make_windows
from depthscope.engine.reductions import PLAIN, Reductions
from depthscope.engine.sizes import Sizes, sizes_for
from depthscope.errors import DepthscopeError, MemoryShortError, NumericError
from depthscope.experiments import sweep
from depthscope.experiments.experiment import (
    Aimed,
    Explained,
    Halving,
    OwnUnits,
    Partial,
    Prepared,
    Reading,
    Running,
    Sequential,
    Subject,
)
from depthscope.models.memory import MEASURING, memory_errors, require_headroom
from depthscope.models.model import Model
from depthscope.models.noise_floor import noise_floor
from depthscope.printable import printable
from depthscope.run.by_document import by_document
from depthscope.run.cluster import RAY, Cluster
from depthscope.run.store import RunDirectory
from depthscope.run.units import Done, LocalRunner, Runner, Unit, run_units, units_between, work_units
from depthscope.schema.experiments import STAGES, declared_experiments
from depthscope.schema.manifest import (
    AdapterEntry,
    ClusteredEntry,
    ModelEntry,
    NoiseFloorEntry,
    PackedEntry,
    Settings,
    TextEntry,
)
from depthscope.stages import find as stages
from depthscope.stages.signals import ResampledLayers, read_measured
from depthscope.studies import precision
from depthscope.studies.placement import placed
from depthscope.studies.provenance import chosen_form, kernels, versions
from depthscope.studies.read_windows import read_windows, require_memory_for
from depthscope.studies.settings import StudySettings
from depthscope.studies.threads import same_sums
from depthscope.studies.unit_work import OwnTask, SharedTask, Work

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, units done, total units). While documents are read, the total is a lower bound."""


@dataclass(frozen=True, slots=True)
class Studied(Subject):
    """The subject of a study, with all its settings."""

    settings: StudySettings


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
    asked = _settings(subject, made)
    if settings.precision is not None:
        if precision.aim_of(readings) is None:
            why = next((not_done[name] for name in settings.experiments if name in not_done), "none was asked for")
            raise DepthscopeError(f"--precision is a goal for a sweep or map, which cannot be done: {why}")
        asked = precision.comparable(asked, out, names)
    facts = _facts(subject)
    facts["versions"] |= more_versions or {}
    with RunDirectory.writing(out, asked, facts) as run:
        earlier = {what: why for what, why in run.manifest.not_done.items() if not _asked(what, made)}
        run.update(not_done={**earlier, **not_done})
        _prepare(made, run.path, tell)
        units_done = _all_units(run, subject, readings, others, tell, cluster)
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


def studied(model: Model, corpus: Corpus, settings: StudySettings, tell: Progress) -> Studied:
    """The subject of a study, its text read."""
    return Studied(model, corpus, _windows(model, corpus, settings, tell), settings.bos, settings.options, settings)


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


def _windows(model: Model, corpus: Corpus, settings: StudySettings, tell: Progress) -> Windows:
    """The text; with a precision goal, the largest amount that may be read."""
    if settings.precision is not None:
        corpus = precision.longest_text(corpus)
    return make_windows(corpus, model, length=settings.window, bos=settings.bos, tell=tell)


def _order(subject: Studied) -> precision.ReadingOrder:
    """The order in which the shared pass reads the text: as it is, unless there is a precision goal."""
    if subject.settings.precision is None:
        return precision.ReadingOrder(subject.windows, [])
    return precision.ReadingOrder.of(subject.windows)


def _shards(run: RunDirectory, subject: Studied, experiment: Running, units: int) -> Iterable[pl.DataFrame]:
    """An experiment's shards, each document's rows together."""
    if isinstance(experiment, OwnUnits):
        return run.shards(experiment.name, units)
    read = partial(run.shards, experiment.name, units)
    if subject.settings.precision is not None and isinstance(experiment, Aimed):
        return _together(subject, lambda: experiment.summed(read()), units)
    return _together(subject, read, units)


def _together(subject: Studied, read: Callable[[], Iterable[pl.DataFrame]], units: int) -> Iterable[pl.DataFrame]:
    """The shards of the shared pass, each document's rows together; those of `units` units, sums over documents."""
    if subject.settings.precision is None:
        return read()
    order = _order(subject)
    windows = order.windows.part(0, _units(subject, order)[units - 1].stop)
    return by_document(read, np.unique(windows.document).tolist())


def _measured(run: RunDirectory, subject: Studied, units: int) -> ResampledLayers:
    """What the run has measured so far, in this command and earlier ones."""

    def shards(experiment: str) -> Iterable[pl.DataFrame]:
        found = run.shards(experiment, units)
        return sweep.summed(found, subject.windows.length) if experiment == sweep.NAME else found

    return read_measured(run, lambda name: _together(subject, partial(shards, name), units), subject.model.depth)


def _all_units(
    run: RunDirectory,
    subject: Studied,
    readings: Sequence[Reading],
    others: Sequence[OwnUnits],
    tell: Progress,
    cluster: Cluster | None,
) -> int:
    """Do the units that lack a shard, here or on a cluster. Returns how many units of the shared pass make up the text."""
    model, order, logits = subject.model, _order(subject), _logits(subject, readings)
    units = _units(subject, order)
    chosen = chosen_form(model, logits)
    _note_kernels(run, kernels(model, *chosen) | ({} if cluster is None else {"engine": RAY}))
    most = len(units) + sum(experiment.units for experiment in others)
    with placed(cluster, model, [*readings, *others], chosen, logits, most) as runner:
        if subject.settings.precision is None:
            done = _shared_pass(run, subject, units, readings, tell, runner)
        else:
            done = _aimed_pass(run, subject, order, readings, tell, chosen[0])
        for experiment in others:
            _own_units(run, model, experiment, tell, runner)
        if cluster is not None:
            run.update(kernels={**run.manifest.kernels, "engine": str(runner)})
        halved = runner.halved
        if subject.settings.precision is not None:
            halved = sum(reading.halved for reading in readings if isinstance(reading, Halving))
        if halved:
            run.update(kernels={**run.manifest.kernels, "halved": f"{halved} pieces, not enough memory"})
    return done


def _shared_pass(
    run: RunDirectory,
    subject: Studied,
    units: Sequence[Unit],
    readings: Sequence[Reading],
    tell: Progress,
    runner: Runner,
) -> int:
    """Run the model once per unit; every reading whose shard is missing takes what it needs from that run.

    Returns how many units make up the text.
    """
    names = [reading.name for reading in readings]

    def task(index: int, missing: Sequence[str]) -> SharedTask:
        return SharedTask(tuple(missing), subject.windows.part(units[index].start, units[index].stop))

    for index in run_units(run, names, len(units) if readings else 0, task, runner):
        tell(_pass_called(names), index + 1, len(units))
    return len(units)


def _aimed_pass(
    run: RunDirectory,
    subject: Studied,
    order: precision.ReadingOrder,
    readings: Sequence[Reading],
    tell: Progress,
    form: Reductions,
) -> int:
    """The same up to the run's precision goal, in this process: which rows a unit needs depends on the units before it.

    Returns how many units were read until the goal was reached.
    """
    units, names = _units(subject, order), [reading.name for reading in readings]
    goal = _goal(run, subject, readings, order)
    by_name = {reading.name: reading for reading in readings}

    def work(index: int, missing: Sequence[str]) -> Mapping[str, pl.DataFrame]:
        windows = order.windows.part(units[index].start, units[index].stop)
        now = {**by_name, goal.aimed.name: goal.reading}
        return read_windows(subject.model, [now[name] for name in missing], windows, form)

    def task(index: int, missing: Sequence[str]) -> tuple[int, Sequence[str]]:
        return index, missing

    done = len(units)
    for index in run_units(run, names, len(units), task, LocalRunner(lambda one: Done(work(*one)))):
        tell(_pass_called(names), index + 1, len(units))
        if _met(run, goal, units[index], work):
            done = index + 1
            break
    tell(_pass_called(names), len(units), len(units))
    precision.record(run, goal, subject.corpus, _text(order.windows.part(0, units[done - 1].stop)))
    return done


def _pass_called(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else "reading the text"


def _met(
    run: RunDirectory,
    goal: precision.PrecisionGoal,
    unit: Unit,
    work: Callable[[int, Sequence[str]], Mapping[str, pl.DataFrame]],
) -> bool:
    """Whether to stop after this unit. Its shard is measured again if it lacks rows that this goal needs."""
    shard = run.shard(goal.aimed.name, unit.index)
    if not goal.measures(shard):
        shard = work(unit.index, [goal.aimed.name])[goal.aimed.name]
        run.write_shard(goal.aimed.name, unit.index, shard)
    return goal.met_with(shard, unit.stop - unit.start)


def _logits(subject: Studied, readings: Sequence[Reading]) -> float:
    """How many logits the shared pass reduces in total."""
    return (
        float(subject.windows.tokens)
        * subject.model.unembedding.vocabulary
        * sum(reading.readouts for reading in readings)
    )


def _note_kernels(run: RunDirectory, now: dict[str, str]) -> None:
    """Record kernels in the manifest; keep earlier ones too if shards may have been made with them."""
    before = run.manifest.kernels
    if before and before != now and not run.complete:
        run.update(earlier_kernels=[*run.manifest.earlier_kernels, before])
    run.update(kernels=now)


def _goal(
    run: RunDirectory, subject: Studied, readings: Sequence[Reading], order: precision.ReadingOrder
) -> precision.PrecisionGoal:
    """The precision that the shared pass should reach, of a study that has one."""
    wanted, aimed = subject.settings.precision, precision.aim_of(readings)
    assert wanted is not None
    assert aimed is not None
    precision.take_up(run, wanted)
    floor = run.manifest.noise_floor
    return precision.PrecisionGoal(wanted, aimed, order, floor if isinstance(floor, float) else None)


def _own_units(run: RunDirectory, model: Model, experiment: OwnUnits, tell: Progress, runner: Runner) -> None:
    """Do the units of an experiment with separate work that lack their shard; those that depend on each other here."""

    def task(unit: int, _missing: Sequence[str]) -> OwnTask:
        return OwnTask(experiment.name, unit)

    if isinstance(experiment, Sequential):
        runner = LocalRunner(Work(model, [experiment], PLAIN).perform)
    for unit in run_units(run, [experiment.name], experiment.units, task, runner):
        if isinstance(experiment, Sequential):
            experiment.take_up(run.shard(experiment.name, unit))
        tell(experiment.name, unit + 1, experiment.units)


def _units(subject: Studied, order: precision.ReadingOrder) -> list[Unit]:
    per_unit = _per_unit(subject)
    if subject.settings.precision is None:
        return work_units(len(subject.windows), per_unit)
    return units_between(order.looks, per_unit)


def _sizes(model: Model) -> Sizes:
    return sizes_for(model.device, model.unembedding.weight.shape[1])


def _per_unit(subject: Studied) -> int:
    tokens = subject.settings.unit_tokens or _sizes(subject.model).tokens
    return max(1, tokens // subject.windows.length)


def _asked(what: str, made: Sequence[Running]) -> bool:
    return what in {experiment.name for experiment in made}


def _settings(subject: Studied, made: Sequence[Running]) -> Settings:
    model, windows = subject.model, subject.windows
    aim = subject.settings.precision
    per_unit = _per_unit(subject)
    settings = Settings(
        model=model.name,
        revision=model.revision,
        weights=model.weight_hash(),
        **model.identity(),
        adapter=None if model.adapter is None else AdapterEntry(**asdict(model.adapter)),
        gguf=model.gguf,
        dtype=model.facts.dtype,
        device=model.device.type,
        attention_backend=model.facts.attention_backend,
        data=printable(subject.corpus.source),  # a file name that is not UTF-8 cannot be stored as it is
        tokens=windows.tokens,
        window=windows.length,
        bos=windows.bos,
        chat=subject.corpus.chat,
        pack=windows.separator,
        cluster=subject.corpus.cluster,
        token_hash=windows.token_hash(),
        windows_per_unit=per_unit,
        experiments={experiment.name: dict(experiment.settings) for experiment in made},
    )
    if aim is None:
        return settings
    aimed = replace(settings, windows_per_unit=None, most_windows_per_unit=per_unit)
    goal = precision.aim_of(made)
    return precision.with_goal(aimed, aim, "" if goal is None else goal.name)


def _facts(subject: Studied) -> dict[str, Any]:
    first = subject.windows.part(0, 1)
    floor = noise_floor(subject.model, first.batch()[0], first.called)
    return {
        "noise_floor": None if floor is None else floor.kl,
        "noise_floor_of": None if floor is None else NoiseFloorEntry(**asdict(floor)),
        "model": ModelEntry(**asdict(subject.model.facts)),
        "unused_tensors": list(subject.model.unused),
        "text": _text(subject.windows),
        "versions": versions(),
    }


def _text(windows: Windows) -> TextEntry:
    packed, clustered = windows.packed, windows.clustered
    return TextEntry(
        documents=windows.documents,
        documents_read=windows.read,
        too_short=windows.too_short,
        skipped=windows.skipped,
        given_up=windows.given_up,
        token_entropy=windows.token_entropy,
        special_tokens=windows.special_tokens,
        packed=None if packed is None else PackedEntry(**packed),
        clustered=None if clustered is None else ClusteredEntry(**clustered),
    )

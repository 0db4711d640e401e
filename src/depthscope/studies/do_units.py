"""The units of a study that lack a shard: a pass over the text that readings share, and the own units of other experiments."""

from collections.abc import Callable, Mapping, Sequence

import polars as pl

from depthscope.engine.reductions import PLAIN, Reductions
from depthscope.experiments.experiment import Halving, OwnUnits, Reading, Sequential
from depthscope.models.model import Model
from depthscope.run.cluster import RAY, Cluster
from depthscope.run.store import RunDirectory
from depthscope.run.units import Done, LocalRunner, Runner, Unit, run_units
from depthscope.studies import precision
from depthscope.studies.entries import text_entry
from depthscope.studies.placement import placed
from depthscope.studies.provenance import chosen_form, kernels
from depthscope.studies.read_windows import read_windows
from depthscope.studies.studied import Progress, Studied
from depthscope.studies.unit_work import OwnTask, SharedTask, Work


def do_units(
    run: RunDirectory,
    subject: Studied,
    readings: Sequence[Reading],
    others: Sequence[OwnUnits],
    tell: Progress,
    cluster: Cluster | None,
) -> int:
    """Do the units that lack a shard, here or on a cluster. Returns how many units of the shared pass make up the text."""
    model, order, logits = subject.model, subject.order, _logits(subject, readings)
    units = subject.units(order)
    chosen = chosen_form(model, logits)
    _note_kernels(run, kernels(model, *chosen) | ({} if cluster is None else {"engine": RAY}))
    most = len(units) + sum(experiment.units for experiment in others)
    with placed(cluster, model, [*readings, *others], chosen, logits, most) as runner:
        if subject.aimed:
            done = _aimed_pass(run, subject, order, readings, tell, chosen[0])
        else:
            done = _shared_pass(run, subject, units, readings, tell, runner)
        for experiment in others:
            _own_units(run, model, experiment, tell, runner)
        if cluster is not None:
            run.update(kernels={**run.manifest.kernels, "engine": str(runner)})
        halved = runner.halved
        if subject.aimed:
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
    units, names = subject.units(order), [reading.name for reading in readings]
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
    precision.record(run, goal, subject.corpus, text_entry(order.windows.part(0, units[done - 1].stop)))
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

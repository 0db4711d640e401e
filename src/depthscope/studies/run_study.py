"""A study: experiments on one model and one text, in one run directory."""

import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial, reduce
from importlib.metadata import version
from operator import or_
from pathlib import Path
from typing import Any

import polars as pl

from depthscope.data.corpus import Corpus
from depthscope.data.windows import Windows, make_windows
from depthscope.engine.baseline import Baseline
from depthscope.engine.reductions import Reductions, reductions_for
from depthscope.engine.sizes import Sizes, sizes_for
from depthscope.errors import DepthscopeError
from depthscope.experiments import neurons, sweep
from depthscope.experiments.experiment import Experiment, OwnUnits, Reading
from depthscope.models.model import Model
from depthscope.models.precision import noise_floor
from depthscope.run.local import Unit, document_units, run_units, work_units
from depthscope.run.store import RunDirectory
from depthscope.stages import find as stages
from depthscope.stages.signals import Measured, read_measured
from depthscope.studies import precision
from depthscope.studies.registry import Subject, make_experiments
from depthscope.studies.settings import StudySettings, experiment_names

VERSIONED = (
    "depthscope",
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "polars",
    "scipy",
    "scikit-learn",
    "ruptures",
)

Progress = Callable[[str, int, int], None]
"""Told (what is being done, units done, units in all). Of documents read the last is as many as will be needed at least."""


def run_study(
    model: Model, corpus: Corpus, out: str | Path, settings: StudySettings, progress: Progress | None = None
) -> RunDirectory:
    """Do what is not done yet of a study in directory `out`, then make its tables.

    Experiments that are asked for later join those that are there. Raises RunMismatchError when `out` was made with other
    settings, what reading text or measuring raises, and why an experiment cannot be done if no other was asked for.
    """
    model.kernels.forget()
    names = experiment_names(settings.experiments)
    tell = progress or (lambda what, done, units: None)
    subject = Subject(model, corpus, _windows(model, corpus, settings, tell), settings)
    readings, others, not_done = make_experiments(subject)
    made: list[Experiment] = [*readings, *others]
    asked = _settings(subject, made)
    if settings.precision is not None:
        if sweep.NAME in not_done:
            raise DepthscopeError(f"--precision is a goal for the sweep, which cannot be done: {not_done[sweep.NAME]}")
        asked = precision.comparable(asked, out, names)
    with RunDirectory.writing(out, asked, _facts(subject)) as run:
        earlier = {what: why for what, why in run.manifest.get("not_done", {}).items() if not _asked(what, made)}
        run.update(not_done={**earlier, **not_done})
        units_done = _shared_pass(run, subject, readings, tell)
        for experiment in others:
            shards = run_units(run, [experiment.name], experiment.units, partial(_own_unit, model, experiment))
            for unit in shards:
                tell(experiment.name, unit + 1, experiment.units)
        for experiment in made:
            units = experiment.units if isinstance(experiment, OwnUnits) else units_done
            tables = experiment.tables(run.shards(experiment.name, units))
            for name, table in tables.items():
                run.write_table(name, table)
            if experiment.name == neurons.NAME:
                run.update(neurons=neurons.counted(model.facts, tables["neuron_counts"]))
        if halved := sum(reading.meter.halved for reading in readings if isinstance(reading, sweep.Sweep)):
            run.update(kernels={**run.manifest["kernels"], "halved": f"{halved} pieces, for want of memory"})
        run.finish([experiment.name for experiment in made])
        if stages.NAME in names:
            run.write_json(stages.NAME, stages.find_stages(_measured(run, subject, units_done)))
    return run


def _windows(model: Model, corpus: Corpus, settings: StudySettings, tell: Progress) -> Windows:
    """The text in the order it is read; with a precision as the goal, the most of it that may be."""
    if settings.precision is not None:
        corpus = precision.longest_text(corpus)
    windows = make_windows(corpus, model, length=settings.window, bos=settings.bos, tell=tell)
    return windows if settings.precision is None else windows.in_random_order(precision.ORDER_SEED)


def _measured(run: RunDirectory, subject: Subject, units: int) -> Measured:
    """What the run has measured so far, in this and in earlier commands on it."""

    def shards(experiment: str) -> Iterable[pl.DataFrame]:
        found = run.shards(experiment, units)
        return sweep.summed(found, subject.windows.length) if experiment == sweep.NAME else found

    return read_measured(run, shards, subject.model.depth)


def _shared_pass(run: RunDirectory, subject: Subject, readings: Sequence[Reading], tell: Progress) -> int:
    """One run of the model per unit, from which every reading that misses its shard takes what it needs.

    Returns how many units make up the text: all of them, or those until the sweep was precise enough.
    """
    units = _units(subject)
    by_name = {reading.name: reading for reading in readings}
    what = next(iter(by_name)) if len(by_name) == 1 else "reading the text"
    sizes = _sizes(subject.model)
    form, because = reductions_for(subject.model.device, _logits(subject, readings), sizes.reductions)
    _note_kernels(run, _kernels(subject.model, form, because))

    def work(index: int, missing: Sequence[str]) -> Mapping[str, pl.DataFrame]:
        windows = subject.windows.part(units[index].start, units[index].stop)
        with subject.model.measuring():
            keep = reduce(or_, (by_name[name].keep for name in missing))
            baseline = Baseline(subject.model, *windows.batch(), keep=keep, reductions=form)
            return {name: by_name[name].read(baseline, windows) for name in missing}

    goal = _goal(run, subject, readings)
    swept = run.shards(sweep.NAME, len(units))
    done = len(units)
    for index in run_units(run, list(by_name), len(units) if readings else 0, work):
        tell(what, index + 1, len(units))
        if goal is not None and goal.met_with(next(swept)):
            done = index + 1
            break
    if goal is not None:
        tell(what, len(units), len(units))
        precision.record(run, goal, subject.corpus, _text(subject.windows.part(0, units[done - 1].stop)))
    return done


def _logits(subject: Subject, readings: Sequence[Reading]) -> float:
    """How many logits the shared pass reduces in all."""
    return float(subject.windows.tokens) * subject.model.head.vocabulary * sum(reading.readouts for reading in readings)


def _note_kernels(run: RunDirectory, now: dict[str, str]) -> None:
    """In the manifest; those of before too, where shards may have been made with others."""
    before = run.manifest.get("kernels", now)
    if before != now and not run.complete:
        run.update(earlier_kernels=[*run.manifest.get("earlier_kernels", []), before])
    run.update(kernels=now)


def _kernels(model: Model, form: Reductions, because: str) -> dict[str, str]:
    """How the model's products and the sums over the vocabulary are computed: they are the same up to rounding."""
    products = "packed" if not model.kernels.note else f"plain: {model.kernels.note}"
    if model.device.type != "cpu":
        products = "torch's own"
    elif model.facts.streamed:
        products = "packed outside the blocks, which are streamed"
    return {
        "products": products,
        "sums": f"{form.name}{because and ': '}{because}",
    }


def _goal(run: RunDirectory, subject: Subject, readings: Sequence[Reading]) -> precision.PrecisionGoal | None:
    """The precision the shared pass is to reach, None where there is no such goal."""
    wanted = subject.settings.precision
    if wanted is None:
        return None
    precision.take_up(run, wanted)
    swept = next(reading for reading in readings if isinstance(reading, sweep.Sweep))
    return precision.PrecisionGoal(wanted, swept, subject.windows, run.manifest["noise_floor"])


def _own_unit(model: Model, experiment: OwnUnits, unit: int, _missing: Sequence[str]) -> Mapping[str, pl.DataFrame]:
    with model.measuring():
        return {experiment.name: experiment.work(unit)}


def _units(subject: Subject) -> list[Unit]:
    per_unit = _per_unit(subject)
    if subject.settings.precision is None:
        return work_units(len(subject.windows), per_unit)
    return document_units([count for _, count in subject.windows.per_document()], per_unit)


def _sizes(model: Model) -> Sizes:
    return sizes_for(model.device, model.head.weight.shape[1])


def _per_unit(subject: Subject) -> int:
    tokens = subject.settings.unit_tokens or _sizes(subject.model).tokens
    return max(1, tokens // subject.windows.length)


def _asked(what: str, made: Sequence[Experiment]) -> bool:
    return what in {experiment.name for experiment in made}


def _settings(subject: Subject, made: Sequence[Experiment]) -> dict[str, Any]:
    model, windows = subject.model, subject.windows
    aim = subject.settings.precision
    return {
        "model": model.name,
        "revision": model.revision,
        "weights": model.weight_hash(),
        **({} if model.adapter is None else {"adapter": asdict(model.adapter)}),
        "dtype": model.facts.dtype,
        "device": model.device.type,
        "attention_backend": model.facts.attention_backend,
        "data": subject.corpus.source,
        **({"tokens": windows.tokens} if aim is None else precision.aims(aim, windows)),
        "window": windows.length,
        "bos": windows.bos,
        **({"chat": True} if subject.corpus.chat else {}),
        **({} if windows.owner is None else {"pack": windows.separator}),
        "token_hash": windows.token_hash(),
        "windows_per_unit" if aim is None else "most_windows_per_unit": _per_unit(subject),
        "experiments": {experiment.name: dict(experiment.settings) for experiment in made},
    }


def _facts(subject: Subject) -> dict[str, Any]:
    floor = noise_floor(subject.model, subject.windows.part(0, 1).batch()[0])
    return {
        "noise_floor": None if floor is None else floor.kl,
        "noise_floor_of": None if floor is None else asdict(floor),
        "model": asdict(subject.model.facts),
        "unused_tensors": list(subject.model.unused),
        "text": _text(subject.windows),
        "versions": versions(),
    }


def _text(windows: Windows) -> dict[str, Any]:
    return {
        "documents": windows.documents,
        "documents_read": windows.read,
        "too_short": windows.too_short,
        "skipped": windows.skipped,
        "given_up": windows.given_up,
        "token_entropy": windows.token_entropy,
        "special_tokens": windows.special_tokens,
        **({} if (packed := windows.packed) is None else {"packed": packed}),
    }


def versions() -> dict[str, str]:
    """Versions of what decides numbers."""
    return {"python": platform.python_version(), **{name: version(name) for name in VERSIONED}}

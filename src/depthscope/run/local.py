"""The local runner: work units one after the other, skipping those whose shard is there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl

from depthscope.run.store import RunDirectory


@dataclass(frozen=True, slots=True)
class Unit:
    """A work unit: windows `start … stop-1` of the text. It ends in one shard."""

    index: int
    start: int
    stop: int


def work_units(windows: int, per_unit: int) -> list[Unit]:
    """All windows in units of `per_unit`."""
    starts = range(0, windows, per_unit)
    return [Unit(index, start, min(start + per_unit, windows)) for index, start in enumerate(starts)]


def run_units(
    run: RunDirectory,
    experiment: str,
    units: Sequence[Unit],
    work: Callable[[Unit], pl.DataFrame],
    done: Callable[[Unit, bool], None] = lambda unit, fresh: None,
) -> None:
    """Do every unit that has no shard yet. `done` is told of each, and whether it was computed now."""
    for unit in units:
        fresh = not run.shard_path(experiment, unit.index).exists()
        if fresh:
            run.write_shard(experiment, unit.index, work(unit))
        done(unit, fresh)

"""Work units: how a text is divided into them, who computes them, and how each is stored as soon as it is done.

A runner computes tasks: `LocalRunner` one after the other in this process, `ray_runner` several at once in others. What a task
is, is up to those who submit and perform it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Protocol

import polars as pl

from depthscope.models.memory import require_headroom
from depthscope.run.store import RunDirectory


@dataclass(frozen=True, slots=True)
class Unit:
    """A work unit of the shared pass: windows `start … stop-1` of the text. It produces one shard per experiment."""

    index: int
    start: int
    stop: int


def work_units(windows: int, per_unit: int) -> list[Unit]:
    """All windows in units of `per_unit`."""
    starts = range(0, windows, per_unit)
    return [Unit(index, start, min(start + per_unit, windows)) for index, start in enumerate(starts)]


def units_between(stops: Sequence[int], per_unit: int) -> list[Unit]:
    """Units of at most `per_unit` windows, of nearly equal size between two stops, so that a unit ends at every stop."""
    sizes: list[int] = []
    for before, stop in pairwise([0, *stops]):
        parts = -(-(stop - before) // per_unit)
        sizes += [(stop - before + part) // parts for part in range(parts)]
    ends = list(accumulate(sizes))
    return [Unit(index, end - size, end) for index, (size, end) in enumerate(zip(sizes, ends, strict=True))]


@dataclass(frozen=True, slots=True)
class Done:
    """What a task gave: shards by experiment, and how often a piece of it did not fit into memory and was halved."""

    shards: Mapping[str, pl.DataFrame]
    halved: int = 0


class Runner(Protocol):
    """Computes the tasks of work units."""

    halved: int
    """How often pieces of tasks were halved so far."""

    @property
    def room(self) -> int:
        """How many tasks can be submitted before the next result is taken."""
        ...

    def ahead(self, in_order: bool) -> int | None:
        """How many units after the first unfinished one may be looked at; None for all. `in_order`: results after that unit
        have to wait for it."""
        ...

    def submit(self, unit: int, task: Any) -> None:
        """Take a unit's task."""

    def next(self) -> tuple[int, Mapping[str, pl.DataFrame]]:
        """A unit that was submitted, and its shards by experiment. Raises what its computation raised."""
        ...


class LocalRunner:
    """Computes one unit after the other, in this process, when its result is asked for."""

    def __init__(self, perform: Callable[[Any], Done]) -> None:
        self.perform = perform
        self.halved = 0
        self._submitted: list[tuple[int, Any]] = []

    @property
    def room(self) -> int:
        """One, or none until the result is taken."""
        return 1 - len(self._submitted)

    def ahead(self, in_order: bool) -> int:
        """None but the first unfinished unit is looked at."""
        return 1

    def submit(self, unit: int, task: Any) -> None:
        """Keep a unit's task."""
        self._submitted.append((unit, task))

    def next(self) -> tuple[int, Mapping[str, pl.DataFrame]]:
        """Compute the task. Raises MemoryShortError before if too little memory is left: earlier units are stored."""
        unit, task = self._submitted.pop()
        require_headroom(f"work unit {unit}")
        done = self.perform(task)
        self.halved += done.halved
        return unit, done.shards


def run_units(
    run: RunDirectory,
    experiments: Sequence[str],
    units: int,
    task: Callable[[int, Sequence[str]], Any],
    runner: Runner,
    *,
    in_order: bool = False,
) -> Iterator[int]:
    """Process units `0 … units-1` where experiments still lack an intact shard, and yield each when all up to it are stored.

    `task(unit, missing)` is what the runner computes for the experiments that lack their shard. Shards are stored as they come;
    `in_order` only once those of all earlier units are, for callers that may stop before the last unit: then nothing is stored
    of units after the last one yielded. This process is the only one that writes.
    """
    looked_at, under_way, waiting = 0, set[int](), dict[int, Mapping[str, pl.DataFrame]]()
    for unit in range(units):
        while True:
            ahead = runner.ahead(in_order)
            last = units if ahead is None else min(units, unit + ahead)
            while looked_at < last and runner.room > 0:
                if missing := [name for name in experiments if not run.has_shard(name, looked_at)]:
                    runner.submit(looked_at, task(looked_at, missing))
                    under_way.add(looked_at)
                looked_at += 1
            if unit not in under_way:
                break
            found, shards = runner.next()
            under_way.remove(found)
            if in_order and found != unit:
                waiting[found] = shards
            else:
                _write(run, found, shards)
        _write(run, unit, waiting.pop(unit, {}))
        yield unit


def _write(run: RunDirectory, unit: int, shards: Mapping[str, pl.DataFrame]) -> None:
    for name, shard in shards.items():
        run.write_shard(name, unit, shard)

"""Work units, processed one after the other on this machine, each stored as soon as it is done."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

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


def run_units(
    run: RunDirectory,
    experiments: Sequence[str],
    units: int,
    work: Callable[[int, Sequence[str]], Mapping[str, pl.DataFrame]],
) -> Iterator[int]:
    """Process units `0 … units-1` where experiments still lack an intact shard, and yield each when it is done.

    `work(unit, missing)` returns the shards of the experiments that lack theirs. Raises MemoryShortError before a unit for
    which too little memory is left: those before it are stored.
    """
    for unit in range(units):
        missing = [name for name in experiments if not run.has_shard(name, unit)]
        if missing:
            require_headroom(f"work unit {unit} of {units}")
            for name, shard in work(unit, missing).items():
                run.write_shard(name, unit, shard)
        yield unit

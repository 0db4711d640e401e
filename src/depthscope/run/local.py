"""Work units, done one after the other on this machine, each stored as soon as it is done."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

import polars as pl

from depthscope.run.store import RunDirectory


@dataclass(frozen=True, slots=True)
class Unit:
    """A work unit of the shared pass: windows `start … stop-1` of the text. It ends in one shard per experiment."""

    index: int
    start: int
    stop: int


def work_units(windows: int, per_unit: int) -> list[Unit]:
    """All windows in units of `per_unit`."""
    starts = range(0, windows, per_unit)
    return [Unit(index, start, min(start + per_unit, windows)) for index, start in enumerate(starts)]


def document_units(windows: Sequence[int], per_unit: int) -> list[Unit]:
    """Units of whole documents, of which the i-th has `windows[i]` windows, as many as fit into `per_unit` windows.

    A document that is longer is divided into units of its own, as equal as can be, so that some unit ends wherever one does.
    """
    sizes: list[int] = []
    room = 0
    for count in windows:
        if count <= room:
            sizes[-1] += count
            room -= count
        elif count <= per_unit:
            sizes.append(count)
            room = per_unit - count
        else:
            parts = -(-count // per_unit)
            sizes += [(count + part) // parts for part in range(parts)]
            room = 0
    stops = list(accumulate(sizes))
    return [Unit(index, stop - size, stop) for index, (size, stop) in enumerate(zip(sizes, stops, strict=True))]


def run_units(
    run: RunDirectory,
    experiments: Sequence[str],
    units: int,
    work: Callable[[int, Sequence[str]], Mapping[str, pl.DataFrame]],
) -> Iterator[int]:
    """Do units `0 … units-1` as far as experiments have no shard of them yet, and yield each when it is done.

    `work(unit, missing)` gives the shards of the experiments that miss theirs.
    """
    for unit in range(units):
        missing = [name for name in experiments if not run.shard_path(name, unit).exists()]
        if missing:
            for name, shard in work(unit, missing).items():
                run.write_shard(name, unit, shard)
        yield unit

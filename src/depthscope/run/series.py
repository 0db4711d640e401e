"""The directory of a series: several studies, each a run directory of its own, and what they are. Imports no torch.

SERIES/series.json      the studies in order, what was asked for, which are finished and why others failed
SERIES/runs/NAME/       the run directory of each
SERIES/tables/          tables made from several runs
SERIES/index.html       the page
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl

from depthscope.errors import RunError
from depthscope.run import layout
from depthscope.run.files import unfinished, write_file
from depthscope.run.frames import parquet
from depthscope.run.inside import inside
from depthscope.run.layout import LOCK
from depthscope.run.lock import locked
from depthscope.run.store import MANIFEST, RunDirectory
from depthscope.schema import seal
from depthscope.schema.seal import Seal
from depthscope.schema.series import SERIES, MemberEntry, SeriesEntry
from depthscope.schema.stored import sealed_json

Member = tuple[MemberEntry, RunDirectory]
FEWEST_CHECKPOINTS = 2
SERIES_FILE, RUNS, PAGE = "series.json", "runs", "index.html"
OWN = (SERIES_FILE, RUNS, layout.TABLES, PAGE, LOCK)


class SeriesDirectory:
    """A series on disk. Open it with `SeriesDirectory.writing` (locked) or `SeriesDirectory.reading`."""

    def __init__(self, path: Path, entry: SeriesEntry) -> None:
        self.path = path
        self.entry = entry

    @classmethod
    def reading(cls, path: str | Path) -> "SeriesDirectory":
        """Open an existing series. Raises RunError if `path` has none."""
        path = Path(path)
        if not is_series(path):
            raise RunError(f"{path} holds no series of studies: expected a directory with {SERIES_FILE}")
        return cls(path, SeriesEntry.read(inside(path, SERIES_FILE)))

    @classmethod
    def check_place(cls, path: str | Path) -> None:
        """Raise RunError if `path` is a file, a run, or a directory with other files than those of a series."""
        path = Path(path)
        if path.is_dir():
            if (path / MANIFEST).exists():
                raise RunError(f"{path} is the directory of one study: a series of them needs another --out")
            own = {*OWN, *(unfinished(Path(name)).name for name in OWN)}
            if strangers := sorted({entry.name for entry in path.iterdir()} - own):
                raise RunError(
                    f"{path} holds other files ({', '.join(strangers[:3])}): expected a new or empty directory, or one with a "
                    "series of studies"
                )
        elif path.exists():
            raise RunError(f"{path} is a file: expected a new or empty directory, or one with a series of studies")

    @classmethod
    @contextmanager
    def writing(cls, path: str | Path, members: Sequence[MemberEntry]) -> Iterator["SeriesDirectory"]:
        """Create a series or go on with the one at `path`, as its only writer. It has these members then.

        What is known of a member with the same request is kept. Members that are no longer asked for leave the series, and
        their run directories stay.
        """
        path = Path(path)
        cls.check_place(path)
        with locked(path):
            there = {one.name: one for one in cls.reading(path).entry.members} if is_series(path) else {}
            series = cls(path, SeriesEntry(members=[_kept(one, there.get(one.name)) for one in members]))
            series.store()
            yield series

    @property
    def members(self) -> list[MemberEntry]:
        """The studies in order."""
        return self.entry.members

    def run_path(self, member: MemberEntry) -> Path:
        """The run directory of a study, whether or not it exists."""
        return self.path / RUNS / member.name

    def runs(self) -> list[Member]:
        """The studies that have begun, in order. Raises RunError for a damaged one."""
        there = [one for one in self.members if (self.run_path(one) / MANIFEST).exists()]
        return [(one, RunDirectory.reading(inside(self.path, RUNS, one.name))) for one in there]

    def update(self, name: str, **entries: Any) -> None:
        """Set fields of a member and store the series."""
        members = [replace(one, **entries) if one.name == name else one for one in self.members]
        self.entry = replace(self.entry, members=members)
        self.store()

    def store(self) -> None:
        """Write series.json."""
        write_file(self.path / SERIES_FILE, sealed_json(self.entry.to_json(), Seal(kind=SERIES)))

    def write_table(self, name: str, frame: pl.DataFrame) -> None:
        """Store a table made from several runs."""
        write_file(layout.table_path(self.path, name), parquet(frame, Seal(kind=seal.TABLE, name=name)))


def trajectories(series: SeriesDirectory) -> Iterator[list[Member]]:
    """The finished checkpoints of each training run on each text, in the order of their steps; two at least.

    Checkpoints without a step in their names keep the order of the series.
    """

    def of(member: Member) -> str:
        asked = {key: value for key, value in member[0].request.items() if key not in ("model", "revision")}
        return json.dumps([member[0].trained, asked], sort_keys=True)

    there = [(entry, run) for entry, run in series.runs() if entry.finished and entry.trained is not None]
    for _, members in groupby(sorted(there, key=of), key=of):
        found = list(members)
        if all(entry.step is not None for entry, _ in found):
            found.sort(key=lambda member: member[0].step or 0)
        if len(found) >= FEWEST_CHECKPOINTS:
            yield found


def is_series(path: Path) -> bool:
    """Whether a directory holds a series of studies."""
    return (path / SERIES_FILE).exists()


def _kept(asked: MemberEntry, known: MemberEntry | None) -> MemberEntry:
    if known is None or known.request != asked.request:
        return asked
    return replace(asked, finished=known.finished, sources=known.sources, failed=known.failed)

"""The run directory: manifest, shards and tables, each file complete or absent, and verified whenever it is read.

What is where is in `depthscope.run.layout`, how files are written in `depthscope.run.files`. Every file has a seal: what it is,
the fingerprint of the settings it was made with, and its SHA-256 (`depthscope.schema.seal`). A shard that fails is computed
again, tables and stages are made again from shards, and without run.json the same command resumes from intact shards. Not
guaranteed: that several files change together (until the run ends, a table may be older than its shards), or anything on file
systems whose rename is not atomic. Imports no torch.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from depthscope.errors import DamagedError, DamageWarning, RunError
from depthscope.run import layout, recovery, resumed
from depthscope.run.bounded_tables import AGAIN, frame_of, table_of
from depthscope.run.files import unfinished, write_file
from depthscope.run.frames import parquet, sealed_bytes
from depthscope.run.inside import inside, table_names
from depthscope.run.layout import LOCK, MANIFEST, STAGES
from depthscope.run.lock import locked
from depthscope.schema import seal
from depthscope.schema.found_stages import Stages
from depthscope.schema.manifest import COMPLETE, RUNNING, Manifest, Settings
from depthscope.schema.seal import Seal
from depthscope.schema.stored import sealed_json
from depthscope.untrusted import read_json

__all__ = ["COMPLETE", "MANIFEST", "STAGES", "RunDirectory"]


class RunDirectory:
    """One run on disk. Open it with `RunDirectory.writing` (locked, creates or resumes) or `RunDirectory.reading`."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self._tables: set[str] = set()
        """Names of the tables that were written since the run was opened."""

    @classmethod
    def reading(cls, path: str | Path) -> "RunDirectory":
        """Open an existing run. Raises RunError if `path` has no readable run."""
        path = Path(path)
        file = path / MANIFEST
        if not file.exists():
            lost = f". {recovery.LOST}" if recovery.has_sealed(path) else f": expected a directory with {MANIFEST}"
            raise RunError(f"{path} holds no run{lost}")
        return cls(path, Manifest.read(inside(path, MANIFEST)))

    @classmethod
    def check_place(cls, path: str | Path) -> None:
        """Raise RunError if `path` is a file, or a directory with other files or a run that cannot be resumed."""
        path = Path(path)
        if (path / MANIFEST).exists():
            try:
                cls.reading(path)
            except DamagedError as error:
                if not recovery.has_sealed(path):
                    reason = str(error).removesuffix(f". {Manifest.remedy}")
                    raise DamagedError(f"{reason}. {recovery.NOTHING}") from error
        elif path.is_dir():
            names = [entry.name for entry in path.iterdir()]
            own = (LOCK, unfinished(Path(MANIFEST)).name)
            if (strangers := [name for name in names if name not in own]) and not recovery.has_sealed(path):
                raise RunError(
                    f"{path} holds other files ({', '.join(sorted(strangers)[:3])}): expected a new or empty directory"
                )
        elif path.exists():
            raise RunError(f"{path} is a file: expected a new or empty directory, or one with a run")

    @classmethod
    @contextmanager
    def writing(cls, path: str | Path, settings: Settings, facts: dict[str, Any]) -> Iterator["RunDirectory"]:
        """Create a run or resume the one at `path`, as its only writer.

        `settings` determine what is computed: resuming with others raises RunMismatchError. When a run is resumed, new
        experiments (`settings.experiments`, by name) are added to those it has. If run.json is damaged or lost, the run is
        resumed from shards that were made with the same settings, with a DamageWarning. `facts` are fields of the manifest
        (versions and the like). Raises RunError if the directory cannot be written, holds other files, or has a writer.
        """
        path = Path(path)
        settings = Settings.from_json(settings.to_json())  # as read from a file: lists instead of tuples
        cls.check_place(path)
        with locked(path):
            run = cls._there(path, settings)
            if run is None:
                run = cls(path, Manifest(settings=settings))
            else:
                resumed.require_same(path, run.manifest, settings, facts)
                facts = resumed.as_first_named(run.manifest, facts)
                experiments = {**run.settings.experiments, **settings.experiments}
                run.manifest = replace(
                    run.manifest,
                    settings=replace(run.settings, experiments=experiments),
                    earlier_versions=resumed.earlier_versions(run.manifest, facts),
                )
            for leftover in layout.leftovers(path, run.manifest):
                leftover.unlink(missing_ok=True)
            run.update(status=RUNNING, **facts)
            yield run

    @classmethod
    def _there(cls, path: Path, settings: Settings) -> "RunDirectory | None":
        """The run at `path`; None for a new one, and for one that lost its run.json and goes on with these settings."""
        if (path / MANIFEST).exists():
            try:
                return cls.reading(path)
            except DamagedError as error:
                reason = str(error).removesuffix(f". {Manifest.remedy}")
        else:
            cls.check_place(path)
            if not recovery.has_sealed(path):
                return None
            reason = f"{path / MANIFEST} is missing"
        stored = recovery.require_same(path, settings, reason)
        message = f"{reason}: the run is resumed from {stored} files that were made with the same settings"
        warnings.warn(message, DamageWarning, stacklevel=2)
        return None

    @property
    def settings(self) -> Settings:
        """What determines the numbers of this run."""
        return self.manifest.settings

    @property
    def stages(self) -> Stages | None:
        """The stages that were found; None if they were not searched for. Raises RunError if the file is damaged."""
        file = self.path / STAGES
        if not file.exists():
            return None
        found, own = Stages.read_sealed(inside(self.path, STAGES))
        self._require_own(file, own, self.seal(seal.STAGES), Stages.remedy)
        return found

    def write_stages(self, found: Stages) -> None:
        """Store the stages that were found."""
        write_file(self.path / STAGES, sealed_json(found.to_json(), self.seal(seal.STAGES)))
        self.update(stages=True)

    def finish(self, experiments: Sequence[str], units: Mapping[str, int] | None = None) -> None:
        """Record that these experiments have all their tables; the run is complete when all its experiments do.

        `units` is how many work units each has, which `depthscope check` compares with the shards that are there.
        """
        finished = sorted({*self.manifest.finished, *experiments})
        complete = set(finished) >= set(self.settings.experiments)
        self.update(
            finished=finished,
            status=COMPLETE if complete else RUNNING,
            units=dict(sorted({**self.manifest.units, **(units or {})}.items())),
            tables=sorted({*self.manifest.tables, *self._tables}),
        )

    @property
    def complete(self) -> bool:
        """Whether the run is complete."""
        return self.manifest.complete

    def update(self, **entries: Any) -> None:
        """Set fields of the manifest. Keys already in the file keep their order."""
        self.manifest = replace(self.manifest, **entries)
        file = self.path / MANIFEST
        try:
            there = read_json(file, RunError) if file.exists() else {}
        except RunError:  # damaged, and written again
            there = {}
        write_file(file, sealed_json(_in_order_of(there, self.manifest.to_json()), Seal(kind=seal.RUN)))

    def seal(self, kind: str, **about: Any) -> Seal:
        """The seal of a file of this run, made with the settings of its experiment or with those that all share."""
        return Seal(kind=kind, settings=self.settings.fingerprint(about.get("experiment")), **about)

    def shard_path(self, experiment: str, unit: int) -> Path:
        """The path of a work unit's shard, whether or not it exists."""
        return layout.shard_path(self.path, experiment, unit)

    def write_shard(self, experiment: str, unit: int, frame: pl.DataFrame) -> None:
        """Store a work unit's result."""
        own = self.seal(seal.SHARD, experiment=experiment, unit=unit)
        write_file(self.shard_path(experiment, unit), parquet(frame, own))

    def has_shard(self, experiment: str, unit: int) -> bool:
        """Whether a work unit's shard is there and intact. If it is there and is not, a DamageWarning says so."""
        if not self.shard_path(experiment, unit).exists():
            return False
        try:
            self.shard(experiment, unit)
        except DamagedError as error:
            reason = str(error).removesuffix(f". {AGAIN}")
            warnings.warn(f"{reason}. This unit is computed again", DamageWarning, stacklevel=2)
            return False
        return True

    def shards(self, experiment: str, units: int) -> Iterator[pl.DataFrame]:
        """The shards of units `0 … units-1`, in order. Raises RunError for a missing or damaged shard."""
        for unit in range(units):
            yield self.shard(experiment, unit)

    def shard(self, experiment: str, unit: int) -> pl.DataFrame:
        """The shard of a work unit. Raises RunError if it is missing, DamagedError if it is not what was written."""
        file = self.shard_path(experiment, unit)
        if not file.exists():
            raise RunError(f"{file} is missing: run the study again to complete it")
        content, own = sealed_bytes(file, AGAIN)
        self._require_own(file, own, self.seal(seal.SHARD, experiment=experiment, unit=unit))
        return frame_of(content, file)

    def write_table(self, name: str, frame: pl.DataFrame, experiment: str | None = None) -> None:
        """Store a table, made from an experiment's shards or from several's."""
        own = self.seal(seal.TABLE, name=name, experiment=experiment)
        write_file(layout.table_path(self.path, name), parquet(frame, own))
        self._tables.add(name)

    def table(self, name: str) -> pl.DataFrame:
        """A table by its name. Raises RunError, listing the available tables, if there is none of that name, or if it is
        none that a run could have (`run.bounded_tables`)."""
        if name not in self.tables():
            raise RunError(f"{self.path} has no table {name!r}: it has {', '.join(self.tables()) or 'none yet'}")
        file = inside(self.path, *layout.table_path(Path(), name).parts)
        content, own = sealed_bytes(file, AGAIN)
        experiment = None if own is None else own.experiment
        self._require_own(file, own, self.seal(seal.TABLE, name=name, experiment=experiment))
        return table_of(content, file, name, self.manifest)

    def tables(self) -> list[str]:
        """Names of the available tables."""
        return table_names(self.path)

    def _require_own(self, file: Path, found: Seal | None, expected: Seal, remedy: str = AGAIN) -> None:
        """Raise DamagedError for a file that is another one than expected, or that has lost its seal."""
        if found is None:
            if not self.manifest.unsealed:
                raise DamagedError(f"{file} is damaged: it has no checksum. {remedy}")
        elif replace(found, settings=None) != replace(expected, settings=None):
            raise DamagedError(f"{file} is not the file that belongs here: expected {expected}, got {found}. {remedy}")
        elif found != expected:
            raise DamagedError(f"{file} was made with other settings than this run's. {remedy}")


def _in_order_of(there: Any, content: Any) -> Any:
    """JSON content with the keys of `there` first, in their order."""
    if not (isinstance(there, dict) and isinstance(content, dict)):
        return content
    keys = dict.fromkeys([*(key for key in there if key in content), *content])
    return {key: _in_order_of(there.get(key), content[key]) for key in keys}

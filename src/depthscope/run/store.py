"""The run directory: manifest, shards and tables, each file complete or absent. Imports no torch.

    RUN/run.json                         settings, facts about model and text, versions, status
    RUN/shards/<experiment>/00017.parquet  one per work unit
    RUN/tables/<experiment>.parquet      made from the shards
    RUN/stages.json                      the stages found, and each signature's verdict

Every file is written under a temporary name, flushed to disk and renamed, so a reader or a resumed run sees a complete file
or none, whenever the process is killed. Not guaranteed: that several files change together (until the run ends, a table may
be older than its shards), or anything on file systems whose rename is not atomic.
"""

import json
import os
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import polars as pl

from depthscope.errors import RunError, RunMismatchError
from depthscope.schema.found_stages import Stages
from depthscope.schema.manifest import COMPLETE, RUNNING, Manifest, Settings

MANIFEST, STAGES = "run.json", "stages.json"


class RunDirectory:
    """One run on disk. Open it with `RunDirectory.writing` (locked, creates or resumes) or `RunDirectory.reading`."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def reading(cls, path: str | Path) -> "RunDirectory":
        """Open an existing run. Raises RunError if `path` has no readable run."""
        path = Path(path)
        file = path / MANIFEST
        if not file.exists():
            raise RunError(f"{path} holds no run: expected a directory with {MANIFEST}")
        return cls(path, Manifest.read(file))

    @classmethod
    def check_place(cls, path: str | Path) -> None:
        """Raise RunError if `path` is a file, or a directory with other files or an unreadable run."""
        path = Path(path)
        if (path / MANIFEST).exists():
            cls.reading(path)
        elif path.is_dir():
            names = [entry.name for entry in path.iterdir()]
            if strangers := [name for name in names if name != LOCK and not name.endswith(UNFINISHED)]:
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
        experiments (`settings.experiments`, by name) are added to those it has. `facts` are fields of the manifest (versions
        and the like). Raises RunError if the directory cannot be written, holds other files, or has a writer.
        """
        path = Path(path)
        settings = Settings.from_json(settings.to_json())  # as read from a file: lists instead of tuples
        with _locked(path):
            if (path / MANIFEST).exists():
                run = cls.reading(path)
                _require_same(path, run.settings.to_json(), settings.to_json())
                experiments = {**run.settings.experiments, **settings.experiments}
                run.manifest = replace(
                    run.manifest,
                    settings=replace(run.settings, experiments=experiments),
                    earlier_versions=_earlier_versions(run.manifest, facts),
                )
            else:
                cls.check_place(path)
                run = cls(path, Manifest(settings=settings))
            for leftover in path.rglob(f"*{UNFINISHED}"):
                leftover.unlink()
            run.update(status=RUNNING, **facts)
            yield run

    @property
    def settings(self) -> Settings:
        """What determines the numbers of this run."""
        return self.manifest.settings

    @property
    def stages(self) -> Stages | None:
        """The stages that were found; None if they were not searched for. Raises RunError if the file is damaged."""
        file = self.path / STAGES
        return Stages.read(file) if file.exists() else None

    def write_stages(self, found: Stages) -> None:
        """Store the stages that were found."""
        _write_json(self.path / STAGES, found.to_json())

    def finish(self, experiments: Sequence[str]) -> None:
        """Record that these experiments have all their tables; the run is complete when all its experiments do."""
        finished = sorted({*self.manifest.finished, *experiments})
        complete = set(finished) >= set(self.settings.experiments)
        self.update(finished=finished, status=COMPLETE if complete else RUNNING)

    @property
    def complete(self) -> bool:
        """Whether the run is complete."""
        return self.manifest.complete

    def update(self, **entries: Any) -> None:
        """Set fields of the manifest. Keys already in the file keep their order."""
        self.manifest = replace(self.manifest, **entries)
        file = self.path / MANIFEST
        there = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        _write_json(file, _in_order_of(there, self.manifest.to_json()))

    def shard_path(self, experiment: str, unit: int) -> Path:
        """The path of a work unit's shard, whether or not it exists."""
        return self.path / "shards" / experiment / f"{unit:05d}.parquet"

    def write_shard(self, experiment: str, unit: int, frame: pl.DataFrame) -> None:
        """Store a work unit's result."""
        _write_parquet(self.shard_path(experiment, unit), frame)

    def shards(self, experiment: str, units: int) -> Iterator[pl.DataFrame]:
        """The shards of units `0 … units-1`, in order. Raises RunError for a missing or damaged shard."""
        for unit in range(units):
            yield _read_parquet(self.shard_path(experiment, unit))

    def write_table(self, name: str, frame: pl.DataFrame) -> None:
        """Store a table."""
        _write_parquet(self.path / "tables" / f"{name}.parquet", frame)

    def table(self, name: str) -> pl.DataFrame:
        """A table by its name. Raises RunError, listing the available tables, if there is none of that name."""
        file = self.path / "tables" / f"{name}.parquet"
        if not file.exists():
            raise RunError(f"{self.path} has no table {name!r}: it has {', '.join(self.tables()) or 'none yet'}")
        return _read_parquet(file)

    def tables(self) -> list[str]:
        """Names of the available tables."""
        return sorted(file.stem for file in (self.path / "tables").glob("*.parquet"))


LOCK = ".lock"
UNFINISHED = ".unfinished"


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears at `path` complete, when the context ends without an exception, or not at all."""
    unfinished = path.with_name(path.name + UNFINISHED)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(path)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # it may be gone, or never have existed
            unfinished.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the directory, created if needed, against a second writer. The system releases the lock if the process dies."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path / LOCK, timeout=0)
        lock.acquire()
    except filelock.Timeout as error:
        raise RunError(f"{path} is being written by another process: wait for it, or give another --out") from error
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}. Give another --out") from error
    try:
        yield
    finally:
        lock.release()


def _require_same(path: Path, there: dict[str, Any], asked: dict[str, Any]) -> None:
    both = there.get("experiments", {}).keys() & asked.get("experiments", {}).keys()
    flat_there, flat_asked = (dict(_flat(_only(settings, both))) for settings in (there, asked))
    keys = sorted(flat_there.keys() | flat_asked.keys())
    differences = {k: (flat_there.get(k), flat_asked.get(k)) for k in keys if flat_there.get(k) != flat_asked.get(k)}
    if differences:
        raise RunMismatchError(str(path), differences)


def _only(settings: dict[str, Any], experiments: Set[str]) -> dict[str, Any]:
    """Settings with only some of the experiments."""
    kept = {name: own for name, own in settings.get("experiments", {}).items() if name in experiments}
    return {**settings, "experiments": kept}


def _earlier_versions(manifest: Manifest, facts: dict[str, Any]) -> list[dict[str, str]]:
    """The manifest's earlier versions, with those it has now if shards may have been made with them."""
    before = manifest.versions
    changed = before and before != facts.get("versions", before) and not manifest.complete
    return [*manifest.earlier_versions, before] if changed else manifest.earlier_versions


def _in_order_of(there: Any, content: Any) -> Any:
    """JSON content with the keys of `there` first, in their order."""
    if not (isinstance(there, dict) and isinstance(content, dict)):
        return content
    keys = dict.fromkeys([*(key for key in there if key in content), *content])
    return {key: _in_order_of(there.get(key), content[key]) for key in keys}


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_file(path) as stream:
        stream.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def _write_parquet(path: Path, frame: pl.DataFrame) -> None:
    with atomic_file(path) as stream:
        frame.write_parquet(stream, compression="zstd", statistics=False)


def _read_parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path.read_bytes())
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing: run the study again to complete it") from error
    except (OSError, pl.exceptions.PolarsError) as error:
        raise RunError(f"{path} is damaged ({error}): delete it and run the study again") from error

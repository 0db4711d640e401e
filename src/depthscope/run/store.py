"""The run directory: manifest, shards and tables, each file whole or absent. Imports no torch.

    RUN/run.json                         settings, facts about model and text, versions, status
    RUN/shards/<experiment>/00017.parquet  one per work unit
    RUN/tables/<experiment>.parquet      made from the shards
    RUN/stages.json                      the stages found, and each signature's verdict

Every file is written beside its place, flushed to disk and renamed, so a reader or a resumed run sees it whole or not at
all, whenever the process is killed. What is not promised: that several files change together (a table may be older than
the shards beside it until the run ends), or anything on file systems whose rename is not atomic.
"""

import json
import os
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import filelock
import polars as pl

from depthscope.errors import RunError, RunMismatchError

MANIFEST = "run.json"
FORMAT = 1
"""Version of the directory's layout."""
RUNNING, COMPLETE = "running", "complete"


class RunDirectory:
    """One run on disk. Make it with `RunDirectory.writing` (locked, creates or resumes) or `RunDirectory.reading`."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    def reading(cls, path: str | Path) -> "RunDirectory":
        """Open an existing run. Raises RunError when `path` holds none that can be read."""
        path = Path(path)
        file = path / MANIFEST
        if not file.exists():
            raise RunError(f"{path} holds no run: expected a directory with {MANIFEST}")
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{file} cannot be read: {error}") from error
        if not isinstance(manifest, dict) or not isinstance(manifest.get("settings"), dict):
            raise RunError(f"{file} is not a run's manifest: expected an object with settings")
        if manifest.get("format") != FORMAT:
            raise RunError(f"{file} has layout {manifest.get('format')!r}: this depthscope reads layout {FORMAT}")
        return cls(path, manifest)

    @classmethod
    def check_place(cls, path: str | Path) -> None:
        """Raise RunError where `path` is a file, or a directory with other things in it or a run that cannot be read."""
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
    def writing(cls, path: str | Path, settings: dict[str, Any], facts: dict[str, Any]) -> Iterator["RunDirectory"]:
        """Create a run or resume the one at `path`, as its only writer.

        `settings` decide what is computed: resuming with others raises RunMismatchError. Experiments of a resumed run
        (`settings["experiments"]`, by name) join those it has. `facts` (versions and the like) are recorded. Raises
        RunError when the directory cannot be written, holds other things, or has a writer.
        """
        path = Path(path)
        with _locked(path):
            if (path / MANIFEST).exists():
                run = cls.reading(path)
                _require_same(path, run.settings, _plain(settings))
                run.settings.setdefault("experiments", {}).update(_plain(settings).get("experiments", {}))
                _keep_versions(run.manifest, _plain(facts))
            else:
                cls.check_place(path)
                run = cls(path, {"format": FORMAT, "settings": _plain(settings)})
            for leftover in path.rglob(f"*{UNFINISHED}"):
                leftover.unlink()
            run.update(status=RUNNING, **facts)
            yield run

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the numbers of this run."""
        return self.manifest["settings"]

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Store a result that is no table, as RUN/name.json."""
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        with atomic_file(self.path / f"{name}.json") as stream:
            stream.write(text.encode())

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Such a result, None where there is none. Raises RunError for one that is damaged."""
        file = self.path / f"{name}.json"
        if not file.exists():
            return None
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(f"{file} cannot be read: {error}") from error

    def finish(self, experiments: Sequence[str]) -> None:
        """Note that these experiments have all their tables; the run is complete when all of its experiments have."""
        finished = sorted({*self.manifest.get("finished", []), *experiments})
        complete = set(finished) >= set(self.settings.get("experiments", {}))
        self.update(finished=finished, status=COMPLETE if complete else RUNNING)

    @property
    def complete(self) -> bool:
        """Whether the run came to its end."""
        return self.manifest.get("status") == COMPLETE

    def update(self, **entries: Any) -> None:
        """Set entries of the manifest."""
        self.manifest.update(_plain(entries))
        text = json.dumps(self.manifest, indent=2, ensure_ascii=False) + "\n"
        with atomic_file(self.path / MANIFEST) as stream:
            stream.write(text.encode())

    def shard_path(self, experiment: str, unit: int) -> Path:
        """Where the shard of a work unit is or will be."""
        return self.path / "shards" / experiment / f"{unit:05d}.parquet"

    def write_shard(self, experiment: str, unit: int, frame: pl.DataFrame) -> None:
        """Store a work unit's result."""
        _write_parquet(self.shard_path(experiment, unit), frame)

    def shards(self, experiment: str, units: int) -> Iterator[pl.DataFrame]:
        """The shards of units `0 … units-1`, in order. Raises RunError for one that is missing or damaged."""
        for unit in range(units):
            yield _read_parquet(self.shard_path(experiment, unit))

    def write_table(self, name: str, frame: pl.DataFrame) -> None:
        """Store a table."""
        _write_parquet(self.path / "tables" / f"{name}.parquet", frame)

    def table(self, name: str) -> pl.DataFrame:
        """A table by its name. Raises RunError naming the tables there are."""
        file = self.path / "tables" / f"{name}.parquet"
        if not file.exists():
            raise RunError(f"{self.path} has no table {name!r}: it has {', '.join(self.tables()) or 'none yet'}")
        return _read_parquet(file)

    def tables(self) -> list[str]:
        """Names of the tables there are."""
        return sorted(file.stem for file in (self.path / "tables").glob("*.parquet"))


LOCK = ".lock"
UNFINISHED = ".unfinished"


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears at `path` whole, when the context ends without an exception, or not at all."""
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
        with suppress(OSError):  # it may be gone, or never have been
            unfinished.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The directory, made if needed, held against a second writer. The system lets go when the process dies."""
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
    """Settings with those of some experiments alone."""
    kept = {name: own for name, own in settings.get("experiments", {}).items() if name in experiments}
    return {**settings, "experiments": kept}


def _keep_versions(manifest: dict[str, Any], facts: dict[str, Any]) -> None:
    """Note that shards may have been made with other versions than the ones that finish the run."""
    before = manifest.get("versions")
    if before and before != facts.get("versions", before) and manifest.get("status") != COMPLETE:
        manifest.setdefault("earlier_versions", []).append(before)


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _plain(value: dict[str, Any]) -> dict[str, Any]:
    """As JSON gives it back: tuples as lists, keys as text."""
    return json.loads(json.dumps(value))


def _write_parquet(path: Path, frame: pl.DataFrame) -> None:
    with atomic_file(path) as stream:
        frame.write_parquet(stream, compression="zstd", statistics=False)


def _read_parquet(path: Path) -> pl.DataFrame:
    try:
        return pl.read_parquet(path.read_bytes())
    except FileNotFoundError as error:
        raise RunError(f"{path} is missing: run the study again to finish it") from error
    except (OSError, pl.exceptions.PolarsError) as error:
        raise RunError(f"{path} is damaged ({error}): delete it and run the study again") from error

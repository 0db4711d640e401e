"""Verifying all files of a run: what is intact, damaged, missing, unfinished, or not depthscope's. Imports no torch."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from depthscope.errors import DamagedError, RunError
from depthscope.run import layout, recovery
from depthscope.run.files import UNFINISHED
from depthscope.run.frames import MOST_BYTES, sealed_bytes
from depthscope.run.store import RunDirectory
from depthscope.schema.manifest import Manifest
from depthscope.schema.seal import LENS, PAGE, SHARD, STAGES, TABLE, Seal, SealError, hash_in_safetensors, require_hash
from depthscope.untrusted import parse_json, read_bounded


class State(Enum):
    """What a file of a run is found to be."""

    INTACT = "intact"
    DAMAGED = "damaged"
    MISSING = "missing"
    UNVERIFIED = "without a checksum"
    """Of an earlier version, of an experiment that run.json does not have, or of an exported model."""
    UNFINISHED = "unfinished"
    """A temporary file, which the next study removes."""
    FOREIGN = "not depthscope's"


BAD = (State.DAMAGED, State.MISSING)


@dataclass(frozen=True, slots=True)
class Checked:
    """A file, by its path in the run, and what it is found to be."""

    file: Path
    state: State
    reason: str = ""


def check_run(path: str | Path) -> list[Checked]:
    """Verify every file of a run. Raises RunError if `path` has no run, not even one that lost its run.json."""
    path = Path(path)
    run, first = _manifest(path)
    manifest = None if run is None else run.manifest
    found = [first]
    for file in _files(path):
        place = file.relative_to(path)
        if place.as_posix() in (layout.MANIFEST, layout.LOCK):
            continue
        if place.parts[0] == layout.EXPORT and manifest is not None and manifest.prune is not None:
            found.append(Checked(place, State.UNVERIFIED))
        elif not layout.is_own(file, path, manifest):
            found.append(Checked(place, State.FOREIGN))
        elif file.name.endswith(UNFINISHED):
            found.append(Checked(place, State.UNFINISHED))
        else:
            found.append(_checked(place, _verifier(file, path, run)))
    there = {one.file for one in found}
    return found + [Checked(place, State.MISSING) for place in _expected(manifest) if place not in there]


def _manifest(path: Path) -> tuple[RunDirectory | None, Checked]:
    """The run, None if its run.json cannot be used, and what that is."""
    place = Path(layout.MANIFEST)
    try:
        run = RunDirectory.reading(path)
    except RunError as error:
        damaged = isinstance(error, DamagedError)
        if not damaged and not recovery.has_sealed(path):
            raise
        state = State.DAMAGED if damaged else State.MISSING
        return None, Checked(place, state, _short(error, path / place))
    return run, Checked(place, State.UNVERIFIED if run.manifest.unsealed else State.INTACT)


def _files(path: Path) -> Iterator[Path]:
    """All files below a directory, links as themselves."""
    for entry in layout.entries(path):
        if entry.is_dir() and not entry.is_symlink():
            yield from _files(entry)
        else:
            yield entry


def _expected(manifest: Manifest | None) -> Iterator[Path]:
    """The files that a run must have by its manifest. Shards of an experiment may be missing until it is finished."""
    if manifest is None:
        return
    for experiment, units in manifest.units.items():
        yield from (layout.shard_path(Path(), experiment, unit) for unit in range(units))
    yield from (layout.table_path(Path(), name) for name in manifest.tables)
    if manifest.stages:
        yield Path(layout.STAGES)


def _checked(place: Path, verify: Callable[[], State]) -> Checked:
    try:
        return Checked(place, verify())
    except RunError as error:
        return Checked(place, State.DAMAGED, _short(error, place))


def _verifier(file: Path, path: Path, run: RunDirectory | None) -> Callable[[], State]:
    """What verifies one of this program's files: returns its state, or raises RunError with the reason."""
    place = file.relative_to(path)
    if place.parent in layout.LENS_FOLDERS:
        return lambda: _lens(file)
    if place.parent == layout.LINEARITY:
        return lambda: _tensors(file)
    if place == Path(layout.PAGE):
        return lambda: _require_seal(file, Seal(kind=PAGE))
    unit = layout.unit_of(file)
    if place.parts[0] == layout.SHARDS and unit is not None:
        expected = Seal(kind=SHARD, experiment=file.parent.name, unit=unit)
        read = None if run is None else lambda: run.shard(file.parent.name, unit)
    elif place.parts[0] == layout.TABLES:
        expected = Seal(kind=TABLE, name=file.stem)
        read = None if run is None else lambda: run.table(file.stem)
    else:
        expected = Seal(kind=STAGES)
        read = None if run is None else lambda: run.stages
    return lambda: _stored(file, expected, run, read)


def _stored(file: Path, expected: Seal, run: RunDirectory | None, read: Callable[[], object] | None) -> State:
    """The state of a shard, a table or the stages, against the run's settings where those are known."""
    if run is None or read is None:
        return _require_seal(file, expected)
    seal = sealed_bytes(file, "")[1]
    if seal is not None and seal.experiment is not None and seal.experiment not in run.settings.experiments:
        return State.UNVERIFIED
    read()
    return State.INTACT if seal is not None else State.UNVERIFIED


def _require_seal(file: Path, expected: Seal) -> State:
    """Raise DamagedError unless a file is intact and what its name says."""
    seal = sealed_bytes(file, "")[1]
    if seal is None:
        raise DamagedError("it has no checksum")
    about = (seal.kind, seal.name, seal.unit, seal.experiment if expected.experiment else None)
    if about != (expected.kind, expected.name, expected.unit, expected.experiment):
        raise DamagedError(f"it is not the file that belongs here: expected {expected}, got {seal}")
    return State.INTACT


def _lens(file: Path) -> State:
    """The state of a file of a fitted lens: the configuration has a seal and the SHA-256 of the parameters."""
    params, config, training = (file.with_name(name) for name in layout.LENS_FILES)
    if file == training:
        return _tensors(file)
    content, seal = sealed_bytes(config, "")
    described = parse_json(content, layout.LENS_FILES[1], DamagedError)
    if not isinstance(described, dict):
        raise DamagedError("it is not the configuration of a lens")
    if file == config:
        if seal is None and described.get("format") != 1:
            raise DamagedError("it has no checksum")
        return State.INTACT if seal == Seal(kind=LENS) else State.UNVERIFIED
    if hashlib.sha256(read_bounded(params, RunError, MOST_BYTES)).hexdigest() != described.get("params_sha256"):
        raise DamagedError(f"it is not the file that {config.name} describes")
    return State.INTACT


def _tensors(file: Path) -> State:
    """The state of a file of tensors with its SHA-256 in its header."""
    content = read_bounded(file, RunError, MOST_BYTES)
    try:
        require_hash(content, hash_in_safetensors(content))
    except SealError as error:
        raise DamagedError(str(error)) from error
    return State.INTACT


def _short(error: RunError, file: Path) -> str:
    """An error's reason without the file's name, which is shown next to it, and without what to do."""
    said = str(error).split(". ")[0]
    _, name, reason = said.partition(file.name)
    return (reason if name else said).removeprefix(" is damaged:").strip()

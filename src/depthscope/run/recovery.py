"""Resuming a run whose run.json is damaged or lost, from files that state the settings they were made with. No torch."""

from collections.abc import Iterator
from pathlib import Path

from depthscope.errors import RunError
from depthscope.run import layout
from depthscope.run.frames import sealed_bytes
from depthscope.schema.manifest import Settings
from depthscope.schema.seal import SHARD, STAGES, TABLE, Seal

LOST = (
    f"It has files of a run whose {layout.MANIFEST} is lost: give the command that made the run again, which resumes from them "
    f"and writes {layout.MANIFEST}"
)

EXCHANGED = (
    f"But its shards were made with the requested ones: if {layout.MANIFEST} is another run's, delete it and give the same "
    "command again"
)
NOTHING = f"No intact file there states its settings: restore {layout.MANIFEST} from a copy, or give another --out"


def has_sealed(path: Path) -> bool:
    """Whether a directory has at least one intact file of a run besides run.json."""
    return next(_sealed(path), None) is not None


def require_same(path: Path, settings: Settings, reason: str) -> int:
    """How many intact files in a directory were made with these settings. They need not be all experiments'.

    Raises RunError if there is none, or one of the same experiments that was made with other settings. `reason` is why run.json
    cannot be used.
    """
    same = 0
    for file, seal in _sealed(path):
        if seal.experiment is None or seal.experiment in settings.experiments:
            if seal.settings != settings.fingerprint(seal.experiment):
                raise RunError(
                    f"{reason}, and {file.relative_to(path)} was made with other settings than those requested. Give the "
                    "command that made this run, or another --out"
                )
            same += 1
    if not same:
        raise RunError(
            f"{reason}, and no intact file there was made by the requested experiments. Give the command that made this run, "
            "or another --out"
        )
    return same


def made_with(path: Path, settings: Settings) -> bool:
    """Whether intact files in a directory were made with these settings, and none of the same experiments with others."""
    try:
        return require_same(path, settings, "") > 0
    except RunError:
        return False


def _sealed(path: Path) -> Iterator[tuple[Path, Seal]]:
    """The intact files with a seal, shards first."""
    shards = [file for _, _, file in layout.stored_shards(path)]
    tables = [file for file in layout.entries(path / layout.TABLES) if layout.is_own(file, path, None)]
    for file in (*shards, *tables, path / layout.STAGES):
        try:
            seal = sealed_bytes(file, "")[1]
        except RunError:
            continue
        if seal is not None and seal.kind in (SHARD, TABLE, STAGES):
            yield file, seal

"""Which files of a run directory are this program's, by name. Whatever else is there is left alone. Imports no torch.

RUN/run.json                         settings, facts about model and text, versions, status
RUN/shards/<experiment>/00017.parquet  one per work unit
RUN/tables/<experiment>.parquet      made from the shards
RUN/stages.json                      the stages found, and each signature's verdict
RUN/lenses/tuned/                    a tuned lens that was trained for the run
RUN/lenses/jacobian/                 a Jacobian lens that was fitted for the run
RUN/linearity/                       affine maps that were fitted for the run
RUN/report.html                      the page
RUN/model/                           the checkpoint without the blocks that a search has chosen
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from depthscope.run.files import UNFINISHED
from depthscope.schema.experiments import declared_experiments
from depthscope.schema.lens import FITTED
from depthscope.schema.manifest import Manifest
from depthscope.schema.tasks import TABLES as TASK_TABLES

MANIFEST, STAGES, PAGE, LOCK = "run.json", "stages.json", "report.html", ".lock"
SHARDS, TABLES, LENSES, EXPORT = "shards", "tables", "lenses", "model"
TOP = (MANIFEST, STAGES, PAGE, LOCK)
LENS_FOLDERS = tuple(Path(LENSES) / name for name in FITTED)
LENS_FILES = ("params.safetensors", "config.json", "training.safetensors")
LINEARITY = Path("linearity")
LINEARITY_FILES = ("maps.safetensors", "sums.safetensors")
PRECISION = "precision"
"""The one table of a study that no experiment declares."""
UNIT = re.compile(r"(\d{5,})\.parquet")


def shard_path(run: Path, experiment: str, unit: int) -> Path:
    """The path of a work unit's shard, whether or not it exists."""
    return run / SHARDS / experiment / f"{unit:05d}.parquet"


def table_path(run: Path, name: str) -> Path:
    """The path of a table, whether or not it exists."""
    return run / TABLES / f"{name}.parquet"


def unit_of(file: Path) -> int | None:
    """The work unit of a shard, by its name; None for another file."""
    found = UNIT.fullmatch(file.name)
    return int(found[1]) if found and f"{int(found[1]):05d}" == found[1] else None


def entries(folder: Path) -> list[Path]:
    """What a directory contains, in order; nothing for a link, which leads out of the run, or where there is none."""
    try:
        return sorted(folder.iterdir()) if folder.is_dir() and not folder.is_symlink() else []
    except OSError:
        return []


def stored_shards(run: Path) -> Iterator[tuple[str, int, Path]]:
    """(experiment, unit, path) of the shards that are there, by their names."""
    for folder in entries(run / SHARDS):
        for file in entries(folder):
            if (unit := unit_of(file)) is not None:
                yield folder.name, unit, file


def own_names(manifest: Manifest | None) -> tuple[set[str], set[str]]:
    """Names of the experiments and tables that this program, or a plug-in that is not loaded now, writes into a run."""
    known, recorded = ({}, []) if manifest is None else (manifest.settings.experiments, manifest.tables)
    experiments = declared_experiments()
    declared = {name for one in experiments.values() for name in one.tables}
    return {*experiments, *known}, {*declared, PRECISION, *TASK_TABLES, *recorded}


def is_own(file: Path, run: Path, manifest: Manifest | None) -> bool:
    """Whether a file in a run, or its temporary name, is one that this program writes there."""
    *folders, name = file.relative_to(run).parts
    name = name.removesuffix(UNFINISHED)
    experiments, tables = own_names(manifest)
    match folders:
        case []:
            return name in TOP
        case [folder] if folder == TABLES:
            return name.endswith(".parquet") and name.removesuffix(".parquet") in tables
        case [folder, experiment] if folder == SHARDS:
            return experiment in experiments and unit_of(Path(name)) is not None
        case _:
            own = {**dict.fromkeys(LENS_FOLDERS, LENS_FILES), LINEARITY: LINEARITY_FILES}
            return name in own.get(Path(*folders), ())


def folders(run: Path) -> Iterable[Path]:
    """The directories of a run that have this program's files."""
    return [run, run / TABLES, *entries(run / SHARDS), *(run / lens for lens in LENS_FOLDERS), run / LINEARITY]


def leftovers(run: Path, manifest: Manifest | None) -> list[Path]:
    """This program's temporary files, which a process that was killed has left."""
    found = [file for folder in folders(run) for file in entries(folder) if file.name.endswith(UNFINISHED)]
    return [file for file in found if is_own(file, run, manifest) and not file.is_dir()]

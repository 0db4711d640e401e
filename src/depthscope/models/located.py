"""Where a model is: embedded, in a package, in a folder or file of this machine, or on a hub.

Nothing is read of a model here but the names of its files.
"""

from dataclasses import dataclass
from pathlib import Path

from depthscope.errors import ModelError
from depthscope.models.configuration import fetch, hub_folder
from depthscope.models.gguf import SUFFIX, choose, choose_on_hub
from depthscope.models.named import NAMED
from depthscope.models.packages import require_named
from depthscope.printable import shown

EMBEDDED = Path(__file__).parent / "bookshelf"
DEFAULT = "bookshelf-gpt2"


def embedded() -> list[str]:
    """Names of the models that ship with depthscope."""
    return sorted(folder.name for folder in EMBEDDED.iterdir() if (folder / "config.json").exists())


@dataclass(frozen=True, slots=True)
class Place:
    """Where a model is."""

    folder: Path
    commit: str | None = None
    gguf: Path | None = None
    """The file with the model, where it is GGUF."""


def locate(source: str, revision: str | None) -> Place:
    """Where a model is; of one on a hub its files are downloaded. Raises ModelError where there is none."""
    place = _located_here(source)
    if place is not None and revision is not None:
        raise ModelError(
            f"{source} is on this machine and has no revision {shown(revision)}: leave --revision out, or name the "
            "checkpoint's folder"
        )
    return _on_hub(source, revision) if place is None else place


def _located_here(source: str) -> Place | None:
    """Where a model on this machine is; None for a name that can only be one of a hub."""
    path, _, file = source.partition("#")
    if source in NAMED:
        named = require_named(source)
        return Place(named.parent, None, named)
    try:
        folder = EMBEDDED / source if source in embedded() else Path(path).expanduser()
        there, is_folder = folder.exists(), folder.is_dir()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null character, no home of that name
        raise ModelError(f"{source[:200]!r} cannot be the name of a model or folder: {error}"[:400]) from error
    if folder.is_file() and folder.suffix.lower() == SUFFIX and not file:
        return Place(folder.parent, None, folder)
    if is_folder:
        return Place(folder, None, choose(folder, file or None, path))
    if there or path.startswith((".", "/", "~")) or path.count("/") > 1 or path.endswith(SUFFIX):
        raise ModelError(
            f"no model folder at {source}: expected a folder with config.json and model.safetensors, one with a GGUF file, or "
            "such a file"
        )
    return None


def _on_hub(source: str, revision: str | None) -> Place:
    path, _, file = source.partition("#")
    location, commit = hub_folder(path, revision, [*embedded(), *NAMED])
    gguf = choose_on_hub(location, file or None, path, revision)
    if gguf is not None:
        return Place(gguf.parent, commit, gguf)
    folder = Path(location) if commit is not None else fetch(location, revision)
    return Place(folder, folder.name)

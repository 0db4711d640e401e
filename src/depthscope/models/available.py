"""What can be studied here and now: embedded models, named ones, the hub's cache, and GGUF files in the working directory.

Only configurations and headers are read, and neither torch nor transformers is imported.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from depthscope.errors import ModelError
from depthscope.models.gguf_header import read_header
from depthscope.models.named import NAMED
from depthscope.models.packages import find_named
from depthscope.untrusted import read_json

SUFFIX = ".gguf"
LEVELS = 3
"""How deep under the working directory GGUF files are looked for."""
MOST = 200
"""How many of them are shown."""
EMBEDDED = Path(__file__).parent / "bookshelf"
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
WIDTHS = ("hidden_size", "n_embd", "d_model")


@dataclass(frozen=True, slots=True, kw_only=True)
class Available:
    """A model that can be studied. What its files do not state is None."""

    name: str
    """What the commands take."""
    where: str
    layers: int | None = None
    d_model: int | None = None
    quantisation: str | None = None
    licence: str | None = None


def available_models(folder: Path) -> list[Available]:
    """All models that can be studied without a download, GGUF files under `folder` included."""
    return [*_embedded(), *_named(), *_cached(), *_gguf_files(folder)]


def missing_models() -> list[str]:
    """Names of the named models that are not on this machine."""
    return [name for name in NAMED if find_named(name) is None]


def _embedded() -> Iterator[Available]:
    for config in sorted(EMBEDDED.glob("*/config.json")):
        yield Available(name=config.parent.name, where="embedded", licence="Apache-2.0", **_of_config(config))


def _named() -> Iterator[Available]:
    for name, model in NAMED.items():
        if (file := find_named(name)) is not None:
            yield Available(name=name, where="downloaded", **{**_of_gguf(file), "licence": model.licence})


def _cached() -> Iterator[Available]:
    for repository in sorted(_hub_cache().glob("models--*")):
        identifier = "/".join(repository.name.split("--")[1:])
        for snapshot in sorted((repository / "snapshots").glob("*")):
            ggufs = sorted(snapshot.glob(f"*{SUFFIX}"))
            if any(snapshot.glob("*.safetensors")) and (snapshot / "config.json").is_file():
                yield Available(name=identifier, where="hub cache", **_of_config(snapshot / "config.json"))
            else:
                for file in ggufs:
                    name = identifier if len(ggufs) == 1 else f"{identifier}#{file.name}"
                    yield Available(name=name, where="hub cache", **_of_gguf(file))


def _hub_cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _gguf_files(folder: Path) -> Iterator[Available]:
    found = 0
    for place, folders, files in os.walk(folder):
        here = Path(place)
        deep = len(here.relative_to(folder).parts)
        folders[:] = sorted(name for name in folders if deep < LEVELS and not name.startswith("."))
        for name in sorted(file for file in files if file.endswith(SUFFIX)):
            if (found := found + 1) > MOST:
                return
            file = here / name
            shown = file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
            yield Available(name=str(shown), where="file", **_of_gguf(file))


def _of_config(path: Path) -> dict[str, Any]:
    try:
        config = read_json(path, ModelError)
    except ModelError:
        return {}
    config = config.get("text_config", config) if isinstance(config, dict) else {}
    config = config if isinstance(config, dict) else {}
    quantised = config.get("quantization_config")
    method = quantised.get("quant_method") if isinstance(quantised, dict) else None
    return {
        "layers": _first(config, DEPTHS),
        "d_model": _first(config, WIDTHS),
        "quantisation": method if isinstance(method, str) else None,
    }


def _of_gguf(path: Path) -> dict[str, Any]:
    try:
        said = read_header(path).metadata
    except (OSError, ValueError, struct.error, ModelError):
        return {"quantisation": "cannot be read"}
    kind = said.get("general.architecture")
    licence = said.get("general.license")
    return {
        "layers": _first(said, (f"{kind}.block_count",)),
        "d_model": _first(said, (f"{kind}.embedding_length",)),
        "quantisation": file_type(said),
        "licence": licence if isinstance(licence, str) else None,
    }


def file_type(metadata: dict[str, Any]) -> str | None:
    """A GGUF file's own name of how it is quantised, None where it has none or the gguf package is not installed."""
    if find_spec("gguf") is None:
        return None
    from gguf import LlamaFileType

    stated = metadata.get("general.file_type")
    if stated not in [kind.value for kind in LlamaFileType]:
        return None
    return LlamaFileType(stated).name.removeprefix("MOSTLY_").removeprefix("ALL_")


def _first(values: dict[str, Any], names: tuple[str, ...]) -> int | None:
    return next((values[name] for name in names if isinstance(values.get(name), int)), None)

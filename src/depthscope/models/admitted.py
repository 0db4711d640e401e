"""Which files of a model's folder may be opened, decided before transformers is called.

A folder may come from anyone, and its files name each other: an index names shards, a configuration names weights, a
tokenizer's settings name vocabularies. None of these names decides what is opened. Only these files are:

    config.json                                                    read here
    model.safetensors, or the shards of model.safetensors.index.json   read by depthscope (offload.checkpoint)
    the tokenizer's files, by their usual names (TOKENIZER_FILES)  read here

transformers gets a private folder with copies of what was read, and of links to the weights where it must read them itself
(quantised ones). So no pickle, no code and no file outside the model's folder can be reached through it.
"""

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from depthscope.errors import ModelError
from depthscope.untrusted import MIB, open_regular, parse_json, read_bounded

CONFIG = "config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", TOKENIZER_CONFIG)
"""Files one of which a folder with a tokenizer has."""
TOKENIZER_FILES = (
    *TOKENIZERS,
    *("special_tokens_map.json", "added_tokens.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
    *("spiece.model", "spm.model", "sentencepiece.model", "sentencepiece.bpe.model", "tekken.json", "tiktoken.model"),
    *("normalizer.json", "emoji.json", "bpe.codes", "dict.txt", "byte_maps.json"),
)
SHARD = re.compile(r"[A-Za-z0-9][\w.\-]*\.safetensors", re.ASCII)
"""What an index may name."""
MOST_CONFIG_BYTES = 8 * MIB
MOST_TOKENIZER_BYTES = 128 * MIB
"""Of one file. The largest vocabularies known (262,144 tokens) take 33 MB."""
DROPPED = ("transformers_weights", "configuration_files", "auto_map", "_commit_hash", "distributed_config")
"""Entries of config.json that name files, code or places, which are not the model."""
DROPPED_TOKENIZER = (
    "init_inputs",
    "fast_tokenizer_files",
    "tokenizer_object",
    "name_or_path",
    "cache_dir",
    "subfolder",
)
"""Entries of tokenizer_config.json that name files or stand for arguments that depthscope gives itself."""


def admitted(folder: Path, name: str) -> Path | None:
    """A file of the folder by its plain name, None where it is not there.

    Raises ModelError for what is not a regular file, and for a link that leads out of the folder; links of the Hugging Face
    cache lead to its own blobs.
    """
    path = folder / name
    if not path.is_symlink() and not path.exists():
        return None
    try:
        target = path.resolve(strict=True)
        home = folder.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle
        raise ModelError(f"{path} is a link that leads nowhere: expected a file") from error
    if not target.is_relative_to(home) and not _blob(target):
        raise ModelError(f"{path} is a link out of the folder, to {target}: expected a file in it. Copy it there")
    with open_regular(target, ModelError):
        return target


def _blob(target: Path) -> bool:
    """Whether a path is a file of the Hugging Face cache: models--OWNER--NAME/blobs/HASH."""
    return target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")


def read_object(folder: Path, name: str, most: int = MOST_CONFIG_BYTES) -> dict[str, Any] | None:
    """A JSON object in a file of the folder, None where there is no such file. Raises ModelError."""
    path = admitted(folder, name)
    if path is None:
        return None
    content = parse_json(read_bounded(path, ModelError, most), str(folder / name), ModelError)
    if not isinstance(content, dict):
        raise ModelError(f"{folder / name} holds no JSON object: expected one, got {type(content).__name__}")
    return content


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that hold the weights: model.safetensors, else the shards its index names; none without either.

    Raises ModelError for an index that is damaged, or names anything but safetensors files in the folder.
    """
    whole = admitted(folder, WEIGHTS)
    if whole is not None:
        return (whole,)
    files = []
    for name in shard_names(folder):
        shard = admitted(folder, name)
        if shard is None:
            raise ModelError(f"{folder / INDEX} names {name}, which is not in the folder: get it too")
        files.append(shard)
    return tuple(files)


def shard_names(folder: Path) -> list[str]:
    """The files that an index of shards names, sorted; empty without an index. Raises ModelError as `weight_files` does."""
    index = read_object(folder, INDEX, MOST_TOKENIZER_BYTES)
    if index is None:
        return []
    named = index.get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise ModelError(f"{folder / INDEX} has no weight_map: expected one, from each tensor to its safetensors file")
    names = sorted(set(named.values()))
    for name in names:
        if not SHARD.fullmatch(name) or name.startswith("adapter_"):
            raise ModelError(
                f"{folder / INDEX} names {name!r}: expected safetensors files in the same folder, nothing else is read"
            )
    return names


def cleaned(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration without the entries that name files or code."""
    return {key: value for key, value in config.items() if key not in DROPPED}


@contextmanager
def private_folder(files: Mapping[str, bytes], links: Sequence[tuple[str, Path]] = ()) -> Iterator[Path]:
    """A folder of this process's own with these files, and links to others, gone at the end."""
    with tempfile.TemporaryDirectory(prefix="depthscope-model-") as name:
        folder = Path(name)
        for file, content in files.items():
            (folder / file).write_bytes(content)
        for file, target in links:
            (folder / file).symlink_to(target.resolve())
        yield folder


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """The content of the tokenizer's files by name, checked; empty where the folder has no tokenizer. Raises ModelError."""
    found: dict[str, bytes] = {}
    for name in TOKENIZER_FILES:
        path = admitted(folder, name)
        if path is None:
            continue
        content = read_bounded(path, ModelError, MOST_TOKENIZER_BYTES)
        if name.endswith(".json"):
            parsed = parse_json(content, str(folder / name), ModelError)
            if not isinstance(parsed, dict):
                raise ModelError(f"{folder / name} holds no JSON object: expected one, got {type(parsed).__name__}")
            if name == TOKENIZER_CONFIG:
                content = _as_bytes(_without_files(parsed))
        found[name] = content
    return found if found.keys() & set(TOKENIZERS) else {}


def _without_files(settings: dict[str, Any]) -> dict[str, Any]:
    return {
        key: value
        for key, value in settings.items()
        if key not in DROPPED_TOKENIZER and not key.endswith(("_file", "_files"))
    }


def staged(config: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files that transformers gets of a folder: its configuration, cleaned, and those of its tokenizer."""
    return {CONFIG: _as_bytes(cleaned(config)), **files}


def weight_links(folder: Path, files: Sequence[Path]) -> tuple[dict[str, bytes], list[tuple[str, Path]]]:
    """What a private folder needs beyond `staged` for transformers to read weights itself: an index, and links."""
    if admitted(folder, WEIGHTS) is not None:
        return {}, [(WEIGHTS, files[0])]
    index = read_object(folder, INDEX, MOST_TOKENIZER_BYTES) or {}
    content = _as_bytes({"metadata": {}, "weight_map": index["weight_map"]})
    return {INDEX: content}, list(zip(shard_names(folder), files, strict=True))


def _as_bytes(content: Any) -> bytes:
    return json.dumps(content).encode()

"""The small files of a checkpoint (tokenizer, generation settings, chat template, licence), from where the model came from.

Files of a model's folder are read within bounds (`models.admitted`). A model that was handed in, or came from a GGUF file,
has its tokenizer saved by transformers.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from depthscope.errors import ModelError
from depthscope.models.admitted import admitted, read_object, tokenizer_files
from depthscope.models.configuration import model_errors
from depthscope.models.model import Model
from depthscope.models.named import NAMED
from depthscope.models.packages import terms_of
from depthscope.models.quiet import quiet
from depthscope.untrusted import MIB, read_bounded

GENERATION = "generation_config.json"
SETTINGS = (GENERATION, "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
"""JSON files that belong to a checkpoint and not to its weights."""
LICENCE = re.compile(r"(licen[cs]e|notice|copying|terms|use_policy)[\w.\-]*", re.IGNORECASE)
LICENCE_NAMED = re.compile(r"^license:\s*([\w.\-]{1,60})\s*$", re.MULTILINE)
"""The entry at the head of a model card."""


def companions(model: Model) -> dict[str, bytes]:
    """Contents by name of the files that come with the weights. Raises ModelError for one that cannot be read."""
    found: dict[str, bytes] = {}
    if model.folder is None:
        return found
    if model.gguf is None:
        found |= tokenizer_files(model.folder)
        for name in SETTINGS:
            if read_object(model.folder, name) is not None:
                found[name] = read_bounded(model.folder / name, ModelError)
    return found | {name: read_bounded(path, ModelError, MIB) for name, path in _licences(model)}


def save_others(model: Model, folder: Path, there: dict[str, bytes]) -> None:
    """Save the tokenizer and the generation settings that the model holds, where no files of it were copied."""
    with model_errors(f"the tokenizer of {model.name} cannot be saved"), quiet():
        if model.tokenizer is not None and (model.folder is None or model.gguf is not None):
            model.tokenizer.save_pretrained(str(folder))
        if GENERATION not in there and model.folder is None and model.hf.can_generate():
            model.hf.generation_config.save_pretrained(str(folder))


def licence(model: Model) -> str | None:
    """The licence that the original's model card names."""
    if model.folder is None or admitted(model.folder, "README.md") is None:
        return None
    text = read_bounded(model.folder / "README.md", ModelError).decode(errors="replace")
    head = text.split("\n---", 1)[0] if text.startswith("---") else ""
    named = LICENCE_NAMED.search(head)
    return named[1] if named else None


def _licences(model: Model) -> Iterator[tuple[str, Path]]:
    if model.folder is None:
        return
    if model.gguf is not None:
        yield from ((path.name, path) for path in (terms_of(model.name) if model.name in NAMED else []))
        return
    for entry in sorted(model.folder.iterdir()):
        if (
            LICENCE.fullmatch(entry.name)
            and entry.is_file()
            and (path := admitted(model.folder, entry.name)) is not None
        ):
            yield entry.name, path

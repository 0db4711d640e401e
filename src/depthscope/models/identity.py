"""What identifies a model: everything that decides its numbers, without where it was read from.

The weights are hashed by `Model.weight_hash`. Here are the rest: the configuration that transformers uses, the tables that it
computes from it (buffers that are no part of a checkpoint), and the tokenizer.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

NOT_COMPUTING = ("transformers_version", "name_or_path", "id2label", "label2id", "auto_map")
"""Entries of a configuration that decide no number: versions, places, names of labels, code that is never run. Neither do
entries with an underscore in front, which transformers keeps for itself; the attention backend is recorded on its own."""
FREQUENCIES, FIRST = "inv_freq", "original_"
"""In names of a rotary embedding's buffers. Where transformers recomputes frequencies for longer windows, it keeps the first
ones as `original_inv_freq`."""


def configuration(config: Any) -> dict[str, Any]:
    """The configuration a model runs with, as JSON values: defaults and configurations within it included."""
    return _plain(config.to_dict())


def _plain(value: Any, whole: bool = False) -> Any:
    """JSON values. `whole`: with entries that have an underscore in front, which name the scheme of torchao's quantisation."""
    if isinstance(value, dict):
        kept = ((str(key), member) for key, member in value.items())
        return {
            key: _plain(member, whole or key == "quantization_config")
            for key, member in sorted(kept, key=lambda one: one[0])
            if whole or (key not in NOT_COMPUTING and not key.startswith("_"))
        }
    if isinstance(value, list | tuple):
        return [_plain(member, whole) for member in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | int | float):
        return value
    return str(value)


def buffers_hash(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the buffers that no checkpoint holds, such as rotary frequencies."""
    digest = hashlib.sha256()
    for name, buffer in _buffers(model):
        digest.update(f"{name} {buffer.dtype} {tuple(buffer.shape)}".encode())
        digest.update(buffer.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, module in model.named_modules():
        moving = _changes_with_length(module)
        for name in sorted(module._non_persistent_buffers_set):
            buffer = module._buffers.get(name)
            if buffer is not None and not (moving and name.endswith(FREQUENCIES) and FIRST not in name):
                yield f"{path}.{name}", buffer


def _changes_with_length(module: nn.Module) -> bool:
    """Whether a rotary embedding recomputes its frequencies for longer windows."""
    kinds: Any = getattr(module, "rope_type", "")
    names = kinds.values() if isinstance(kinds, dict) else (kinds,)
    return any("dynamic" in str(name) or "longrope" in str(name) for name in names)


def tokenizer_hash(tokenizer: Any) -> str:
    """SHA-256 of what a tokenizer does: what the tokenizers library stores of it, or of a slow one its class and vocabulary.

    Truncation and padding, which each call sets again, are left out.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and hasattr(backend, "to_str"):
        content = json.loads(backend.to_str())
        content.pop("truncation", None)
        content.pop("padding", None)
    else:
        content = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()

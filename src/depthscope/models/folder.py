"""A model's folder, checked before transformers reads it: code that must not be run, and files that are not a model's."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from depthscope.errors import ModelError

LFS_POINTER = b"version https://git-lfs"
HARMLESS = re.compile(
    r"rotary_emb\.(inv_freq|cos_cached|sin_cached)$|\.(masked_bias|bias_mask|position_ids)$|attn\.bias$|^lm_head\.weight$"
)
"""Tensors a checkpoint may hold beyond what the model reads: rotary tables, causal masks, a copy of a tied unembedding."""
SCALES = re.compile(r"(scale|scale_inv|scales|zeros|qzeros|absmax|zero_point|g_idx|SCB|quant_state.*)$")
"""Names of tensors that belong to quantised weights."""
ADAPTER = "Move the adapter's files into a folder of their own, and give it with --adapter to apply it"


def unused_message(source: str, names: Sequence[str]) -> str:
    """Why a checkpoint with tensors that the model does not read is refused, and what to do."""
    some = f"{', '.join(names[:4])}{' …' if len(names) > 4 else ''}"
    if any(SCALES.search(name) for name in names):
        return (
            f"{source} holds {len(names)} tensors the model does not read, of quantised weights by their names: {some}. Its "
            "config.json declares no quantisation that transformers would undo, so the weights would be read as they are "
            "packed. Expected a checkpoint with quantization_config, or plain weights"
        )
    return (
        f"{source} holds {len(names)} tensors the model does not read: {some}. Expected none, since they may be part of what "
        "the model should compute; --unused-tensors ignore goes on without them"
    )


def check_folder(folder: Path) -> None:
    """Check a folder before transformers reads it. Raises ModelError that says what the folder holds instead of a model."""
    _check_kind(folder)
    path = folder / "config.json"
    if not path.exists():
        raise ModelError(f"{folder} holds no config.json: expected a transformers model folder")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {(str(error).splitlines() or [type(error).__name__])[0]}") from error
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str) or not config["model_type"]:
        raise ModelError(f"{path} names no model_type: expected a transformers model configuration")
    check_trust(config, str(path))
    if not any(folder.glob("*.safetensors")):
        pickles = [p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern)]
        if pickles:
            raise ModelError(
                f"{folder} has weights only as pickle ({', '.join(pickles[:3])}), which can run code when read: expected "
                "model.safetensors. Convert it once where you trust it, with save_pretrained"
            )
        raise ModelError(f"{folder} has no weights: expected model.safetensors or model-…-of-….safetensors")


def check_trust(config: dict[str, Any], where: str) -> None:
    """Raise ModelError for a configuration that asks for code that does not come with transformers."""
    kind = config.get("model_type")
    if kind not in CONFIG_MAPPING:
        asks = " and asks for code from its repository (auto_map), which is never run" if "auto_map" in config else ""
        raise ModelError(
            f"{where}: model_type {kind!r} is not one transformers {transformers.__version__} knows{asks}. "
            "Expected a model type built into transformers"
        )
    for key, value in config.items():
        if "attn_implementation" in key and isinstance(value, str) and "/" in value:
            raise ModelError(f"{where}: {key} is {value!r}, which would fetch and run code; it is never run. Remove it")


def _check_kind(folder: Path) -> None:
    """Raise ModelError for an adapter or Git LFS pointers in place of a model's weights."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    adapter = next(
        (f for f in files if f.name.startswith("adapter_") and f.suffix in (".json", ".safetensors", ".bin")), None
    )
    weights = [file for file in files if file.suffix == ".safetensors" and not file.name.startswith("adapter_")]
    if adapter is not None and not weights:
        raise ModelError(
            f"{folder} holds an adapter alone ({adapter.name}), not the model it belongs to: give that model's folder or id, "
            "and this one with --adapter"
        )
    if adapter is not None:
        raise ModelError(f"{folder} holds an adapter next to the model's weights ({adapter.name}). {ADAPTER}")
    for file in weights:
        with file.open("rb") as opened:
            if opened.read(len(LFS_POINTER)) == LFS_POINTER:
                raise ModelError(f"{file} is a Git LFS pointer, not the weights: run git lfs pull in {folder}")

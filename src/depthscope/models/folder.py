"""A model's folder, checked before transformers reads it: code that must not be run, and files that are not a model's."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from depthscope.errors import ModelError
from depthscope.models.admitted import CONFIG, read_object, weight_files
from depthscope.untrusted import open_regular

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


def check_folder(folder: Path) -> dict[str, Any]:
    """Check a folder before anything in it is used, and return its configuration.

    Raises ModelError that says what the folder holds instead of a model, or what its configuration may not ask for.
    """
    try:
        _check_kind(folder)
    except OSError as error:
        raise ModelError(f"{folder} cannot be read: {error.strerror or error}") from error
    path = folder / CONFIG
    config = read_object(folder, CONFIG)
    if config is None:
        raise ModelError(f"{folder} holds no config.json: expected a transformers model folder")
    if not isinstance(config.get("model_type"), str) or not config["model_type"]:
        raise ModelError(f"{path} names no model_type: expected a transformers model configuration")
    check_trust(config, str(path))
    if not weight_files(folder):
        pickles = [p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern)]
        if pickles:
            raise ModelError(
                f"{folder} has weights only as pickle ({', '.join(pickles[:3])}), which can run code when read: expected "
                "model.safetensors. Convert it once where you trust it, with save_pretrained"
            )
        raise ModelError(
            f"{folder} has no weights: expected model.safetensors or model-…-of-….safetensors with their index"
        )
    return config


NOT_FOLLOWED = {
    "transformers_weights": "names files of its own for the weights, which are not read: expected model.safetensors or "
    "model.safetensors.index.json",
    "configuration_files": "names other configurations, which are not read: put the one meant in config.json",
    "fusion_config": "asks transformers to replace modules: save the model without it",
}
"""Entries of config.json that would have other files read, or other modules run, than a model has by itself."""


def check_trust(config: dict[str, Any], where: str) -> None:
    """Raise ModelError for a configuration that asks for code that does not come with transformers, or for other files."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        asks = " and asks for code from its repository (auto_map), which is never run" if "auto_map" in config else ""
        raise ModelError(
            f"{where}: model_type {kind!r} is not one transformers {transformers.__version__} knows{asks}. "
            "Expected a model type built into transformers"
        )
    for key, why in NOT_FOLLOWED.items():
        if config.get(key) is not None:
            raise ModelError(f"{where}: {key} {why}")
    for path, value in _implementations(config):
        raise ModelError(f"{where}: {path} is {value!r}, which would fetch and run code; it is never run. Remove it")


def _implementations(value: Any, path: str = "", named: bool = False) -> Iterator[tuple[str, str]]:
    """Entries that name code of a repository (OWNER/NAME) as how attention, experts and the like are computed."""
    if isinstance(value, dict):
        for key, member in value.items():
            yield from _implementations(member, f"{path}.{key}" if path else key, named or "implementation" in key)
    elif isinstance(value, list):
        for member in value:
            yield from _implementations(member, path, named)
    elif named and isinstance(value, str) and "/" in value:
        yield path, value


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
        with open_regular(file, ModelError) as opened:
            if opened.read(len(LFS_POINTER)) == LFS_POINTER:
                raise ModelError(f"{file} is a Git LFS pointer, not the weights: run git lfs pull in {folder}")

"""What transformers makes of a model's files: safetensors with their config.json, or GGUF, each checked before it is used.

Only safetensors and GGUF are read and no code from a model's repository is run; there is no switch for either.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from depthscope.errors import ModelError, UnsupportedError
from depthscope.models.admitted import CONFIG, private_folder, staged, tokenizer_files, weight_files, weight_links
from depthscope.models.configuration import (
    check_quantisation,
    model_class,
    model_errors,
    read_config,
)
from depthscope.models.folder import ADAPTER, HARMLESS, check_folder
from depthscope.models.formats import check_quantize, dequantised, prepared, quantizing
from depthscope.models.gguf import (
    check_not_streamed,
    gguf_tokenizer,
    load_gguf,
    read_entry,
)
from depthscope.models.gguf_header import read_header
from depthscope.models.limits import Asked, check_numbers
from depthscope.models.located import Place, locate
from depthscope.models.named import NAMED
from depthscope.models.offload.checkpoint import read_headers, stored_tensors
from depthscope.models.offload.placed import DeviceMap, block_map, load_placed
from depthscope.models.offload.residency import Residency
from depthscope.models.offload.streaming import check_choice, keep_blocks_out, load_deferred, load_state, to_stream
from depthscope.models.quiet import quiet
from depthscope.models.tokenizer import load_tokenizer, try_tokenizer
from depthscope.schema.manifest import GgufEntry

AUTO = "auto"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@dataclass(slots=True, kw_only=True)
class Loaded:
    """What transformers loaded, and from where."""

    hf: PreTrainedModel
    name: str
    commit: str | None
    tokenizer: PreTrainedTokenizerBase | None = None
    residency: Residency | None = None
    unused: list[str] = field(default_factory=list)
    gguf: GgufEntry | None = None
    dequantised: str | None = None
    folder: Path | None = None


def from_files(
    source: str,
    revision: str | None,
    dtype: str,
    device: torch.device,
    stream: str,
    device_map: DeviceMap | None = None,
    quantize: str | None = None,
) -> Loaded:
    """The model of a folder, file or hub that `source` names, with its tokenizer.

    Raises ModelError for files that are not one causal language model, whole and finite, UnsupportedError for what cannot be
    combined, and MemoryShortError for a model larger than the memory.
    """
    dtype_of(dtype, gguf=False)  # before anything is looked for
    if quantize is not None:
        check_quantize(quantize)
    check_choice(stream)
    place = locate(source, revision)
    if place.gguf is not None:
        if device_map is not None:
            raise UnsupportedError(f"{source} is a GGUF file, which is loaded onto one device: leave out --device-map")
        if quantize is not None:
            raise UnsupportedError(f"{source} is a GGUF file, quantised already: leave out --quantize {quantize}")
        return _from_gguf(source, place.gguf, dtype, device, stream, place.commit)
    stream = "no" if device_map is not None else stream
    return _from_safetensors(source, place, dtype_of(dtype, gguf=False), device, stream, device_map, quantize)


def _from_safetensors(
    source: str,
    place: Place,
    dtype: torch.dtype,
    device: torch.device,
    stream: str,
    device_map: DeviceMap | None,
    quantize: str | None,
) -> Loaded:
    raw, files = check_folder(place.folder), weight_files(place.folder)
    check_quantisation(raw, source)
    raw = prepared(raw, source)
    quantised_here = quantizing(raw, quantize, dtype, source)
    headers = read_headers(files)
    shapes = [shape for header in headers for shape in header.shapes]
    check_numbers(raw, shapes, str(place.folder / CONFIG))
    index, links = weight_links(place.folder, files) if _quantised(raw) or quantised_here else ({}, [])
    with private_folder({**staged(raw, tokenizer_files(place.folder)), **index}, links) as private:
        config = read_config(private, source)
        config.name_or_path = source if place.commit else str(place.folder)  # what transformers itself would record
        made_by = model_class(config, source)
        settings = _settings(config, made_by, dtype) | quantised_here
        stored = None if links else stored_tensors(headers)
        streamed = to_stream(source, stored, stream, dtype, device)
        asked = Asked(source, made_by, config, shapes, dtype, device)
        asked.check(
            resident=not (streamed or device_map or quantised_here), quantised=stored is None and not quantised_here
        )
        if device_map is not None and stored is None:
            raise UnsupportedError(
                f"the weights of {source} are quantised, and loaded onto one device: leave out --device-map"
            )
        with model_errors(f"the weights of {source} cannot be loaded", config, private, source), quiet():
            hf: Any
            if stored is None:
                hf, loading = made_by.from_pretrained(
                    str(private), use_safetensors=True, output_loading_info=True, **settings
                )
            elif device_map is not None:
                placed = block_map(device_map, made_by, config, dtype, source)
                hf, loading = load_placed(made_by, stored, placed, **settings)
            else:
                hf, loading = (load_deferred if streamed else load_state)(made_by, stored, **settings)
            _check_loading(source, hf, loading)
            residency = keep_blocks_out(hf, device) if streamed else None
            hf = hf if residency or device_map is not None else hf.to(device)
        hf.name_or_path = hf.config.name_or_path = config.name_or_path
        tokenizer = load_tokenizer(private, source, config)
    return Loaded(
        hf=hf,
        name=source.rstrip("/"),
        commit=place.commit,
        tokenizer=tokenizer,
        residency=residency,
        unused=_unused(loading),
        dequantised=dequantised(raw),
        folder=place.folder,
    )


def _from_gguf(source: str, file: Path, dtype: str, device: torch.device, stream: str, commit: str | None) -> Loaded:
    entry = read_entry(file)
    if source in NAMED and entry.sha256 != NAMED[source].sha256:
        raise ModelError(
            f"{file} has SHA-256 {entry.sha256}, expected {NAMED[source].sha256}: delete it and get {source} again"
        )
    check_not_streamed(stream, source)
    # A folder with the file alone: transformers would look for adapters and settings next to it.
    with private_folder({}, [(file.name, file)]) as private:
        config = read_config(private, str(file), file.name)
        made_by = model_class(config, source)
        settings = _settings(config, made_by, dtype_of(dtype, gguf=True))
        shapes = [tensor.shape for tensor in read_header(file).tensors]
        check_numbers(config.to_dict(), shapes, str(file))
        Asked(source, made_by, config, shapes, settings["dtype"], device).check(resident=True, quantised=False)
        with model_errors(f"the weights of {source} cannot be loaded", config, private, source), quiet():
            hf: Any
            hf, loading = load_gguf(made_by, private / file.name, **settings)
            _check_loading(source, hf, loading)
            hf = hf.to(device)
        hf.name_or_path = hf.config.name_or_path = source
        with model_errors(f"the tokenizer of {source} cannot be loaded", None, private, source), quiet():
            tokenizer = gguf_tokenizer(private / file.name)
        if tokenizer is not None:
            tokenizer.name_or_path = source
            try_tokenizer(tokenizer, source)
    return Loaded(
        hf=hf,
        name=source.rstrip("/"),
        commit=commit,
        tokenizer=tokenizer,
        unused=_unused(loading),
        gguf=entry,
        folder=file.parent,
    )


def _settings(config: Any, made_by: Any, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_pretrained` is given for every kind of file."""
    return {
        "config": config,
        "dtype": dtype,
        "attn_implementation": "sdpa" if getattr(made_by, "_supports_sdpa", False) else "eager",
        "ignore_mismatched_sizes": True,  # reported by _check_loading, with names
    }


def _quantised(config: dict[str, Any]) -> bool:
    """Whether a configuration, or one within it, declares quantised weights."""
    return any(
        bool(value) if key == "quantization_config" else isinstance(value, dict) and _quantised(value)
        for key, value in config.items()
    )


def _unused(loading: dict[str, Any]) -> list[str]:
    return sorted(name for name in set(loading["unexpected_keys"]) if not HARMLESS.search(name))


def _check_loading(source: str, hf: PreTrainedModel, loading: dict[str, Any]) -> None:
    """Raise ModelError unless every weight of the model came from the checkpoint, as it lies there."""
    if wrong := sorted(loading["mismatched_keys"]):
        name, stored, expected = wrong[0]
        others = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise ModelError(
            f"the weights of {source} do not fit its config.json: {name} is stored as {list(stored)}, but the model has "
            f"{list(expected)}{others}. One of the two files belongs to another model"
        )
    if missing := sorted(set(loading["missing_keys"])):
        raise ModelError(
            f"the weights of {source} lack {len(missing)} tensors the model needs (they would be random): "
            f"{', '.join(missing[:4])}{' …' if len(missing) > 4 else ''}"
        )
    if getattr(hf, "_hf_peft_config_loaded", False):
        raise ModelError(f"{source} holds an adapter next to the model's weights. {ADAPTER}")


def dtype_of(name: str, gguf: bool) -> torch.dtype:
    """The dtype of a name, AUTO included. Raises ModelError for another name."""
    if name == AUTO:
        return torch.bfloat16 if gguf else torch.float32
    if name not in DTYPES:
        raise ModelError(f"unknown dtype {name!r}: expected one of {', '.join([AUTO, *DTYPES])}")
    return DTYPES[name]

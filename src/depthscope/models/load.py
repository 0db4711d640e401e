"""Loading: a Hugging Face id, a folder, a GGUF file, an embedded model or a transformers model, checked before it is used.

Only safetensors and GGUF are read and no code from a model's repository is run; there is no switch for either.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from depthscope.errors import ModelError, UnsupportedError
from depthscope.models.adapter import put_adapter
from depthscope.models.admitted import CONFIG, private_folder, staged, tokenizer_files, weight_files, weight_links
from depthscope.models.configuration import (
    check_quantisation,
    fetch,
    hub_folder,
    model_class,
    model_errors,
    read_config,
    reason,
)
from depthscope.models.folder import ADAPTER, HARMLESS, check_folder, unused_message
from depthscope.models.formats import dequantised, prepared
from depthscope.models.gguf import (
    SUFFIX,
    check_not_streamed,
    choose,
    choose_on_hub,
    gguf_tokenizer,
    load_gguf,
    read_entry,
)
from depthscope.models.gguf_header import read_header
from depthscope.models.limits import Asked, check_numbers
from depthscope.models.memory import LOADING, memory_errors, require_headroom
from depthscope.models.model import PROBE_TEXT, Model
from depthscope.models.named import NAMED
from depthscope.models.offload.checkpoint import read_headers, stored_tensors
from depthscope.models.offload.placed import DeviceMap, block_map, check_placing, load_placed
from depthscope.models.offload.residency import Residency
from depthscope.models.offload.streaming import check_choice, keep_blocks_out, load_deferred, load_state, to_stream
from depthscope.models.packages import require_named
from depthscope.models.quiet import quiet
from depthscope.models.tokenizer import load_tokenizer, try_tokenizer
from depthscope.models.verify import require_verified
from depthscope.printable import shown
from depthscope.schema.manifest import GgufEntry

EMBEDDED = Path(__file__).parent / "bookshelf"
DEFAULT = "bookshelf-gpt2"
AUTO = "auto"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def embedded() -> list[str]:
    """Names of the models that ship with depthscope."""
    return sorted(folder.name for folder in EMBEDDED.iterdir() if (folder / "config.json").exists())


@memory_errors("load the model", "Use --stream yes, --dtype bfloat16, or a smaller model")
def load(
    source: str | Path | nn.Module = DEFAULT,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    dtype: str = AUTO,
    device: str = "auto",
    stream: str = "auto",
    device_map: DeviceMap | None = None,
    adapter: str | Path | None = None,
    unused_tensors: str = "refuse",
    verify: bool = True,
) -> Model:
    """Load a causal language model and check that replay gives its own logits.

    `source` is the name of an embedded model or of a published one (`depthscope models`), a folder with config.json and
    safetensors, a GGUF file or a folder with one (FOLDER#FILE of several), a Hugging Face id, or a transformers model that is
    loaded already (then `dtype` and `device` are its own). `dtype` "auto" is float32, or bfloat16 for GGUF. Of a model that
    also takes images or sound, the text model is studied, on text alone. `device` "auto" takes CUDA where there is one.
    `stream` "yes" leaves the blocks on disk (with CUDA in the host's memory, where they fit) and reads each when it is run,
    one thread using the model at a time; "auto" does so where the weights would take more than 70% of the memory available.
    The weights are the same, and so are the numbers except for the rounding of packed products (`kernels`). GGUF files are
    not streamed. `device_map` puts the blocks on several devices or on disk (`offload.placed`) by accelerate: "auto",
    "balanced", a JSON file, or a mapping from module paths to devices. `adapter` is a folder or Hugging Face id of a
    PEFT adapter to put into the model (`Model.adapter`). `unused_tensors` "ignore" loads a checkpoint with tensors the model
    does not use (`Model.unused` names them).

    Raises ModelError (not found, not trusted, not a causal LM, broken weights), UnsupportedError (no blocks to take apart,
    or cannot be streamed), VerificationError (replay is not the model), NumericError (NaN in the weights) or MemoryShortError.
    """
    require_headroom("loading a model", LOADING)
    if adapter is not None and stream == "yes":
        raise UnsupportedError(
            "a model with an adapter cannot be streamed: merge the adapter and save the result first"
        )
    check_placing(device_map, device, stream, adapter)
    if isinstance(source, PreTrainedModel):
        loaded = _handed_in(source, revision, stream, device_map)
    elif isinstance(source, str | Path):
        if unused_tensors not in ("refuse", "ignore"):
            raise ModelError(f"unused_tensors is {unused_tensors!r}: expected 'refuse' or 'ignore'")
        stream = "no" if adapter is not None else stream
        loaded = _from_pretrained(str(source), revision, dtype, _device(device), stream, device_map)
        if loaded.unused and unused_tensors == "refuse":
            raise ModelError(unused_message(loaded.name, loaded.unused))
    else:
        raise ModelError(_no_source(source))
    put = None
    if adapter is not None:
        loaded.hf, put = put_adapter(loaded.hf, adapter)
    loaded.tokenizer = tokenizer or loaded.tokenizer
    model = _taken_apart(loaded, verify)
    model.adapter = put
    if isinstance(source, str | Path):
        model.source = {
            **_again(model, str(source), adapter, device_map),
            "tokenizer": tokenizer,
            "revision": loaded.commit or revision,
            "dtype": dtype,
            "unused_tensors": unused_tensors,
        }
    return model


def _handed_in(source: PreTrainedModel, revision: str | None, stream: str, device_map: DeviceMap | None) -> "_Loaded":
    if device_map is not None:
        raise UnsupportedError(
            "a model that is loaded already is where it is: give its folder with --device-map instead"
        )
    if stream == "yes":
        raise UnsupportedError("a model that is loaded already cannot be streamed: give its folder instead")
    return _Loaded(hf=source, name=source.name_or_path or type(source).__name__, commit=revision)


def _again(model: Model, source: str, adapter: str | Path | None, device_map: DeviceMap | None) -> dict[str, Any]:
    """Arguments by which another process in another directory loads the same model the same way."""
    return {
        "source": _anywhere(source),
        "device": model.device.type if device_map is None else "auto",
        "device_map": _anywhere(device_map) if isinstance(device_map, str) else device_map,
        "stream": "yes" if model.stack.streamed else "no",
        "adapter": None if adapter is None else _anywhere(str(adapter)),
        "verify": False,  # whoever loads it again compares it with this one
    }


def _anywhere(source: str) -> str:
    """The name of a model or adapter as it is known in other directories too."""
    path, sign, file = source.partition("#")
    if source in embedded() or source in NAMED or not Path(path).expanduser().exists():
        return source
    return f"{Path(path).expanduser().resolve()}{sign}{file}"


@dataclass(slots=True, kw_only=True)
class _Loaded:
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


def _taken_apart(loaded: _Loaded, verify: bool) -> Model:
    # A family may do anything between its blocks: any failure means that replay does not fit it.
    what = f"{loaded.name} ({loaded.hf.config.model_type}) cannot be taken apart: replaying its blocks one by one fails"
    with model_errors(what, kind=UnsupportedError, name_kind=True):
        model = Model(loaded.hf, loaded.tokenizer, loaded.name, loaded.commit, loaded.residency)
        model.unused, model.gguf, model.folder = tuple(loaded.unused), loaded.gguf, loaded.folder
        model.dequantised = loaded.dequantised
        _ = model.facts  # looks for attention and MLP too
        _check_vocabulary(model)
        if verify:
            require_verified(model)
    return model


def _dtype(name: str, gguf: bool) -> torch.dtype:
    if name == AUTO:
        return torch.bfloat16 if gguf else torch.float32
    if name not in DTYPES:
        raise ModelError(f"unknown dtype {name!r}: expected one of {', '.join([AUTO, *DTYPES])}")
    return DTYPES[name]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"device {name!r} cannot be used: {reason(error)}. Expected auto, cpu, cuda or cuda:N"
        ) from error
    return device


def _from_pretrained(
    source: str,
    revision: str | None,
    dtype: str,
    device: torch.device,
    stream: str,
    device_map: DeviceMap | None = None,
) -> _Loaded:
    _dtype(dtype, gguf=False)  # before anything is looked for
    check_choice(stream)
    place = _located(source, revision)
    if place.gguf is not None:
        if device_map is not None:
            raise UnsupportedError(f"{source} is a GGUF file, which is loaded onto one device: leave out --device-map")
        return _from_gguf(source, place.gguf, dtype, device, stream, place.commit)
    raw, files = check_folder(place.folder), weight_files(place.folder)
    check_quantisation(raw, source)
    raw = prepared(raw, source)
    headers = read_headers(files)
    shapes = [shape for header in headers for shape in header.shapes]
    check_numbers(raw, shapes, str(place.folder / CONFIG))
    index, links = weight_links(place.folder, files) if _quantised(raw) else ({}, [])
    with private_folder({**staged(raw, tokenizer_files(place.folder)), **index}, links) as private:
        config = read_config(private, source)
        config.name_or_path = source if place.commit else str(place.folder)  # what transformers itself would record
        made_by = model_class(config, source)
        settings = _settings(config, made_by, _dtype(dtype, gguf=False))
        stored = None if links else stored_tensors(headers)
        stream = "no" if device_map is not None else stream
        streamed = to_stream(source, stored, stream, settings["dtype"], device)
        asked = Asked(source, made_by, config, shapes, settings["dtype"], device)
        asked.check(resident=not streamed and device_map is None, quantised=stored is None)
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
                placed = block_map(device_map, made_by, config, settings["dtype"], source)
                hf, loading = load_placed(made_by, stored, placed, **settings)
            else:
                hf, loading = (load_deferred if streamed else load_state)(made_by, stored, **settings)
            _check_loading(source, hf, loading)
            residency = keep_blocks_out(hf, device) if streamed else None
            hf = hf if residency or device_map is not None else hf.to(device)
        hf.name_or_path = hf.config.name_or_path = config.name_or_path
        tokenizer = load_tokenizer(private, source, config)
    return _Loaded(
        hf=hf,
        name=source.rstrip("/"),
        commit=place.commit,
        tokenizer=tokenizer,
        residency=residency,
        unused=_unused(loading),
        dequantised=dequantised(raw),
        folder=place.folder,
    )


def _from_gguf(source: str, file: Path, dtype: str, device: torch.device, stream: str, commit: str | None) -> _Loaded:
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
        settings = _settings(config, made_by, _dtype(dtype, gguf=True))
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
    return _Loaded(
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


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a model is."""

    folder: Path
    commit: str | None = None
    gguf: Path | None = None
    """The file with the model, where it is GGUF."""


def _located(source: str, revision: str | None) -> _Place:
    place = _located_here(source)
    if place is not None and revision is not None:
        raise ModelError(
            f"{source} is on this machine and has no revision {shown(revision)}: leave --revision out, or name the "
            "checkpoint's folder"
        )
    return _on_hub(source, revision) if place is None else place


def _located_here(source: str) -> _Place | None:
    """Where a model on this machine is; None for a name that can only be one of a hub."""
    path, _, file = source.partition("#")
    if source in NAMED:
        named = require_named(source)
        return _Place(named.parent, None, named)
    try:
        folder = EMBEDDED / source if source in embedded() else Path(path).expanduser()
        there, is_folder = folder.exists(), folder.is_dir()
    except (OSError, ValueError, RuntimeError) as error:  # too long, a null character, no home of that name
        raise ModelError(f"{source[:200]!r} cannot be the name of a model or folder: {error}"[:400]) from error
    if folder.is_file() and folder.suffix.lower() == SUFFIX and not file:
        return _Place(folder.parent, None, folder)
    if is_folder:
        return _Place(folder, None, choose(folder, file or None, path))
    if there or path.startswith((".", "/", "~")) or path.count("/") > 1 or path.endswith(SUFFIX):
        raise ModelError(
            f"no model folder at {source}: expected a folder with config.json and model.safetensors, one with a GGUF file, or "
            "such a file"
        )
    return None


def _on_hub(source: str, revision: str | None) -> _Place:
    path, _, file = source.partition("#")
    location, commit = hub_folder(path, revision, [*embedded(), *NAMED])
    gguf = choose_on_hub(location, file or None, path, revision)
    if gguf is not None:
        return _Place(gguf.parent, commit, gguf)
    folder = Path(location) if commit is not None else fetch(location, revision)
    return _Place(folder, folder.name)


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


def _no_source(source: object) -> str:
    if hasattr(source, "merge_and_unload"):
        return "expected a transformers model, got one wrapped in an adapter: give model.get_base_model() or the merged model"
    return f"expected the name of a model, a folder or a transformers model, got {type(source).__name__}"


def _check_vocabulary(model: Model) -> None:
    """A tokenizer may have entries that the embedding lacks (for images), but not those that plain text consists of."""
    if model.tokenizer is None:
        return
    highest = max(model.tokenize(PROBE_TEXT), default=0)
    if highest >= model.known_tokens:
        raise ModelError(
            f"the tokenizer of {model.name} makes token {highest} of plain English, but the model has "
            f"{model.known_tokens} only: expected the tokenizer the model was trained with"
        )

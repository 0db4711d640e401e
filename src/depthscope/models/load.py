"""Loading: a Hugging Face id, a folder, a GGUF file, an embedded model or a transformers model, checked before it is used.

Only safetensors and GGUF are read and no code from a model's repository is run; there is no switch for either.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from depthscope.errors import DepthscopeError, ModelError, UnsupportedError
from depthscope.models.adapter import put_adapter
from depthscope.models.configuration import hub_folder, model_class, read_config, reason
from depthscope.models.folder import ADAPTER, HARMLESS, check_folder, unused_message
from depthscope.models.gguf import (
    SUFFIX,
    check_not_streamed,
    choose,
    choose_on_hub,
    gguf_tokenizer,
    load_gguf,
    read_entry,
)
from depthscope.models.model import PROBE_TEXT, Model
from depthscope.models.named import NAMED
from depthscope.models.offload.residency import Residency
from depthscope.models.offload.streaming import checkpoint_to_stream, keep_blocks_out, load_deferred
from depthscope.models.packages import require_named
from depthscope.models.quiet import quiet
from depthscope.models.verify import require_verified
from depthscope.schema.manifest import GgufEntry

EMBEDDED = Path(__file__).parent / "bookshelf"
DEFAULT = "bookshelf-gpt2"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
AUTO = "auto"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def embedded() -> list[str]:
    """Names of the models that ship with depthscope."""
    return sorted(folder.name for folder in EMBEDDED.iterdir() if (folder / "config.json").exists())


def load(
    source: str | Path | nn.Module = DEFAULT,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    dtype: str = AUTO,
    device: str = "auto",
    stream: str = "auto",
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
    not streamed. `adapter` is a folder or Hugging Face id of a
    PEFT adapter to put into the model (`Model.adapter`). `unused_tensors` "ignore" loads a checkpoint with tensors the model
    does not use (`Model.unused` names them).

    Raises ModelError (not found, not trusted, not a causal LM, broken weights), UnsupportedError (no blocks to take apart,
    or cannot be streamed), VerificationError (replay is not the model) or NumericError (NaN in the weights).
    """
    if adapter is not None and stream == "yes":
        raise UnsupportedError(
            "a model with an adapter cannot be streamed: merge the adapter and save the result first"
        )
    if isinstance(source, PreTrainedModel):
        if stream == "yes":
            raise UnsupportedError("a model that is loaded already cannot be streamed: give its folder instead")
        loaded = _Loaded(hf=source, name=source.name_or_path or type(source).__name__, commit=revision)
    elif isinstance(source, str | Path):
        if unused_tensors not in ("refuse", "ignore"):
            raise ModelError(f"unused_tensors is {unused_tensors!r}: expected 'refuse' or 'ignore'")
        stream = "no" if adapter is not None else stream
        loaded = _from_pretrained(str(source), revision, dtype, _device(device), stream)
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
    return model


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


def _taken_apart(loaded: _Loaded, verify: bool) -> Model:
    try:
        model = Model(loaded.hf, loaded.tokenizer, loaded.name, loaded.commit, loaded.residency)
        model.unused, model.gguf = tuple(loaded.unused), loaded.gguf
        _ = model.facts  # looks for attention and MLP too
        _check_vocabulary(model)
        if verify:
            require_verified(model)
    except DepthscopeError:
        raise
    except (
        Exception
    ) as error:  # a family may do anything between its blocks: any failure means that replay does not fit it
        raise UnsupportedError(
            f"{loaded.name} ({loaded.hf.config.model_type}) cannot be taken apart: replaying its blocks one by one fails with "
            f"{type(error).__name__}: {reason(error)}"
        ) from error
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


def _from_pretrained(source: str, revision: str | None, dtype: str, device: torch.device, stream: str) -> _Loaded:
    _dtype(dtype, gguf=False)  # before anything is looked for
    place = _located(source, revision)
    location, gguf = place.location, place.gguf
    entry = None if gguf is None else read_entry(gguf)
    if entry is not None and source in NAMED and entry.sha256 != NAMED[source].sha256:
        raise ModelError(
            f"{gguf} has SHA-256 {entry.sha256}, expected {NAMED[source].sha256}: delete it and get {source} again"
        )
    config = read_config(location, source, revision, gguf)
    made_by = model_class(config, source)
    settings = {
        "config": config,
        "dtype": _dtype(dtype, gguf is not None),
        "attn_implementation": "sdpa" if getattr(made_by, "_supports_sdpa", False) else "eager",
        "ignore_mismatched_sizes": True,  # reported by _check_loading, with names
    }
    stored = None
    hf: Any
    try:
        with quiet():
            if gguf is not None:
                check_not_streamed(stream, source)
                hf, loading = load_gguf(made_by, gguf, **settings)
            elif stored := checkpoint_to_stream(location, revision, config, stream, settings["dtype"], device):
                hf, loading = load_deferred(made_by, stored, **settings)
            else:
                hf, loading = made_by.from_pretrained(
                    location, revision=revision or "main", use_safetensors=True, output_loading_info=True, **settings
                )
    except DepthscopeError:
        raise
    except Exception as error:  # files, shapes, packages that a quantisation needs: every kind there is
        raise ModelError(f"the weights of {source} cannot be loaded: {reason(error, config)}") from error
    _check_loading(source, hf, loading)
    residency = keep_blocks_out(hf, device) if stored else None
    return _Loaded(
        hf=hf if residency else hf.to(device),
        name=source.rstrip("/"),
        commit=getattr(config, "_commit_hash", None) or place.commit,
        tokenizer=_tokenizer(location, source, revision, gguf),
        residency=residency,
        unused=sorted(name for name in set(loading["unexpected_keys"]) if not HARMLESS.search(name)),
        gguf=entry,
    )


@dataclass(frozen=True, slots=True)
class _Place:
    """Where transformers is to look for a model."""

    location: str
    """A folder or a Hugging Face id."""
    commit: str | None = None
    gguf: Path | None = None
    """The file with the model, where it is GGUF."""


def _located(source: str, revision: str | None) -> _Place:
    path, _, file = source.partition("#")
    if source in NAMED:
        named = require_named(source)
        return _Place(str(named.parent), None, named)
    folder = EMBEDDED / source if source in embedded() else Path(path).expanduser()
    if folder.is_file() and folder.suffix.lower() == SUFFIX and not file:
        return _Place(str(folder.parent), None, folder)
    if folder.is_dir():
        gguf = choose(folder, file or None, path)
        if gguf is None:
            check_folder(folder)
        return _Place(str(folder), None, gguf)
    if folder.exists() or path.startswith((".", "/", "~")) or path.count("/") > 1 or path.endswith(SUFFIX):
        raise ModelError(
            f"no model folder at {source}: expected a folder with config.json and model.safetensors, one with a GGUF file, or "
            "such a file"
        )
    location, commit = hub_folder(path, revision, [*embedded(), *NAMED])
    gguf = choose_on_hub(location, file or None, path, revision)
    return _Place(location if gguf is None else str(gguf.parent), commit, gguf)


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


def _tokenizer(location: str, source: str, revision: str | None, gguf: Path | None) -> PreTrainedTokenizerBase | None:
    """The tokenizer in the same folder or GGUF file, None where there is none (the model can still be studied on token
    ids)."""
    folder = Path(location)
    try:
        with quiet():
            if gguf is not None:
                return gguf_tokenizer(gguf)
            if folder.is_dir() and not any((folder / name).exists() for name in TOKENIZER_FILES):
                return None
            return AutoTokenizer.from_pretrained(location, revision=revision or "main", trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises plain Exception
        raise ModelError(f"the tokenizer of {source} cannot be loaded: {reason(error)}") from error


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

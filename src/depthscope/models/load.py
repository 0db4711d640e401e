"""Loading: a Hugging Face id, a local folder, an embedded model or a transformers model, checked before it is used.

Only safetensors are read and no code from a model's repository is run; there is no switch for either.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from depthscope.errors import DepthscopeError, ModelError, UnsupportedError
from depthscope.models.adapter import put_adapter
from depthscope.models.configuration import hub_folder, model_class, read_config, reason
from depthscope.models.folder import ADAPTER, HARMLESS, check_folder, unused_message
from depthscope.models.model import PROBE_TEXT, Model
from depthscope.models.offload.residency import Residency
from depthscope.models.offload.streaming import checkpoint_to_stream, keep_blocks_out, load_deferred
from depthscope.models.quiet import quiet
from depthscope.models.verify import require_verified

EMBEDDED = Path(__file__).parent / "bookshelf"
DEFAULT = "bookshelf-gpt2"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def embedded() -> list[str]:
    """Names of the models that ship with depthscope."""
    return sorted(folder.name for folder in EMBEDDED.iterdir() if (folder / "config.json").exists())


def load(
    source: str | Path | nn.Module = DEFAULT,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    revision: str | None = None,
    dtype: str = "float32",
    device: str = "auto",
    stream: str = "auto",
    adapter: str | Path | None = None,
    unused_tensors: str = "refuse",
    verify: bool = True,
) -> Model:
    """Load a causal language model and check that replay gives its own logits.

    `source` is the name of an embedded model, a folder with config.json and safetensors, a Hugging Face id, or a
    transformers model that is loaded already (then `dtype` and `device` are its own). Of a model that also takes images or
    sound, the text model is studied, on text alone. `device` "auto" takes CUDA where there is one. `stream` "yes" leaves the
    blocks on disk (with CUDA in the host's memory, where they fit) and reads each when it is run, one thread using the model
    at a time; "auto" does so where the weights would take more than 70% of the memory available. The weights are the same, and
    so are the numbers except for the rounding of packed products (`kernels`). `adapter` is a folder or Hugging Face id of a
    PEFT adapter to put into the model (`Model.adapter`). `unused_tensors` "ignore" loads a checkpoint with tensors the model
    does not use (`Model.unused` names them).

    Raises ModelError (not found, not trusted, not a causal LM, broken weights), UnsupportedError (no blocks to take apart,
    or cannot be streamed), VerificationError (replay is not the model) or NumericError (NaN in the weights).
    """
    if adapter is not None and stream == "yes":
        raise UnsupportedError(
            "a model with an adapter cannot be streamed: merge the adapter and save the result first"
        )
    residency, found, unused = None, None, ()
    if isinstance(source, PreTrainedModel):
        if stream == "yes":
            raise UnsupportedError("a model that is loaded already cannot be streamed: give its folder instead")
        hf, name, commit = source, source.name_or_path or type(source).__name__, revision
    elif isinstance(source, str | Path):
        if unused_tensors not in ("refuse", "ignore"):
            raise ModelError(f"unused_tensors is {unused_tensors!r}: expected 'refuse' or 'ignore'")
        stream = "no" if adapter is not None else stream
        hf, residency, found, name, commit, unused = _from_pretrained(
            str(source), revision, _dtype(dtype), _device(device), stream
        )
        if unused and unused_tensors == "refuse":
            raise ModelError(unused_message(name, unused))
    else:
        raise ModelError(_no_source(source))
    put = None
    if adapter is not None:
        hf, put = put_adapter(hf, adapter)
    model = _taken_apart(hf, tokenizer or found, name, commit, residency, verify)
    model.unused, model.adapter = tuple(unused), put
    return model


def _taken_apart(
    hf: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    name: str,
    revision: str | None,
    residency: Residency | None,
    verify: bool,
) -> Model:
    try:
        model = Model(hf, tokenizer, name, revision, residency)
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
            f"{name} ({hf.config.model_type}) cannot be taken apart: replaying its blocks one by one fails with "
            f"{type(error).__name__}: {reason(error)}"
        ) from error
    return model


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ModelError(f"unknown dtype {name!r}: expected one of {', '.join(DTYPES)}")
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
    source: str, revision: str | None, dtype: torch.dtype, device: torch.device, stream: str
) -> tuple[PreTrainedModel, Residency | None, PreTrainedTokenizerBase | None, str, str | None, list[str]]:
    location, commit = _located(source, revision)
    config = read_config(location, source, revision)
    made_by = model_class(config, source)
    settings = {
        "config": config,
        "dtype": dtype,
        "attn_implementation": "sdpa" if getattr(made_by, "_supports_sdpa", False) else "eager",
        "ignore_mismatched_sizes": True,  # reported by _check_loading, with names
    }
    try:
        with quiet():
            stored = checkpoint_to_stream(location, revision, config, stream, dtype, device)
            if stored is not None:
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
    unused = sorted(name for name in set(loading["unexpected_keys"]) if not HARMLESS.search(name))
    residency = None if stored is None else keep_blocks_out(hf, device)
    hf = hf if residency else hf.to(device)
    commit = getattr(config, "_commit_hash", None) or commit
    return hf, residency, _tokenizer(location, source, revision), source.rstrip("/"), commit, unused


def _located(source: str, revision: str | None) -> tuple[str, str | None]:
    """Where transformers is to look for a model, and its commit where that is known."""
    folder = EMBEDDED / source if source in embedded() else Path(source).expanduser()
    if folder.is_dir():
        check_folder(folder)
        return str(folder), None
    if folder.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise ModelError(f"no model folder at {source}: expected a folder with config.json and model.safetensors")
    return hub_folder(source, revision, embedded())


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


def _tokenizer(location: str, source: str, revision: str | None) -> PreTrainedTokenizerBase | None:
    """The tokenizer in the same folder, None where there is none (the model can still be studied on token ids)."""
    folder = Path(location)
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
    if folder.is_dir() and not any((folder / name).exists() for name in names):
        return None
    try:
        with quiet():
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

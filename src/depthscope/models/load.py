"""Loading: a Hugging Face id, a local folder, an embedded model or a transformers model, checked before it is used.

Only safetensors are read and no code from a model's repository is run; there is no switch for either.
"""

import logging
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from depthscope.errors import DepthscopeError, ModelError, UnsupportedError
from depthscope.models.folder import ADAPTER, HARMLESS, check_folder, check_trust, unused_message
from depthscope.models.model import Model
from depthscope.models.residency import Residency
from depthscope.models.streaming import checkpoint_to_stream, keep_blocks_out, load_deferred
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
    unused_tensors: str = "refuse",
    verify: bool = True,
) -> Model:
    """Load a causal language model and check that replay gives its own logits.

    `source` is the name of an embedded model, a folder with config.json and safetensors, a Hugging Face id, or a
    transformers model that is loaded already (then `dtype` and `device` are its own). `device` "auto" takes CUDA where
    there is one. `stream` "yes" leaves the blocks on disk (beside CUDA in the host's memory, where they fit) and reads each
    when it is run, one thread using the model at a time; "auto" does so where the weights would take more than 70% of the
    memory available. The weights are the same, and so are the numbers but for the rounding of packed products (`kernels`).
    `unused_tensors` "ignore" loads a checkpoint that holds tensors the model has no use for (`Model.unused` names them).

    Raises ModelError (not found, not trusted, not a causal LM, broken weights), UnsupportedError (no blocks to take apart,
    or cannot be streamed), VerificationError (replay is not the model) or NumericError (NaN in the weights).
    """
    if isinstance(source, PreTrainedModel):
        if stream == "yes":
            raise UnsupportedError("a model that is loaded already cannot be streamed: give its folder instead")
        model = _taken_apart(source, tokenizer, source.name_or_path or type(source).__name__, revision)
    elif isinstance(source, str | Path):
        if unused_tensors not in ("refuse", "ignore"):
            raise ModelError(f"unused_tensors is {unused_tensors!r}: expected 'refuse' or 'ignore'")
        hf, residency, found, name, commit, unused = _from_pretrained(
            str(source), revision, _dtype(dtype), _device(device), stream
        )
        if unused and unused_tensors == "refuse":
            raise ModelError(unused_message(name, unused))
        model = _taken_apart(hf, tokenizer or found, name, commit, residency)
        model.unused = tuple(unused)
    else:
        raise ModelError(_no_source(source))
    if model.tokenizer is not None:
        _check_vocabulary(model)
    if verify:
        require_verified(model)
    return model


def _taken_apart(
    hf: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    name: str,
    revision: str | None,
    residency: Residency | None = None,
) -> Model:
    try:
        model = Model(hf, tokenizer, name, revision, residency)
        _ = model.facts  # looks for attention and MLP too
    except DepthscopeError:
        raise
    except Exception as error:  # a family may do anything between its blocks; whatever goes wrong, it is not one for us
        raise UnsupportedError(
            f"{name} ({hf.config.model_type}) cannot be taken apart: replaying its blocks one by one fails with "
            f"{type(error).__name__}: {_first_line(error)}"
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
        reason = str(error).splitlines()[0]
        raise ModelError(f"device {name!r} cannot be used: {reason}. Expected auto, cpu, cuda or cuda:N") from error
    return device


def _from_pretrained(
    source: str, revision: str | None, dtype: torch.dtype, device: torch.device, stream: str
) -> tuple[PreTrainedModel, Residency | None, PreTrainedTokenizerBase | None, str, str | None, list[str]]:
    folder = EMBEDDED / source if source in embedded() else Path(source).expanduser()
    local = folder.is_dir()
    if local:
        check_folder(folder)
    elif folder.exists() or source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise ModelError(f"no model folder at {source}: expected a folder with config.json and model.safetensors")
    location = str(folder) if local else source
    config = _config(location, source, revision)
    settings = {
        "config": config,
        "dtype": dtype,
        "attn_implementation": "sdpa" if _has_sdpa(config) else "eager",
    }
    with _quiet():
        try:
            stored = checkpoint_to_stream(location, revision, config, stream, dtype, device)
            if stored is not None:
                hf, loading = load_deferred(_model_class(config), stored, **settings)
            else:
                hf, loading = _model_class(config).from_pretrained(
                    location, revision=revision or "main", use_safetensors=True, output_loading_info=True, **settings
                )
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise ModelError(f"the weights of {source} cannot be loaded: {_first_line(error)}") from error
    missing = sorted(set(loading["missing_keys"]))
    if missing:
        raise ModelError(
            f"the weights of {source} lack {len(missing)} tensors the model needs (they would be random): "
            f"{', '.join(missing[:4])}{' …' if len(missing) > 4 else ''}"
        )
    if getattr(hf, "_hf_peft_config_loaded", False):
        raise ModelError(f"{source} holds an adapter beside the model's weights. {ADAPTER}")
    unused = sorted(name for name in set(loading["unexpected_keys"]) if not HARMLESS.search(name))
    residency = None if stored is None else keep_blocks_out(hf, device)
    hf = hf if residency else hf.to(device)
    commit = getattr(config, "_commit_hash", None)
    return hf, residency, _tokenizer(location, revision), source.rstrip("/"), commit, unused


def _no_source(source: object) -> str:
    if hasattr(source, "merge_and_unload"):
        return "expected a transformers model, got one wrapped in an adapter: give model.get_base_model() or the merged model"
    return f"expected the name of a model, a folder or a transformers model, got {type(source).__name__}"


def _config(location: str, source: str, revision: str | None) -> Any:
    try:
        raw, _ = transformers.PretrainedConfig.get_config_dict(location, revision=revision or "main")
        check_trust(raw, f"{source} config.json")
        with _quiet():
            config = AutoConfig.from_pretrained(location, revision=revision or "main", trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"no model {source!r}: expected an embedded model ({', '.join(embedded())}), a folder with config.json, or a "
            f"Hugging Face id that can be reached. {_first_line(error)}"
        ) from error
    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    expected = (names,) if isinstance(names, str) else tuple(names or ())
    written = getattr(config, "architectures", None) or list(expected)
    if not expected or not set(written) & set(expected):
        raise ModelError(
            f"{source} is not a causal language model: it is a {', '.join(written) or config.model_type}, "
            f"expected {' or '.join(expected) if expected else 'an architecture that predicts the next token'}"
        )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"{source}: transformers has no causal language model for {type(config).__name__}")
    return config


def _has_sdpa(config: Any) -> bool:
    return bool(getattr(_model_class(config), "_supports_sdpa", False))


def _model_class(config: Any) -> Any:
    found = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return found[0] if isinstance(found, tuple) else found


def _tokenizer(location: str, revision: str | None) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside the weights, None where there is none (the model can still be studied on token ids)."""
    folder = Path(location)
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tokenizer_config.json")
    if folder.is_dir() and not any((folder / name).exists() for name in names):
        return None
    with _quiet():
        try:
            return AutoTokenizer.from_pretrained(location, revision=revision or "main", trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"the tokenizer of {location} cannot be loaded: {_first_line(error)}") from error


def _check_vocabulary(model: Model) -> None:
    embedding: Any = model.hf.get_input_embeddings()
    rows = embedding.weight.shape[0]
    size = len(model.tokenizer) if model.tokenizer is not None else 0
    if size > rows:
        raise ModelError(
            f"the tokenizer of {model.name} has {size} tokens, but its embedding only {rows} rows: "
            "expected the tokenizer the model was trained with"
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class _quiet:  # noqa: N801 - a context manager read as a word
    """Transformers' progress bars and advice off; its errors still rise."""

    def __enter__(self) -> None:
        self._level = transformers.utils.logging.get_verbosity()
        self._bars = transformers.utils.logging.is_progress_bar_enabled()
        transformers.utils.logging.set_verbosity(logging.CRITICAL)
        transformers.utils.logging.disable_progress_bar()
        self._caught = warnings.catch_warnings()
        self._caught.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *exc: object) -> None:
        self._caught.__exit__(None, None, None)
        transformers.utils.logging.set_verbosity(self._level)
        if self._bars:
            transformers.utils.logging.enable_progress_bar()

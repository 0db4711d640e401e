"""Loading: a Hugging Face id, a folder, a GGUF file, an embedded model or a transformers model, checked before it is used.

Only safetensors and GGUF are read and no code from a model's repository is run; there is no switch for either.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from depthscope.errors import ModelError, UnsupportedError
from depthscope.models.adapter import put_adapter
from depthscope.models.configuration import (
    model_errors,
    reason,
)
from depthscope.models.folder import unused_message
from depthscope.models.from_files import AUTO, Loaded, from_files
from depthscope.models.located import DEFAULT, embedded
from depthscope.models.memory import LOADING, memory_errors, require_headroom
from depthscope.models.model import PROBE_TEXT, Model
from depthscope.models.named import NAMED
from depthscope.models.offload.placed import DeviceMap, check_placing
from depthscope.models.verify import require_verified


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
    quantize: str | None = None,
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
    "balanced", a JSON file, or a mapping from module paths to devices. `quantize` quantises plain weights while they are
    loaded: "nf4" or "fp4" (bitsandbytes, 4 bits), "int8" (bitsandbytes, inputs rounded too) or "int8-weights" (torchao).
    `adapter` is a folder or Hugging Face id of a PEFT adapter to put into the model (`Model.adapter`). `unused_tensors`
    "ignore" loads a checkpoint with tensors the model does not use (`Model.unused` names them).

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
        loaded = _handed_in(source, revision, stream, device_map, quantize)
    elif isinstance(source, str | Path):
        if unused_tensors not in ("refuse", "ignore"):
            raise ModelError(f"unused_tensors is {unused_tensors!r}: expected 'refuse' or 'ignore'")
        stream = "no" if adapter is not None else stream
        loaded = from_files(str(source), revision, dtype, _device(device), stream, device_map, quantize)
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
            "quantize": quantize,
            "unused_tensors": unused_tensors,
        }
    return model


def _handed_in(
    source: PreTrainedModel, revision: str | None, stream: str, device_map: DeviceMap | None, quantize: str | None
) -> Loaded:
    if device_map is not None:
        raise UnsupportedError(
            "a model that is loaded already is where it is: give its folder with --device-map instead"
        )
    if stream == "yes":
        raise UnsupportedError("a model that is loaded already cannot be streamed: give its folder instead")
    if quantize is not None:
        raise UnsupportedError(
            f"a model that is loaded already has its weights: give its folder with --quantize {quantize} instead"
        )
    return Loaded(hf=source, name=source.name_or_path or type(source).__name__, commit=revision)


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


def _taken_apart(loaded: Loaded, verify: bool) -> Model:
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

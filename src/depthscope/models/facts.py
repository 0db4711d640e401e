"""What `depthscope info` says of a model, and how its parameters are counted."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What `depthscope info` says of a model."""

    name: str
    family: str
    revision: str | None
    layers: int
    d_model: int
    heads: int | None
    """Query heads of a block. This and the four below are of the last block, None where there are none."""
    kv_heads: int | None
    """Heads of keys and values, fewer than `heads` where queries share them."""
    head_width: int | None
    mlp_width: int | None
    """Neurons of a dense MLP, or of one routed expert."""
    experts: int | None
    """Routed experts of a block."""
    vocabulary: int
    context: int | None
    parameters: int
    """Parameters of the model as it computes; `stored` are the elements of its tensors (fewer where several are packed in
    one)."""
    stored: int
    quantisation: str | None
    """transformers' name of the method, None for plain weights."""
    layout: str
    norm: str
    tied: bool
    attention_module: str | None
    mlp_module: str | None
    other_modules: str | None
    """What else adds to the residual stream: state-space mixers next to an attention, per-layer inputs."""
    logit_map: str
    attention_backend: str
    dtype: str
    device: str
    streamed: bool


def parameters(hf: PreTrainedModel) -> int:
    """The number of parameters of the text model as it computes, quantised weights counted unpacked."""
    return sum(map(_logical_size, _owners(hf)))


def stored(hf: PreTrainedModel) -> int:
    """The number of elements that its tensors hold."""
    return sum(parameter.numel() for _, _, parameter in _owners(hf))


def _owners(hf: PreTrainedModel) -> Iterator[tuple[torch.nn.Module, str, Tensor]]:
    """Every parameter of the text model once (tied weights too), with its module and its name there; not those for images or
    sound."""
    seen: set[int] = set()
    unembedding: Any = hf.get_output_embeddings()
    for module in (*hf.get_decoder().modules(), unembedding):
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield module, name, parameter


def _logical_size(owner: tuple[torch.nn.Module, str, Tensor]) -> int:
    """How many numbers a parameter stands for: a packed weight of a linear layer holds several in one."""
    module, name, parameter = owner
    if isinstance(module, torch.nn.Linear) and name == "weight":
        return int(module.in_features) * int(module.out_features)
    return parameter.numel()


def quantisation(config: Any) -> str | None:
    """transformers' name of the method that a configuration declares, None for plain weights."""
    settings = getattr(config, "quantization_config", None)
    found = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
    return None if found is None else str(getattr(found, "value", found))

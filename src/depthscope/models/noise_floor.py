"""The noise floor of a model's dtype: how far its predictions are from the same model computed more precisely.

A half-precision model is compared with float32, a float32 model with float64, on a few tokens. One block at a time is copied
and converted, so that a model of any size fits in memory. A quantised module becomes the linear map that it computes, whose
input is not rounded: the floor of a format that rounds inputs (`packed`) includes that rounding. Modules that fix their own
precision (RMSNorms compute in float32) keep it, so the floor measured against float64 is a lower bound.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from depthscope.errors import NumericError
from depthscope.models.finite import REMEDY, Named, all_finite, require_finite_run, window_of_batch
from depthscope.models.maps import by_unit_vectors
from depthscope.models.memory import short_of_memory
from depthscope.models.model import Model
from depthscope.models.packed import packed
from depthscope.models.stack import Arguments, residual_of
from depthscope.schema.dtypes import FINER
from depthscope.shapes import Hidden, TokenIds

TOKENS = 128
ROWS = 4096
"""Rows of W_U converted at once."""


@dataclass(frozen=True, slots=True)
class NoiseFloor:
    """Mean KL, in nats, of the model's predictions from those of the finer dtype, over `tokens` tokens of one window."""

    kl: float
    dtype: str
    finer: str
    tokens: int


@torch.inference_mode()
def noise_floor(model: Model, ids: TokenIds, named: Named = window_of_batch) -> NoiseFloor | None:
    """The floor on the first TOKENS tokens of the first window of `ids`; None where the model's code mixes dtypes, or where
    there is no finer dtype. Raises NumericError, with block and window (`named`), where the model's own run is not finite.
    """
    own_name = str(model.unembedding.weight.dtype).removeprefix("torch.")
    finer = FINER.get(own_name)
    if finer is None:
        return None
    ids = ids[:1, :TOKENS].to(model.device)
    own = _log_probabilities(model, ids, None)
    if not all_finite([own]):
        require_finite_run(model, ids, named)
        raise NumericError(
            f"{model.name} has NaN or infinity in the final norm or the logits, although the residual stream is finite, in "
            f"{named(0)}. {REMEDY}"
        )
    try:
        exact = _log_probabilities(model, ids, getattr(torch, finer))
    except RuntimeError as error:  # a block that converts to a fixed dtype in its middle cannot be run in another
        if short_of_memory(error):
            raise
        return None
    kl = (exact.exp() * (exact - own)).sum(-1).clamp(min=0).mean()
    return NoiseFloor(float(kl), own_name, finer, ids.numel()) if math.isfinite(kl) else None


def _log_probabilities(model: Model, ids: TokenIds, dtype: torch.dtype | None) -> Tensor:
    entry = model.stack.enter(ids)
    residual = entry.residual if dtype is None else entry.residual.to(dtype)
    for index, (block, own) in enumerate(zip(model.stack.blocks, entry.arguments, strict=True)):
        with model.stack.resident(index):
            residual = _call(block, residual, own, model.unembedding.weight.dtype, dtype)
    if dtype is None:
        logits = model.unembedding.logits(model.unembedding.hidden(residual))
    else:
        for module in model.unembedding.modules:
            residual = _copied(module, model.unembedding.weight.dtype, dtype)(residual)
        logits = _converted_logits(model, model.unembedding.scale(residual).flatten(0, 1), dtype)
    return logits.double().log_softmax(-1)


def _call(block: nn.Module, residual: Tensor, own: Arguments, from_: torch.dtype, dtype: torch.dtype | None) -> Tensor:
    if dtype is not None:
        block = _copied(block, from_, dtype)
        own = Arguments(_converted(own.positional, dtype), _converted(own.keyword, dtype), own.residual_keyword)
    if own.residual_keyword:
        return residual_of(block(*own.positional, hidden_states=residual, **own.keyword))
    return residual_of(block(residual, *own.positional, **own.keyword))


def _converted_logits(model: Model, hidden: Hidden, dtype: torch.dtype) -> Tensor:
    bias = model.unembedding.linear.bias
    biases = [None] * model.unembedding.vocabulary if bias is None else bias.to(dtype).split(ROWS)
    slices = zip(
        model.unembedding.weight.split(ROWS), biases, strict=False
    )  # whole, W_U converted may be larger than a block
    hidden = hidden.to(dtype)
    return model.unembedding.map(torch.cat([nn.functional.linear(hidden, rows.to(dtype), b) for rows, b in slices], -1))


def _copied(module: nn.Module, from_: torch.dtype, dtype: torch.dtype) -> nn.Module:
    """A copy of a module that computes in `from_`, in another dtype, as `.to` gives it, without a copy in the old one."""
    # deepcopy takes what is in its memo for copied already, so the weights are never in memory twice in the old dtype.
    quantised = {id(one): _unpacked(one, from_, dtype) for one in module.modules() if packed(one)}
    within = {id(t) for one in module.modules() if packed(one) for t in (*one.parameters(), *one.buffers())}
    tensors = [t for t in (*module.parameters(), *module.buffers()) if id(t) not in within]
    converted = {id(t): t.detach().to(dtype) for t in tensors if t.is_floating_point()}
    memo = {
        key: nn.Parameter(converted[key], requires_grad=False)
        for key in map(id, module.parameters())
        if key in converted
    }
    return copy.deepcopy(module, converted | memo | quantised).to(dtype)


def _unpacked(module: nn.Module, from_: torch.dtype, dtype: torch.dtype) -> nn.Linear:
    """The linear map that a quantised module computes, in another dtype. Raises RuntimeError for another kind of module."""
    if not isinstance(module, nn.Linear):
        raise RuntimeError(f"{type(module).__name__} is no linear layer")
    device = next(module.parameters()).device
    found = by_unit_vectors(module, torch.zeros(module.in_features, dtype=from_, device=device))
    biased = found.bias is not None
    exact = nn.Linear(module.in_features, module.out_features, bias=biased, device="meta", dtype=dtype)
    exact.weight = nn.Parameter(found.weight.to(dtype), requires_grad=False)
    if found.bias is not None:
        exact.bias = nn.Parameter(found.bias.to(dtype), requires_grad=False)
    return exact


def _converted(value: Any, dtype: torch.dtype) -> Any:
    """Floating tensors in another dtype, wherever they are in what a block is given."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple | list):
        return type(value)(_converted(one, dtype) for one in value)
    if isinstance(value, dict):
        return {key: _converted(one, dtype) for key, one in value.items()}
    return value

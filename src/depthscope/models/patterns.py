"""Attention patterns, one block at a time, read from the model's own eager attention.

The fast attention kernels never make the pattern. So each block is called once more with the model switched to
transformers' eager attention for the time of the call, on the residual stream it is given, and the pattern is taken from
what its attention module returns. Nothing of attention is re-implemented: sliding windows, soft caps, ALiBi and attention
sinks are in it as the family computes them. One block's patterns are alive at a time.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from depthscope.errors import UnsupportedError
from depthscope.models.maps import ROUNDING
from depthscope.models.model import Model
from depthscope.shapes import Pattern, Residual, TokenIds


def attention_patterns(
    model: Model, ids: TokenIds, residuals: Sequence[Residual] | None = None
) -> Iterator[Pattern | None]:
    """The pattern of every block in turn, None where a block has none (recurrent or linear attention, Mamba).

    `residuals[l]` is the residual stream before block l for `ids`. Without them each block reads what the one before it
    wrote under eager attention: the model's own run, for half the work and with one residual stream alive. To be used
    under torch.inference_mode, and to the end or closed: the model is on eager attention until then.
    """
    with _eager(model.hf):
        entry = model.stack.enter(ids)
        after = entry.residual
        for block in range(model.depth):
            before = after if residuals is None else residuals[block]
            seen: list[Tensor] = []
            with _watched(model.stack.blocks[block], tuple(ids.shape), seen):
                after = model.stack.call(block, before, entry.arguments)
            yield seen.pop() if seen else None


def pattern_heads(model: Model) -> list[int]:
    """For each block how many heads' patterns can be read; 0 where it has none.

    Raises UnsupportedError where a block that has patterns gives something else under eager attention than in the model's
    own run: the patterns would be of another computation.
    """
    ids = model.probe_ids()
    with torch.inference_mode():
        entry = model.stack.enter(ids)
        residuals = [entry.residual]
        for block in range(model.depth):
            residuals.append(model.stack.call(block, residuals[-1], entry.arguments))
        heads: list[int] = []
        with _eager(model.hf):
            entry = model.stack.enter(ids)
            for block in range(model.depth):
                seen: list[Tensor] = []
                with _watched(model.stack.blocks[block], tuple(ids.shape), seen):
                    after = model.stack.call(block, residuals[block], entry.arguments)
                heads.append(seen[0].shape[1] if seen else 0)
                if seen:
                    _require_same(model, block, after - residuals[block], residuals[block + 1] - residuals[block])
        return heads


def _require_same(model: Model, block: int, eager: Tensor, own: Tensor) -> None:
    away, largest = float((eager.float() - own.float()).abs().max()), float(own.float().abs().max())
    allowed = ROUNDING.get(own.dtype, 0.02) * max(largest, 1e-6)
    if not away <= allowed:
        raise UnsupportedError(
            f"{model.name}: eager attention is not what block {block} computes (its output differs by {away:.2g}, "
            f"allowed {allowed:.2g}), so attention patterns cannot be read from it"
        )


def has_patterns(model: Model) -> list[bool]:
    """For each block whether it has an attention pattern to read."""
    return [heads > 0 for heads in pattern_heads(model)]


@contextmanager
def _eager(hf: nn.Module) -> Iterator[None]:
    """All parts of a model on eager attention. Their configurations are told, which is where each call looks."""
    configs: dict[int, Any] = {id(module.config): module.config for module in hf.modules() if hasattr(module, "config")}
    before = [(config, getattr(config, "_attn_implementation", None)) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation = "eager"
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation


@contextmanager
def _watched(block: nn.Module, shape: tuple[int, ...], seen: list[Tensor]) -> Iterator[None]:
    """Keep the pattern that a module of the block returns behind its output: [batch, heads, seq, seq]."""

    def keep(_module: nn.Module, _args: Any, output: Any) -> None:
        for value in output[1:] if isinstance(output, tuple | list) and not seen else ():
            if (
                isinstance(value, Tensor)
                and value.ndim == 4
                and (value.shape[0], *value.shape[2:]) == (*shape, shape[1])
            ):
                seen.append(value)
                return

    handles = [module.register_forward_hook(keep) for module in block.modules()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

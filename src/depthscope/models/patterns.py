"""Attention patterns, one block at a time, read from the model's own eager attention.

The fast attention kernels never store the pattern. So each block is called once more, on the residual stream it is given, while
the model is switched to transformers' eager attention, and the pattern is taken from what its attention module returns.
Attention is not re-implemented: sliding windows, soft caps, ALiBi and attention sinks are in the pattern as the family computes
them. One block's patterns are in memory at a time.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from depthscope.errors import NumericError, UnsupportedError
from depthscope.models.eager import eager_attention, watched_pattern
from depthscope.models.finite import REMEDY, Named, all_finite, first_row, require_finite_streams, window_of_batch
from depthscope.models.maps import rounding
from depthscope.models.model import Model
from depthscope.shapes import Pattern, Residual, TokenIds


def attention_patterns(
    model: Model, ids: TokenIds, residuals: Sequence[Residual] | None = None, named: Named = window_of_batch
) -> Iterator[Pattern | None]:
    """The pattern of every block in turn, None where a block has none (recurrent or linear attention, Mamba).

    `residuals[l]` is the residual stream before block l for `ids`. Without them each block reads what the one before it
    wrote under eager attention: the model's own run, for half the work and with one residual stream in memory. To be used
    under torch.inference_mode. Read it to the end or close it: the model is on eager attention until then. Raises NumericError,
    with block and window (`named`), for NaN or infinity in a pattern or in what a block reads.
    """
    with eager_attention(model.hf):
        # Entered under eager attention too: the masks that a model passes to its blocks have another form for each kernel.
        entry = model.stack.enter(ids)
        after = entry.residual
        for block in range(model.depth):
            before = after if residuals is None else residuals[block]
            seen: list[Tensor] = []
            with watched_pattern(model.stack.blocks[block], tuple(ids.shape), seen, before.device):
                after = model.stack.call(block, before, entry.arguments)
            if residuals is None:
                require_finite_streams(model, [before, after], named, first=block)
            if seen:
                _require_finite(model, block, seen[0], named)
            yield seen.pop() if seen else None


def pattern_heads(model: Model) -> list[int]:
    """For each block how many heads' patterns can be read; 0 where it has none.

    Raises UnsupportedError where a block that has patterns has another output under eager attention than in the model's own
    run: the patterns would belong to another computation.
    """
    ids = model.probe_ids()
    with torch.inference_mode():
        entry = model.stack.enter(ids)
        residuals = [entry.residual]
        for block in range(model.depth):
            residuals.append(model.stack.call(block, residuals[-1], entry.arguments))
        require_finite_streams(model, residuals, lambda row: "the text that models are checked on")
        heads: list[int] = []
        with eager_attention(model.hf):
            entry = model.stack.enter(ids)
            for block in range(model.depth):
                seen: list[Tensor] = []
                with watched_pattern(model.stack.blocks[block], tuple(ids.shape), seen, ids.device):
                    after = model.stack.call(block, residuals[block], entry.arguments)
                heads.append(seen[0].shape[1] if seen else 0)
                if seen:
                    # The changes are compared, not the streams: a large residual stream would hide a wrong attention.
                    _require_same(model, block, after - residuals[block], residuals[block + 1] - residuals[block])
        return heads


def _require_finite(model: Model, block: int, pattern: Pattern, named: Named) -> None:
    """By the attention to the first token: a softmax that is not finite for one key is so for the query's whole row."""
    on_first = pattern[..., 0]
    if not all_finite([on_first]):
        raise NumericError(
            f"{model.name} has NaN or infinity in the attention pattern of block {block}, in "
            f"{named(first_row(on_first) or 0)}. {REMEDY}"
        )


def _require_same(model: Model, block: int, eager: Tensor, own: Tensor) -> None:
    away, largest = float((eager.float() - own.float()).abs().max()), float(own.float().abs().max())
    allowed = rounding(own.dtype) * max(largest, 1e-6)
    if not away <= allowed:  # not `>`: NaN is no agreement
        raise UnsupportedError(
            f"{model.name}: eager attention is not what block {block} computes (its output differs by {away:.2g}, "
            f"allowed {allowed:.2g}), so attention patterns cannot be read from it"
        )


def has_patterns(model: Model) -> list[bool]:
    """For each block whether it has an attention pattern to read."""
    return [heads > 0 for heads in pattern_heads(model)]

"""What heads attend to, from attention patterns: positions before the final token, and keys of a given kind."""

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from depthscope.shapes import Pattern, TokenIds

LAST = 16
"""How many positions, up to the final one, have their attention recorded separately."""

Keys = Bool[Tensor, "batch seq seq"]
"""Which keys (last axis) a kind of head attends to from each query."""
FinalAttention = Float64[Tensor, "batch heads offsets"]
PerHead = Float64[Tensor, "batch heads"]


def attention_of_final(pattern: Pattern) -> FinalAttention:
    """Attention of the final token to itself and the tokens before it, 16 in total, by offset from 0."""
    return pattern[:, :, -1, -LAST:].flip(-1).double()


def merge_scores(word: FinalAttention, plain: FinalAttention, word_tokens: int) -> tuple[PerHead, PerHead]:
    """How much more the final token attends to its word's other tokens, and to the first of them, than a one-token word
    attends to the same positions. The batch consists of pairs of prompts."""
    more = word - plain
    return more[..., 1:word_tokens].sum(-1), more[..., word_tokens - 1]


def previous_keys(ids: TokenIds) -> Keys:
    """The token before each query; none for the first."""
    length = ids.shape[1]
    return torch.eye(length, dtype=torch.bool, device=ids.device).roll(-1, 1).tril(-1).repeat(ids.shape[0], 1, 1)


def duplicate_keys(ids: TokenIds) -> Keys:
    """Earlier occurrences of the same token."""
    return (ids[:, :, None] == ids[:, None, :]).tril(-1)


def induction_keys(ids: TokenIds) -> Keys:
    """The tokens that followed earlier occurrences of the same token; never the query itself."""
    return duplicate_keys(ids).roll(1, 2).tril(-1)


def attention_on(pattern: Pattern, keys: Keys) -> PerHead:
    """Attention to the keys, summed over queries."""
    return torch.einsum("bhqk,bqk->bh", pattern.double(), keys.double())


def even_attention_on(keys: Keys) -> Float64[Tensor, " batch"]:
    """The same for a head that attends equally to all positions up to the query's."""
    visible = torch.arange(1, keys.shape[1] + 1, device=keys.device)
    return (keys.sum(-1) / visible.double()).sum(-1)

"""What heads attend to, from attention patterns: positions before the final token, and keys of a given kind.

A head that attends by position alone gives attention to any key that happens to be at the right distance. So each kind has a
null besides uniform attention (`second_previous_keys`, `previous_by_recency`, `attention_elsewhere`).
"""

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


def second_previous_keys(ids: TokenIds) -> Keys:
    """The token two before each query; none for the first two."""
    return previous_keys(ids).roll(-1, 2).tril(-2)


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


def previous_by_recency(pattern: Pattern, previous: Keys, second: Keys, decay: float) -> PerHead:
    """Attention to the previous token under attention by recency, summed over queries: that to the token two before the query
    divided by `decay`, the factor by which attention falls with every token back.

    A query without a token two before it keeps its own attention: it tells nothing about recency.
    """
    alone = previous & ~second.any(-1, keepdim=True)
    return attention_on(pattern, second) / decay + attention_on(pattern, alone)


def attention_elsewhere(pattern: Pattern, keys: Keys) -> PerHead:
    """Attention to the positions of the keys in the batch's other sequences, summed over queries.

    From the same query position to the same key position, averaged over the sequences in which that position is not a key: what
    position alone attracts, such as distance or an attention sink. A position that is a key in every sequence keeps its own.
    """
    weights, other = pattern.double(), ~keys
    sequences = other.sum(0)
    mean = torch.einsum("bhqk,bqk->hqk", weights, other.double()) / sequences.clamp(min=1)
    expected = torch.einsum("hqk,bqk->bh", mean, (keys & (sequences > 0)).double())
    return expected + attention_on(pattern, keys & (sequences == 0))

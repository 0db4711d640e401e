"""The k most likely tokens of next-token distributions, from slices of logits that something else computes.

A lens passes over the logits at every depth anyway (`divergence`); what is largest is collected on the way, before a slice is
overwritten. Searching a whole slice costs as much as all its sums on a CPU, so a slice is searched by blocks: the k largest
entries are in the k blocks with the largest maxima.

Tokens are in the order of their logits in float32 and, among equal logits, of their ids, as the most likely token is
everywhere (`divergence`): in half precision equal logits are common.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from depthscope.models.unembedding import Unembedding
from depthscope.shapes import Hidden, LogitSlice

BLOCK = 32
LAST = 0xFFFFFFFF
TopTokensOf = Int64[Tensor, "tokens k"]
"""Token ids, the most likely first."""


class TopTokens:
    """The `count` most likely tokens of each row, collected from slices of the vocabulary."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._rows: list[list[Tensor]] = []
        """For each group of rows the best keys of each of its slices."""

    def look(self, start: int, logits: LogitSlice) -> None:
        """Search logits of the vocabulary from `start` on; a slice from 0 begins the next group of rows."""
        if start == 0:
            self._rows.append([])
        values = logits.float()
        width = values.shape[1]
        ids = torch.arange(width, device=values.device)
        blocks = width // BLOCK
        if blocks > 2 * self.count:
            best = _keys(values[:, : blocks * BLOCK].unflatten(1, (blocks, BLOCK)).amax(-1), ids[:blocks])
            chosen = _ids(best.topk(self.count).values)
            rest, ids = ids[blocks * BLOCK :], (chosen[:, :, None] * BLOCK + ids[:BLOCK]).flatten(1)
            if len(rest):
                ids = torch.cat([ids, rest.expand(len(values), -1)], 1)
            values = values.gather(1, ids)
        keys = _keys(values, ids + start if start else ids)
        self._rows[-1].append(keys.topk(min(self.count, keys.shape[1])).values)

    @property
    def found(self) -> TopTokensOf:
        """The tokens of all rows; fewer than `count` where the vocabulary has fewer."""
        return torch.cat([_best(torch.cat(slices, 1), self.count) for slices in self._rows])


def top_tokens(head: Unembedding, hidden: Hidden, count: int, slice_width: int, rows: int) -> TopTokensOf:
    """The same of what the unembedding reads, in a pass of its own."""
    top = TopTokens(count)
    for part in hidden.split(rows):
        for start in range(0, head.vocabulary, slice_width):
            top.look(start, head.slice(part, start, min(start + slice_width, head.vocabulary)))
    return top.found


def _keys(values: Float[Tensor, "tokens n"], ids: Int64[Tensor, "*rows n"]) -> Int64[Tensor, "tokens n"]:
    """Integers in the order of the values and, among equal values, in the reverse order of the ids."""
    bits = (values + 0.0).view(torch.int32)  # −0 + 0 is 0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats are in the reverse order of their bits
    return torch.add(LAST - ids, ordered.long(), alpha=1 << 32)


def _ids(keys: Int64[Tensor, "tokens k"]) -> Int64[Tensor, "tokens k"]:
    return LAST - (keys & LAST)


def _best(keys: Int64[Tensor, "tokens n"], count: int) -> TopTokensOf:
    return _ids(keys.topk(min(count, keys.shape[1])).values)

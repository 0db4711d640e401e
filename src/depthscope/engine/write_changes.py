"""How much what later blocks write changes when a block is skipped: the residual streams of every skip, block by block.

A skipped block s hands its input on, so the skipped stream after it is x_s; where it is not skipped, the baseline's stream
x_{s+1}. Both are known from the baseline run: as in a sweep of drops, a skip costs only the blocks after s. All skips go
through a block before any goes through the next, so a model larger than memory is read once for all of them.
"""

from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from depthscope.engine.baseline import Baseline
from depthscope.models.state import State, copied
from depthscope.models.unembedding import Unembedding
from depthscope.routes import Step
from depthscope.shapes import Hidden, Residual

SMALLEST = 1e-6
"""Norms of writes below it count as this, as in the published code: a write of 0 has no relative change."""
LOGITS_AT_ONCE = 2**21
"""8 MiB of float32: a few rows of the whole vocabulary, which stay in the cache."""

Relative = Float[Tensor, "batch seq"]
Change = tuple[int, int, Relative]
"""The skipped block, the later block, and ‖Δ_l − Δ_l^(s)‖ / ‖Δ_l‖ at every position."""


class WriteChanges:
    """The changes on one baseline. Use it under `model.measuring()`, like the baseline."""

    def __init__(self, baseline: Baseline) -> None:
        self.baseline, self.model = baseline, baseline.model
        streams = [stream.float() for stream in baseline.residuals]
        self.writes = [after - before for before, after in pairwise(streams)]
        """Δ_0 … Δ_{L−1} of the unmodified model, float32."""
        self._norms = [torch.linalg.vector_norm(write, dim=-1).clamp(min=SMALLEST) for write in self.writes]

    def chained(
        self, skipped: Sequence[int], at: Bool[Tensor, " seq"]
    ) -> Generator[Change, None, Mapping[int, Residual]]:
        """Skip each of these blocks at the positions `at` and run the blocks after it. Returns the final residual streams."""
        own = self.baseline.residuals
        streams = {block: torch.where(at[:, None], own[block], own[block + 1]) for block in skipped}
        states = {block: copied(self.baseline.states[block + 1]) for block in skipped}
        self._expect(skipped)
        for layer in range(self.model.depth):
            for block in (block for block in skipped if block < layer):
                given = streams[block]
                streams[block] = self._visit(layer, given, states[block])
                yield block, layer, self._relative(layer, given, streams[block])
        return streams

    def direct(self, removed: Sequence[int], at: Bool[Tensor, " seq"]) -> Iterator[Change]:
        """Take each of these blocks' write from each later block's own input, at the positions `at`."""
        self._expect(removed)
        for layer in range(self.model.depth):
            own = self.baseline.residuals[layer]
            for block in (block for block in removed if block < layer):
                given = torch.where(at[:, None], own - self.writes[block].to(own.dtype), own)
                result = self._visit(layer, given, copied(self.baseline.states[layer]))
                yield block, layer, self._relative(layer, given, result)

    def _visit(self, layer: int, given: Residual, state: State) -> Residual:
        return self.model.visit(Step(layer), given, self.baseline.entry.arguments, state)

    def _relative(self, layer: int, given: Residual, result: Residual) -> Relative:
        change = (result.float() - given.float()).sub_(self.writes[layer])
        return torch.linalg.vector_norm(change, dim=-1) / self._norms[layer]

    def _expect(self, skipped: Sequence[int]) -> None:
        if self.model.stack.streamed:
            later = range(self.model.depth)
            self.model.stack.expect([layer for layer in later for block in skipped if block < layer])


def softmax_distances(head: Unembedding, own: Hidden, edited: Sequence[Hidden]) -> Float[Tensor, "edited tokens"]:
    """‖softmax(z) − softmax(z')‖₂ over the vocabulary, for each of the edited streams' positions, in float32.

    Computed by definition, a few rows of all logits at a time: from sums (Σp² + Σq² − 2Σpq) a small distance would be lost in
    rounding.
    """
    distances = torch.empty(len(edited), len(own), device=own.device)
    rows = max(1, LOGITS_AT_ONCE // head.vocabulary)
    for start in range(0, len(own), rows):
        part = slice(start, start + rows)
        p = head.logits(own[part]).float().softmax(-1)
        for place, hidden in enumerate(edited):
            q = head.logits(hidden[part]).float().softmax(-1)
            torch.linalg.vector_norm(q.sub_(p), dim=-1, out=distances[place, part])
    return distances

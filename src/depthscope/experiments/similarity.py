"""Similarity under swaps (E9): does a moved layer write the same as before, or what the layer at its new place writes?

For each swap of layers l and l + 1, and for attention and MLP separately, cosines between outputs, averaged over positions:
moved and in place (self), moved and the output of the layer it replaced (index), and the two neighbours in place (adjacent).
In a swap block l + 1 reads x_l, and block l reads the output of block l + 1.
"""

from collections.abc import Iterable, Sequence

import polars as pl
import torch
from torch import Tensor

from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline, Keep
from depthscope.errors import NumericError, UnsupportedError
from depthscope.experiments.document_sums import Rows, window_sums
from depthscope.experiments.experiment import Subject
from depthscope.experiments.sweep import layer_edits, runnable
from depthscope.models.finite import REMEDY, all_finite, first_row
from depthscope.models.model import Model
from depthscope.models.state import State, copied
from depthscope.models.writes import Writes
from depthscope.schema.similarity import COMPONENTS, EARLIER, LATER, SWAP_METRICS
from depthscope.shapes import Residual

NAME = "similarity"
KEYS = {"layer": pl.Int32, "component": pl.String, "moved": pl.String}


class Similarity:
    """Self, index and adjacent cosines for every adjacent swap. A reading of the shared pass.

    Swaps that the model cannot run (a block would read what no earlier block stores) have no rows. Raises UnsupportedError
    for a model without separate attention and MLP, or with a single layer.
    """

    name = NAME
    keep = Keep.WRITES
    readouts = 0

    def __init__(self, model: Model) -> None:
        model.require_pairs()
        if model.depth < 2:
            raise UnsupportedError(f"{model.name} has one layer: expected two that can be swapped")
        self.settings = {}
        self.swaps, self.refused = runnable(layer_edits(["swap"], model.depth), model)
        layers = [swap.layer for swap in self.swaps]
        names = [(i, part, way) for i in layers for part in COMPONENTS for way in (LATER, EARLIER)]
        # A component that writes nothing at a position has no cosine there.
        self.rows = Rows(KEYS, names, SWAP_METRICS, undefined=[metric.name for metric in SWAP_METRICS])

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a unit."""
        rows = []
        for layer in (swap.layer for swap in self.swaps):
            state = copied(baseline.states[layer])
            earlier, after = _written(baseline, layer + 1, baseline.residuals[layer], state)
            later, last = _written(baseline, layer, after, state)
            _require_finite(baseline, layer, after, last)
            first, second = baseline.writes[layer], baseline.writes[layer + 1]
            for part in COMPONENTS:
                adjacent = _cosine(getattr(first, part), getattr(second, part))
                for moved, own, displaced in ((later, first, second), (earlier, second, first)):
                    output = getattr(moved, part)
                    with_own, with_displaced = (_cosine(output, getattr(w, part)) for w in (own, displaced))
                    rows.append(torch.stack([with_own, with_displaced, adjacent]))
        values = torch.stack(rows, 1).cpu().numpy()
        return self.rows.shard(window_sums(values, len(windows)), windows.length, windows.document)

    def joined(self, shards: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """The shard of a unit that was read in parts."""
        return self.rows.joined(shards)

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """SIMILARITY_TABLE."""
        return {NAME: self.rows.table(shards)}


def make(subject: Subject) -> Similarity:
    """Similarity under the swaps of a model."""
    return Similarity(subject.model)


def _written(baseline: Baseline, block: int, residual: Residual, state: State) -> tuple[Writes, Residual]:
    """What a block writes, given a residual stream and the state passed on by earlier blocks, and the stream after it."""
    model = baseline.model
    with model.writers.watched(block) as written:
        after = model.stack.call(block, residual, baseline.entry.arguments, state)
    return written[0], after


def _require_finite(baseline: Baseline, layer: int, after: Residual, last: Residual) -> None:
    if not all_finite([after, last]):
        row = first_row(after)
        block, row = (layer + 1, row) if row is not None else (layer, first_row(last) or 0)
        raise NumericError(
            f"NaN or infinity on the route swap({layer}) of {baseline.model.name}, {baseline.named(row)}, from block {block} "
            f"on. {REMEDY}, or leave the experiment out"
        )


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine at each position, [tokens]; NaN where one of the two is zero."""
    a, b = a.float(), b.float()
    return ((a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1))).flatten()

"""Block influence (ShortGPT): one minus the cosine between the residual streams before and after a block.

It estimates the cost of dropping the block without dropping it; the sweep measures the cost directly.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import polars as pl
import torch

from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline, Keep
from depthscope.experiments.document_sums import Rows, window_sums
from depthscope.experiments.experiment import Subject
from depthscope.models.model import Model
from depthscope.schema.similarity import BLOCK_INFLUENCE

NAME = "influence"


class Influence:
    """Block influence of every layer, over all positions. A reading of the shared pass."""

    name = NAME
    keep = Keep.NOTHING
    readouts = 0

    def __init__(self, model: Model) -> None:
        self.settings = {}
        self.rows = Rows({"layer": pl.Int32}, [(layer,) for layer in range(model.depth)], [BLOCK_INFLUENCE])

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a unit."""
        cosines = [
            torch.cosine_similarity(before.double(), after.double(), dim=-1).flatten()
            for before, after in pairwise(baseline.residuals)
        ]
        values = 1 - torch.stack(cosines)[None].cpu().numpy()
        return self.rows.shard(window_sums(values, len(windows)), windows.length, windows.document)

    def joined(self, shards: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """The shard of a unit that was read in parts."""
        return self.rows.joined(shards)

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """INFLUENCE_TABLE."""
        return {NAME: self.rows.table(shards)}


def make(subject: Subject) -> Influence:
    """Block influence of a model."""
    return Influence(subject.model)

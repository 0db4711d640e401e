"""Norms (E5, E6): how much attention and MLP of every layer add to the residual stream.

Outputs are measured as they are added, with biases and after any norm or scale in between. In models whose norms subtract the
mean, vectors are centred first, as in the paper's weight processing: what is written along the all-ones direction is never
read.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl
import torch

from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline, Keep
from depthscope.experiments.document_sums import Rows, window_sums
from depthscope.experiments.experiment import Subject
from depthscope.models.model import Model
from depthscope.models.weights import centres_writing
from depthscope.schema.norms import METRICS, NORM_RATIO
from depthscope.shapes import Residual

NAME = "norms"


class Norms:
    """Norms of attention and MLP outputs, their ratio, and of the residual stream. A reading of the shared pass.

    Raises UnsupportedError for a model without separate attention and MLP.
    """

    name = NAME
    keep = Keep.WRITES
    readouts = 0

    def __init__(self, model: Model) -> None:
        model.require_pairs()
        self.settings = {"centred": centres_writing(model)}
        layers = [(layer,) for layer in range(model.depth)]
        self.rows = Rows({"layer": pl.Int32}, layers, METRICS, undefined=(NORM_RATIO.name,))

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a unit."""
        columns = []
        for residual, written in zip(baseline.residuals, baseline.writes, strict=False):
            attention, mlp = self._norm(written.attention), self._norm(written.mlp)
            columns.append([attention, mlp, attention / mlp, self._norm(residual)])
        values = np.stack([torch.stack(column).cpu().numpy() for column in zip(*columns, strict=True)])
        return self.rows.shard(window_sums(values, len(windows)), windows.length, windows.document)

    def joined(self, shards: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """The shard of a unit that was read in parts."""
        return self.rows.joined(shards)

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """NORMS_TABLE."""
        return {NAME: self.rows.table(shards)}

    def _norm(self, written: Residual) -> torch.Tensor:
        vectors = written.float()
        if self.settings["centred"]:
            vectors = vectors - vectors.mean(-1, keepdim=True)
        return vectors.norm(dim=-1).flatten()


def make(subject: Subject) -> Norms:
    """Norms of a model."""
    return Norms(subject.model)

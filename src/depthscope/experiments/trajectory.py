"""Trajectories: how spread out the vectors of a window are at each depth, and how curved its path from token to token is."""

from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl
import torch
from jaxtyping import Float64
from torch import Tensor

from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline, Keep
from depthscope.errors import DataError
from depthscope.experiments.document_sums import Rows
from depthscope.experiments.experiment import Subject
from depthscope.models.model import Model
from depthscope.schema.dimension import CURVATURE, PROMPT_ENTROPY, TRAJECTORY_METRICS, UNIT_PROMPT_ENTROPY
from depthscope.schema.metric import Metric
from depthscope.shapes import Residual

NAME = "trajectory"
KEYS = {"layer": pl.Int32, "quantity": pl.String}
VALUE = Metric("value", "", "Value", "sum of the quantity")
LEAST = 3
"""Positions of a window: an angle is between two steps."""


class Trajectory:
    """TRAJECTORY_METRICS of windows at x_0 … x_L. A reading of the shared pass; raises DataError for windows below LEAST."""

    name = NAME
    keep = Keep.NOTHING
    readouts = 0

    def __init__(self, model: Model, length: int) -> None:
        if length < LEAST:
            raise DataError(f"windows of {length} tokens have no curvature: expected a --window of at least {LEAST}")
        self.settings: dict[str, int] = {}
        names = [(layer, metric.name) for layer in range(model.depth + 1) for metric in TRAJECTORY_METRICS]
        self.rows = Rows(KEYS, names, [VALUE])

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a unit: rows of TRAJECTORY_SHARD."""
        sums, counts = [], []
        for residual in baseline.residuals:
            vectors = residual.double()
            angles, defined = bends(vectors)
            one = np.ones(len(windows), dtype=np.int64)
            found = {
                PROMPT_ENTROPY: (prompt_entropy(vectors), one),
                UNIT_PROMPT_ENTROPY: (prompt_entropy(torch.nn.functional.normalize(vectors, dim=-1)), one),
                CURVATURE: (angles, defined),
            }
            for metric in TRAJECTORY_METRICS:
                values, number = found[metric]
                sums.append(values)
                counts.append(number)
        return self.rows.shard(np.stack(sums)[None], np.stack(counts), windows.document)

    def joined(self, shards: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """The shard of a unit that was read in parts."""
        return self.rows.joined(shards)

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """TRAJECTORY_TABLE."""
        units = {metric.name: metric.unit for metric in TRAJECTORY_METRICS}
        table = self.rows.table(shards).with_columns(
            metric=pl.col("quantity"), unit=pl.col("quantity").replace_strict(units, return_dtype=pl.String)
        )
        return {NAME: table.drop("quantity")}


def make(subject: Subject) -> Trajectory:
    """Trajectories of the windows of a text."""
    return Trajectory(subject.model, subject.windows.length)


def prompt_entropy(vectors: Residual) -> Float64[np.ndarray, " windows"]:
    """Entropy of the eigenvalues of K / tr K, K the Gram matrix of each window's vectors; 0 where all are zero."""
    short = vectors.shape[1] < vectors.shape[2]  # XXᵀ and XᵀX have the same eigenvalues other than 0
    gram = vectors @ vectors.mT if short else vectors.mT @ vectors
    values = torch.linalg.eigvalsh(gram).clamp_(min=0)
    total = values.sum(-1, keepdim=True)
    shares = values / total.where(total > 0, 1.0)
    return torch.special.entr(shares).sum(-1).cpu().numpy()


def bends(vectors: Residual) -> tuple[Float64[np.ndarray, " windows"], np.ndarray]:
    """Of each window, the sum of the angles between consecutive steps in radians, and their number.

    A step of length 0, between two equal vectors, has no direction: its angles are left out.
    """
    steps: Tensor = vectors.diff(dim=1)
    lengths = torch.linalg.vector_norm(steps, dim=-1)
    cosines = torch.linalg.vecdot(steps[:, 1:], steps[:, :-1]) / (lengths[:, 1:] * lengths[:, :-1])
    defined = (lengths[:, 1:] > 0) & (lengths[:, :-1] > 0)
    angles = torch.where(defined, cosines, 1.0).clamp(-1, 1).arccos()
    return angles.sum(1).cpu().numpy(), defined.sum(1).cpu().numpy()

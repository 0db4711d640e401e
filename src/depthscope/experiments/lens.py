"""The logit lens (E7), or another lens: the residual stream at every depth decoded with the model's unembedding.

`lenses` computes what a lens decodes from a residual stream; here it is compared with the final distribution.
"""

from collections.abc import Iterable

import numpy as np
import polars as pl
import torch

from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline, Keep
from depthscope.engine.divergence import compare
from depthscope.experiments.document_sums import Rows, window_sums
from depthscope.experiments.experiment import Subject
from depthscope.experiments.lenses import FROZEN_SCALE, LOGIT, make_lens
from depthscope.models.model import Model
from depthscope.schema.lens import METRICS
from depthscope.schema.protocol import LAD2024, TEXT

NAME = "lens"


class LensReading:
    """A lens on x_0 … x_L: KL to the final distribution, agreement, entropy, loss. A reading of the shared pass.

    Raises UnsupportedError if the model does not support the lens.
    """

    name = NAME
    keep = Keep.NOTHING

    def __init__(self, model: Model, protocol: str = TEXT, lens: str = LOGIT) -> None:
        self.settings = {"protocol": protocol} | ({} if lens == LOGIT else {"lens": lens})
        # The protocol lad2024 determines which logit lens is used.
        self.lens = make_lens(FROZEN_SCALE if (protocol, lens) == (LAD2024, LOGIT) else lens, model)
        self.rows = Rows({"layer": pl.Int32}, [(depth,) for depth in range(model.depth + 1)], METRICS)
        self.readouts = model.depth + 1

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a unit."""
        head, last = baseline.model.unembedding, baseline.residuals[-1]
        columns = []
        for depth, residual in enumerate(baseline.residuals):
            hidden = self.lens.decode(residual, depth, last)
            measured = compare(head, baseline.reference, hidden, baseline.flat_targets)
            columns.append([measured[metric.name].float() for metric in METRICS])
        values = np.stack([torch.stack(column).cpu().numpy() for column in zip(*columns, strict=True)])
        return self.rows.shard(window_sums(values, len(windows)), windows.length, windows.document)

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """LENS_TABLE."""
        return {NAME: self.rows.table(shards)}


def make(subject: Subject) -> LensReading:
    """The requested lens."""
    return LensReading(subject.model, subject.options["protocol"], subject.options["lens"])

"""The logit lens (E7): every depth's residual stream read by the model's own head.

The final norm's statistics are taken anew from each residual stream. The protocol `lad2024` divides by the last one's
instead, as the paper's first script did (its authors later withdrew that as an error): it is there to compare with.
"""

from collections.abc import Iterable

import numpy as np
import polars as pl
import torch

from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline, Keep
from depthscope.engine.divergence import compare
from depthscope.errors import UnsupportedError
from depthscope.experiments.document_sums import Rows, window_sums
from depthscope.experiments.protocol import LAD2024, TEXT
from depthscope.models.model import Model
from depthscope.models.weights import Affine, norm_affine
from depthscope.schema.lens import METRICS
from depthscope.shapes import Hidden, Residual

NAME = "lens"


class Lens:
    """Lens of x_0 … x_L: KL to the final distribution, agreement, entropy, loss. A reading of the shared pass.

    Raises UnsupportedError under `lad2024` for a model without a single final norm.
    """

    name = NAME
    keep = Keep.NOTHING

    def __init__(self, model: Model, protocol: str = TEXT) -> None:
        self.settings = {"protocol": protocol}
        self.rows = Rows({"layer": pl.Int32}, [(depth,) for depth in range(model.depth + 1)], METRICS)
        self.readouts = model.depth + 1
        self.affine = _final_norm(model) if protocol == LAD2024 else None

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a unit."""
        head, last = baseline.model.head, baseline.residuals[-1]
        columns = []
        for residual in baseline.residuals:
            hidden = head.hidden(residual) if self.affine is None else _scaled_by(self.affine, residual, last)
            measured = compare(head, baseline.reference, hidden, baseline.flat_targets)
            columns.append([measured.kl, measured.agreement.float(), measured.entropy, measured.loss])
        values = np.stack([torch.stack(column).cpu().numpy() for column in zip(*columns, strict=True)])
        return self.rows.shard(window_sums(values, len(windows)), windows.length, windows.document)

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """LENS_TABLE."""
        return {NAME: self.rows.table(shards)}


def _final_norm(model: Model) -> Affine:
    if len(model.head.modules) != 1:
        raise UnsupportedError(
            f"{model.name} has {len(model.head.modules)} modules between last block and unembedding: expected one norm, "
            f"whose scale {LAD2024} would use at every depth"
        )
    return norm_affine(model.head.modules[0], model.head.weight.shape[1])


def _scaled_by(affine: Affine, residual: Residual, last: Residual) -> Hidden:
    """The final norm applied to a residual stream with the statistics of the last one."""
    centred, centred_last = residual, last
    if affine.centring:
        centred, centred_last = (x - x.mean(-1, keepdim=True) for x in (residual, last))
    scale = centred_last.float().square().mean(-1, keepdim=True).sqrt()
    return (centred / scale * affine.scale + affine.shift).to(residual.dtype).flatten(0, 1)

"""Geometry of the residual stream: angular distance and linear CKA between every two depths, on windows' last tokens.

Shards keep the last tokens' residual streams of the first WINDOWS windows; both quantities follow from those, so memory and
disk do not grow with the text beyond them.
"""

from collections.abc import Iterable
from itertools import combinations

import numpy as np
import polars as pl
import torch

from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline, Keep
from depthscope.experiments.document_sums import Rows
from depthscope.measure.alignment import BATCH, angular_distances, jackknife_interval
from depthscope.models.model import Model
from depthscope.schema.similarity import ANGULAR_DISTANCE, CKA, GEOMETRY_TABLE

NAME = "geometry"
WINDOWS = 512
SHARD = {"window": pl.Int64, "document": pl.Int64, "depth": pl.Int32, "residual": pl.List(pl.Float32)}
KEYS = {"layer": pl.Int32, "other": pl.Int32}


class Geometry:
    """Angular distance and CKA of x_0 … x_L. A reading of the shared pass; `windows` are all windows of the text."""

    name = NAME
    keep = Keep.NOTHING
    readouts = 0

    def __init__(self, model: Model, windows: Windows) -> None:
        self.settings = {"windows": min(WINDOWS, len(windows)), "batch": BATCH}
        first = windows.part(0, WINDOWS)
        self.place = {place: i for i, place in enumerate(_places(first))}
        self.depths = model.depth + 1

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a unit: the last token's residual stream at every depth, a row each."""
        last = torch.stack([residual[:, -1].float() for residual in baseline.residuals], 1).cpu().numpy()
        rows = [
            (window, place[0], depth, last[i, depth].tolist())
            for i, place in enumerate(_places(windows))
            if (window := self.place.get(place)) is not None
            for depth in range(self.depths)
        ]
        return pl.DataFrame(rows, schema=SHARD, orient="row")

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """GEOMETRY_TABLE."""
        pairs = list(combinations(range(self.depths), 2))
        gathered = pl.concat(shards).sort("window", "depth")
        documents = gathered["document"].to_numpy()[:: self.depths]
        residuals = np.stack(gathered["residual"].to_list()).reshape(len(documents), self.depths, -1)
        apart = angular_distances(residuals)[:, *zip(*pairs, strict=True)].T[None]
        rows = Rows(KEYS, pairs, [ANGULAR_DISTANCE])
        distances = rows.table([rows.shard(apart, 1, documents)])
        bounds = jackknife_interval(residuals, documents)
        seen = (len(documents), len(np.unique(documents)))
        aligned = [
            (*pair, CKA.name, CKA.unit, *(None if np.isnan(one[pair]) else float(one[pair]) for one in bounds), *seen)
            for pair in pairs
        ]
        return {NAME: pl.concat([distances, pl.DataFrame(aligned, schema=GEOMETRY_TABLE, orient="row")])}


def _places(windows: Windows) -> list[tuple[int, int]]:
    """Document and start of each window, which name it."""
    return list(zip(windows.document.tolist(), windows.start.tolist(), strict=True))

"""Geometry of the residual stream: angular distance and linear CKA between all pairs of depths, on windows' last tokens.

Shards keep the last tokens' residual streams of the first WINDOWS windows; both quantities are computed from these, so memory
and disk usage do not grow with more text.
"""

from collections.abc import Iterable
from itertools import combinations

import numpy as np
import polars as pl
import torch
from jaxtyping import Float64, Int64

from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline, Keep
from depthscope.experiments.document_sums import Rows
from depthscope.experiments.experiment import Subject
from depthscope.models.model import Model
from depthscope.schema.similarity import ANGULAR_DISTANCE, CKA
from depthscope.statistics.alignment import BATCH, angular_distances, jackknife_interval
from depthscope.statistics.estimate import Estimate, estimate_of

NAME = "geometry"
WINDOWS = 512
SHARD = {"window": pl.Int64, "document": pl.Int64, "depth": pl.Int32, "residual": pl.List(pl.Float32)}
KEYS = {"layer": pl.Int32, "other": pl.Int32}


class LastTokens:
    """The residual streams x_0 … x_L of the last tokens of the text's first `most` windows, kept in shards.

    `windows` are all windows of the text. What a subclass computes from them grows with `most`, not with the text.
    """

    keep = Keep.NOTHING
    readouts = 0

    def __init__(self, model: Model, windows: Windows, most: int) -> None:
        self.place = {place: i for i, place in enumerate(_places(windows.part(0, min(most, len(windows)))))}
        self.depths = model.depth + 1

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a unit: the last token's residual stream at every depth, one row each."""
        last = torch.stack([residual[:, -1].float() for residual in baseline.residuals], 1).cpu().numpy()
        rows = [
            (window, int(windows.document[i]), depth, last[i, depth].tolist())
            for i, place in enumerate(_places(windows))
            if (window := self.place.get(place)) is not None
            for depth in range(self.depths)
        ]
        return pl.DataFrame(rows, schema=SHARD, orient="row")

    def gathered(
        self, shards: Iterable[pl.DataFrame]
    ) -> tuple[Float64[np.ndarray, "windows depths d_model"], Int64[np.ndarray, " windows"]]:
        """All kept residual streams in the order of the text, and the windows' documents."""
        rows = pl.concat(shards).sort("window", "depth")
        documents = rows["document"].to_numpy()[:: self.depths]
        return np.stack(rows["residual"].to_list()).reshape(len(documents), self.depths, -1), documents


class Geometry(LastTokens):
    """Angular distance and CKA of x_0 … x_L. A reading of the shared pass; `windows` are all windows of the text."""

    name = NAME

    def __init__(self, model: Model, windows: Windows) -> None:
        super().__init__(model, windows, WINDOWS)
        self.settings = {"windows": min(WINDOWS, len(windows)), "batch": BATCH}

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """GEOMETRY_TABLE."""
        pairs = list(combinations(range(self.depths), 2))
        residuals, documents = self.gathered(shards)
        apart = angular_distances(residuals)[:, *zip(*pairs, strict=True)].T[None]
        distances = estimate_of(apart, documents)
        # CKA is not a mean over tokens: its interval is from a jackknife over documents.
        value, low, high = (one[*zip(*pairs, strict=True)][None] for one in jackknife_interval(residuals, documents))
        alignment = Estimate(value, low, high, distances.tokens, distances.documents)
        metrics = ((ANGULAR_DISTANCE, distances), (CKA, alignment))
        return {NAME: pl.concat([Rows(KEYS, pairs, [metric]).filled(found) for metric, found in metrics])}


def make(subject: Subject) -> Geometry:
    """Geometry on the first windows of the text."""
    return Geometry(subject.model, subject.windows)


def _places(windows: Windows) -> list[tuple[int, int]]:
    """Document and place in it of each window's first token, which identify the window."""
    document, position = windows.places
    return list(zip(document[:, 0].tolist(), position[:, 0].tolist(), strict=True))

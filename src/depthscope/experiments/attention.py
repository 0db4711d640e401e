"""Attention (E4): how much of it goes to the previous tokens, to the first token and to the token itself.

Shares are means over the queries that have at least as many previous tokens as the longest reach: the same queries for every
column, so that columns are comparable. Under `lad2024` the value is the mean entry of the pattern's first sub-diagonals
over all queries, as in the published script: about 1/k of the share.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline, Keep
from depthscope.errors import UnsupportedError
from depthscope.experiments.document_sums import Rows
from depthscope.experiments.experiment import Subject
from depthscope.models.model import Model
from depthscope.models.patterns import pattern_heads
from depthscope.schema.attention import BANDS, FIRST, ITSELF, PREVIOUS
from depthscope.schema.protocol import LAD2024, TEXT
from depthscope.shapes import Pattern

NAME, HEADS = "attention", "attention_heads"
Shares = Float[Tensor, "metrics heads batch"]


class Attention:
    """Shares of attention per head and layer. A reading of the shared pass.

    Raises UnsupportedError for a model without attention patterns, or windows too short for any previous tokens.
    """

    name = NAME
    keep = Keep.NOTHING
    readouts = 0

    def __init__(self, model: Model, length: int, protocol: str = TEXT) -> None:
        self.lad2024 = protocol == LAD2024
        self.reaches = [reach for reach in PREVIOUS if reach < length]
        heads = pattern_heads(model)
        if not any(heads):
            raise UnsupportedError(f"{model.name} ({model.family}) has no attention patterns in any of its blocks")
        without = [layer for layer, count in enumerate(heads) if not count]
        self.settings = {"protocol": protocol, "reaches": self.reaches, "layers_without_patterns": without}
        kinds = BANDS if self.lad2024 else PREVIOUS
        metrics = (*(kinds[reach] for reach in self.reaches), FIRST, ITSELF)
        names = [(layer, head) for layer, count in enumerate(heads) for head in range(count)]
        self.rows = Rows({"layer": pl.Int32, "head": pl.Int32}, names, metrics)
        self.queries = length if self.lad2024 else length - max(self.reaches)

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a unit."""
        shares = band_entries if self.lad2024 else previous_shares
        layers = [shares(pattern, self.reaches) for pattern in baseline.patterns() if pattern is not None]
        sums = torch.cat(layers, dim=1).cpu().numpy() * self.queries
        return self.rows.shard(sums, self.queries, windows.document)

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """ATTENTION_TABLE, the mean over a layer's heads, and HEADS_TABLE."""
        layers = sorted({layer for layer, _ in self.rows.names})
        members = [[i for i, (layer, _) in enumerate(self.rows.names) if layer == one] for one in layers]
        per_layer = Rows({"layer": pl.Int32}, [(layer,) for layer in layers], self.rows.metrics)
        firsts = [rows[0] for rows in members]  # a layer's heads have the same queries
        of_heads, of_layers = self.rows.moments(), per_layer.moments()
        for one in self.rows.documents(shards):
            of_heads.add(one.tokens, one.sums)
            of_layers.add(one.tokens[firsts], np.stack([one.sums[:, rows].mean(1) for rows in members], 1))
        return {NAME: per_layer.filled(of_layers.estimate()), HEADS: self.rows.filled(of_heads.estimate())}


def make(subject: Subject) -> Attention:
    """Shares of attention on windows of the text's length."""
    return Attention(subject.model, subject.windows.length, subject.options["protocol"])


def previous_shares(pattern: Pattern, reaches: Sequence[int]) -> Shares:
    """Means over the queries that have max(reaches) tokens before them: on the previous tokens, the first, itself."""
    longest = max(reaches)
    queries = pattern[..., longest:, :]  # not yet in float64: whole patterns would take gigabytes
    bands = torch.stack([queries.diagonal(longest - back, -2, -1) for back in range(1, longest + 1)]).double()
    shares = [*(bands.cumsum(0)[reach - 1] for reach in reaches), queries[..., 0], queries.diagonal(longest, -2, -1)]
    return torch.stack([share.double().mean(-1).T for share in shares])


def band_entries(pattern: Pattern, reaches: Sequence[int]) -> Shares:
    """Mean entry of the first k sub-diagonals, of the first column, and of the diagonal, over all queries."""
    sums = torch.stack([pattern.diagonal(-back, -2, -1).double().sum(-1) for back in range(1, max(reaches) + 1)])
    entries = torch.tensor([pattern.shape[-1] - back for back in range(1, max(reaches) + 1)], device=sums.device)
    means = (sums.cumsum(0) / entries.cumsum(0)[:, None, None])[[reach - 1 for reach in reaches]]
    others = (pattern[..., 0].double().mean(-1), pattern.diagonal(0, -2, -1).double().mean(-1))
    return torch.stack([mean.T for mean in (*means, *others)])

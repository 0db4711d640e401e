"""Attention (E4): how much of it goes to the previous tokens, to the first token and to the token itself.

Shares are means over the queries that have at least as many previous tokens as the longest reach, or over all: the same
queries for every column, so that columns are comparable. Under `lad2024` the value is the mean entry of the pattern's first
sub-diagonals over all queries, as in the published script: about 1/k of the share.
"""

from collections.abc import Iterable, Sequence
from typing import Any

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
from depthscope.schema.attention import ALL, BANDS, FIRST, FULL, ITSELF, PREVIOUS
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

    def __init__(self, model: Model, length: int, protocol: str = TEXT, queries: str = FULL) -> None:
        self.lad2024 = protocol == LAD2024
        self.reaches = [reach for reach in PREVIOUS if reach < length]
        heads = pattern_heads(model)
        if not any(heads):
            raise UnsupportedError(f"{model.name} ({model.family}) has no attention patterns in any of its blocks")
        without = [layer for layer, count in enumerate(heads) if not count]
        self.settings: dict[str, Any] = {
            "protocol": protocol,
            "reaches": self.reaches,
            "layers_without_patterns": without,
            **({} if queries == FULL else {"queries": queries}),  # runs made before there was a choice have no entry
        }
        kinds = BANDS if self.lad2024 else PREVIOUS
        metrics = (*(kinds[reach] for reach in self.reaches), FIRST, ITSELF)
        names = [(layer, head) for layer, count in enumerate(heads) for head in range(count)]
        self.rows = Rows({"layer": pl.Int32, "head": pl.Int32}, names, metrics)
        self.first_query = 0 if self.lad2024 or queries == ALL else max(self.reaches)
        self.queries = length - self.first_query

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a unit."""
        layers = [self._shares(pattern) for pattern in baseline.patterns() if pattern is not None]
        sums = torch.cat(layers, dim=1).cpu().numpy() * self.queries
        return self.rows.shard(sums, self.queries, windows.document)

    def _shares(self, pattern: Pattern) -> Shares:
        if self.lad2024:
            return band_entries(pattern, self.reaches)
        return (previous_shares if self.first_query else shares_of_all)(pattern, self.reaches)

    def joined(self, shards: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """The shard of a unit that was read in parts."""
        return self.rows.joined(shards)

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
    return Attention(subject.model, subject.windows.length, subject.options["protocol"], subject.options["queries"])


def previous_shares(pattern: Pattern, reaches: Sequence[int]) -> Shares:
    """Means over the queries that have max(reaches) tokens before them: on the previous tokens, the first, itself."""
    longest = max(reaches)
    queries = pattern[..., longest:, :]  # not yet in float64: whole patterns would take gigabytes
    bands = torch.stack([queries.diagonal(longest - back, -2, -1) for back in range(1, longest + 1)]).double()
    shares = [*(bands.cumsum(0)[reach - 1] for reach in reaches), queries[..., 0], queries.diagonal(longest, -2, -1)]
    return torch.stack([share.double().mean(-1).T for share in shares])


def shares_of_all(pattern: Pattern, reaches: Sequence[int]) -> Shares:
    """The same over all queries; one with fewer than k tokens before it counts with those it has."""
    bands = torch.stack([pattern.diagonal(-back, -2, -1).double().sum(-1) for back in range(1, max(reaches) + 1)])
    previous = bands.cumsum(0)[[reach - 1 for reach in reaches]] / pattern.shape[-1]
    others = (pattern[..., 0].double().mean(-1), pattern.diagonal(0, -2, -1).double().mean(-1))
    return torch.stack([mean.T for mean in (*previous, *others)])


def band_entries(pattern: Pattern, reaches: Sequence[int]) -> Shares:
    """Mean entry of the first k sub-diagonals, of the first column, and of the diagonal, over all queries."""
    sums = torch.stack([pattern.diagonal(-back, -2, -1).double().sum(-1) for back in range(1, max(reaches) + 1)])
    entries = torch.tensor([pattern.shape[-1] - back for back in range(1, max(reaches) + 1)], device=sums.device)
    means = (sums.cumsum(0) / entries.cumsum(0)[:, None, None])[[reach - 1 for reach in reaches]]
    others = (pattern[..., 0].double().mean(-1), pattern.diagonal(0, -2, -1).double().mean(-1))
    return torch.stack([mean.T for mean in (*means, *others)])

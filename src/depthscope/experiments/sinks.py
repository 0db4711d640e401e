"""Attention sinks: heads whose attention goes mostly to the first token (Gu et al. 2024, arXiv 2410.10781).

With A the pattern of a head on the first T = 64 positions of a window, the mean attention to key k is

    α_k = Σ_{i ≥ k} A[i, k] / (T − k + 1),    i, k = 1 … T

and the head has a sink at k in this window if α_k > 0.3. As in the published code, α_k is compared window by window: the share
of heads with a sink is then a mean over windows, with an interval over documents like any other. Attention is causal, so the
pattern of the first T positions is the same in a longer window.
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
from depthscope.errors import DataError, UnsupportedError
from depthscope.experiments.document_sums import Rows, estimate_columns
from depthscope.experiments.experiment import Subject
from depthscope.models.model import Model
from depthscope.models.patterns import attention_patterns, pattern_heads
from depthscope.schema.sinks import LEAST_QUERIES, METRICS, QUERIES, SINK_HEADS, THRESHOLD, TO_FIRST
from depthscope.shapes import Pattern
from depthscope.statistics.estimate import LEVEL, ClusterMoments, Estimate

NAME, MODEL, HEADS = "sinks", "sinks_model", "sink_heads"


class Sinks:
    """Attention sinks of every head. A reading of the shared pass; `length` is that of the windows.

    Raises UnsupportedError for a model without attention patterns, and DataError for windows of fewer than 16 tokens.
    """

    name = NAME
    keep = Keep.NOTHING
    readouts = 0

    def __init__(self, model: Model, length: int) -> None:
        if length < LEAST_QUERIES:
            raise DataError(
                f"windows of {length} tokens are too short for attention sinks: expected at least {LEAST_QUERIES}, better "
                f"{QUERIES}. Use a longer --window"
            )
        heads = pattern_heads(model)
        if not any(heads):
            raise UnsupportedError(f"{model.name} ({model.family}) has no attention patterns in any of its blocks")
        self.queries = min(QUERIES, length)
        self.settings: dict[str, Any] = {"queries": self.queries, "threshold": THRESHOLD}
        names = [(layer, head) for layer, count in enumerate(heads) for head in range(count)]
        self.rows = Rows({"layer": pl.Int32, "head": pl.Int32}, names, METRICS)

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a unit: of each head the sums over windows."""
        first = slice(0, self.queries)
        residuals = [residual[:, first] for residual in baseline.residuals]
        patterns = attention_patterns(baseline.model, baseline.ids[:, first], residuals, baseline.named)
        sums = torch.cat([sink_measures(pattern) for pattern in patterns if pattern is not None], dim=1)
        return self.rows.shard(sums.cpu().numpy(), 1, windows.document)

    def joined(self, shards: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """The shard of a unit that was read in parts."""
        return self.rows.joined(shards)

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """SINKS_TABLE, SINKS_MODEL_TABLE and SINK_HEADS_TABLE."""
        layers = sorted({layer for layer, _ in self.rows.names})
        members = [[i for i, (layer, _) in enumerate(self.rows.names) if layer == one] for one in layers]
        per_layer = Rows({"layer": pl.Int32}, [(layer,) for layer in layers], METRICS)
        of_model, of_layers, of_heads = ClusterMoments(len(METRICS)), per_layer.moments(), self.rows.moments()
        for one in self.rows.documents(shards):
            windows = int(one.tokens[0])  # the same windows for all heads
            means = np.stack([one.sums[:, rows].mean(1) for rows in members], 1)
            of_heads.add(windows, one.sums)
            of_layers.add(windows, means)
            of_model.add(windows, means.mean(1))
        model = pl.concat(
            [
                estimate_columns(of_model.estimate(), METRICS),
                estimate_columns(heads_above(of_heads), [SINK_HEADS]),
            ]
        )
        return {
            NAME: per_layer.filled(of_layers.estimate()),
            MODEL: model,
            HEADS: self.rows.filled(of_heads.estimate()),
        }


def make(subject: Subject) -> Sinks:
    """Attention sinks on windows of the text's length."""
    return Sinks(subject.model, subject.windows.length)


def sink_measures(pattern: Pattern) -> Float[Tensor, "metrics heads batch"]:
    """METRICS of each head and window, from patterns on the first T positions."""
    queries = pattern.shape[-1]
    keys = queries // 2 + 1  # later ones have fewer than half of the queries
    counts = queries - torch.arange(keys, device=pattern.device)
    received = pattern[..., :keys].double().sum(-2) / counts
    first, later = received[..., 0], received[..., 1:].amax(-1)
    return torch.stack([(first > THRESHOLD).double().T, (later > THRESHOLD).double().T, first.T])


def heads_above(moments: ClusterMoments) -> Estimate:
    """How many heads have a mean attention to the first token above the threshold, as an estimate of one column.

    The bounds count heads by intervals at level 1 − 0.05 / heads each: with probability 95 % all of them hold at once, and then
    the true number is between the heads that are above with their whole interval and those that reach above with its end.
    """
    place = METRICS.index(TO_FIRST)
    heads = moments.sums.shape[1]
    found = moments.estimate(1 - (1 - LEVEL) / heads)
    mean, low, high = (values[place] for values in (found.mean, found.low, found.high))
    above = [float((values > THRESHOLD).sum()) for values in (mean, low, high)]
    if np.isnan(low).any():
        above[1:] = [np.nan, np.nan]
    count, least, most = (np.array([value]) for value in above)
    return Estimate(count, least, most, found.tokens, found.documents)

"""Attention sinks: heads that attend mostly to the first token of a text (Gu et al. 2024, arXiv 2410.10781)."""

import polars as pl

from depthscope.schema.declaration import Experiment, Table
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.metric import Metric

THRESHOLD = 0.3
"""ε: a head has a sink at a key position if the mean attention to it is above this."""
QUERIES = 64
"""T: the first positions of each window that are queries and keys."""
LEAST_QUERIES = 16
"""With fewer, attention that is spread evenly comes close to the threshold: its mean over 10 queries is 0.29."""

SINK = Metric(
    "sink",
    "share",
    "Heads with a sink on the first token",
    f"share of heads and windows in which the mean attention to the window’s first token, over the first {QUERIES} queries, is "
    f"above {THRESHOLD} (Sink₁ of Gu et al. 2024)",
    0.0,
    1.0,
)
LATER_SINK = Metric(
    "later_sink",
    "share",
    "Heads with a sink on a later token",
    "share of heads and windows in which the mean attention to some later token is above the same threshold, over the queries "
    "from that token on, of which there are at least half of all",
    0.0,
    1.0,
)
TO_FIRST = Metric(
    "attention_to_first",
    "share",
    "Attention to the first token",
    f"mean attention to the window’s first token over the first {QUERIES} queries, the first one included",
    0.0,
    1.0,
)
METRICS = (SINK, LATER_SINK, TO_FIRST)
SINK_HEADS = Metric(
    "sink_heads",
    "heads",
    "Sink heads",
    f"number of heads whose mean attention to the first token, over all windows, is above {THRESHOLD}; the interval counts the "
    "heads whose intervals are above it and those whose intervals reach above it, with intervals that hold for all heads at "
    "once (Bonferroni)",
    0.0,
)

SINKS_TABLE = {"layer": pl.Int32, **ESTIMATE}
"""tables/sinks.parquet: means over the heads of a layer."""
SINK_HEADS_TABLE = {"layer": pl.Int32, "head": pl.Int32, **ESTIMATE}
"""tables/sink_heads.parquet."""
SINKS_MODEL_TABLE = {**ESTIMATE}
"""tables/sinks_model.parquet: means over the layers, and the number of sink heads."""

EXPERIMENT = Experiment(
    name="sinks",
    title="Attention sinks on the first token; massive activations.",
    question="Which heads attend mostly to the first token (attention sinks)? Which values of the residual stream are massive, "
    "in which dimensions and at which positions, and which layers write and remove them?",
    make="depthscope.experiments.sinks:make",
    tables={
        "sinks": Table(columns=SINKS_TABLE, metrics=METRICS),
        "sinks_model": Table(columns=SINKS_MODEL_TABLE, metrics=(*METRICS, SINK_HEADS)),
        "sink_heads": Table(columns=SINK_HEADS_TABLE, metrics=METRICS),
    },
    source="Gu et al. 2024 (When Attention Sink Emerges)",
)

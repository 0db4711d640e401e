"""The sweep: what is measured for each edit, its table and shards. The edits are those of `edit_registry.sweeps`."""

import polars as pl

from depthscope import edits  # noqa: F401  registers the built-in edits
from depthscope.edit_registry import check_edits, sweeps
from depthscope.schema import precision
from depthscope.schema.declaration import Experiment, Option, Table
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.measures import AGREEMENT as AGREEMENT
from depthscope.schema.measures import BUILT_IN, metrics_of
from depthscope.schema.measures import ENTROPY as ENTROPY
from depthscope.schema.measures import KL as KL
from depthscope.schema.measures import LOSS as LOSS
from depthscope.schema.token_classes import BY_CLASS

MEASURED = tuple(BUILT_IN.values())
"""What a sweep measures per token if no other measure is registered."""

METRICS = metrics_of(MEASURED)
"""The metrics in its table: the measures, and the changes computed from a measure and the baseline."""
ENTROPY_CHANGE, LOSS_CHANGE = METRICS["entropy_change"], METRICS["loss_change"]


BASELINE_EDIT, BASELINE_LAYER = "none", -1
"""The values of `edit` and `layer` for the unmodified model."""

SWEEP_TABLE = {"edit": pl.String, "layer": pl.Int32, **ESTIMATE}
"""tables/sweep.parquet."""

TOKEN_KEYS = {
    "document": pl.Int64,
    "position": pl.Int64,
    "token": pl.Int32,
    "next_token": pl.Int32,
    "edit": pl.String,
    "layer": pl.Int32,
}
CLUSTER = "cluster"
TOKEN_SHARD = {**TOKEN_KEYS, **{m.name: pl.Float32 for m in MEASURED}}
"""shards/sweep with --per-token: one row per edit, layer and position. `position` counts within the document, so that
`document` and `position` identify a token; everything in a row is about the same next-token distribution. Information is in
nats, agreement is 0 or 1. With --cluster a last column `cluster` has the number of the cluster, that of its first document."""

DOCUMENT_SHARD = {
    "document": pl.Int64,
    "edit": pl.String,
    "layer": pl.Int32,
    "tokens": pl.Int64,
    **{m.name: pl.Float64 for m in MEASURED},
}
"""shards/sweep otherwise: one row per document (pack, cluster), edit and layer, metrics summed over its tokens in the shard."""

EDITS = Option(
    name="edits",
    type=tuple,
    default=None,
    help=lambda: (
        f"Which edits, separated by commas: {', '.join(name.replace('_', '-') for name in sweeps())}. Edits of a component "
        "are applied in the layers that have it."
    ),
    shown_default="all that apply to the model",
    check=check_edits,
)
PER_TOKEN = Option(
    name="per_token", type=bool, default=False, help="Keep the sweep's values for every token in its shards."
)
EXPERIMENT = Experiment(
    name="sweep",
    title="Swap, drop and ablate every layer and measure the effect.",
    question="How does each edit at each layer, one at a time, change the predictions: KL divergence, agreement, entropy, "
    "loss?",
    make="depthscope.experiments.sweep:make",
    tables={
        "sweep": Table(columns=SWEEP_TABLE, metrics=tuple(METRICS.values()), in_terminal=(KL, AGREEMENT)),
        "precision": Table(columns=precision.PRECISION_TABLE),
    },
    options=(EDITS, PER_TOKEN, BY_CLASS),
    source="Lad et al. 2024, figures 2, 3 and 13 to 15",
)

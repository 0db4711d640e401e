"""How much attention and MLP contribute to the residual stream."""

import polars as pl

from depthscope.schema.declaration import Experiment, Table
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.metric import Metric

ATTENTION_NORM = Metric(
    "attention_norm",
    "norm",
    "Norm of the attention output",
    "‖attention output‖ as it is added to the residual stream",
    0.0,
)
MLP_NORM = Metric(
    "mlp_norm", "norm", "Norm of the MLP output", "‖MLP output‖ as it is added to the residual stream", 0.0
)
NORM_RATIO = Metric(
    "norm_ratio", "ratio", "Attention norm over MLP norm", "‖attention output‖ / ‖MLP output‖ at a position", 0.0
)
RESIDUAL_NORM = Metric(
    "residual_norm", "norm", "Norm of the residual stream", "‖residual stream‖ before the block", 0.0
)
METRICS = (ATTENTION_NORM, MLP_NORM, NORM_RATIO, RESIDUAL_NORM)

NORMS_TABLE = {"layer": pl.Int32, **ESTIMATE}
"""tables/norms.parquet. In LayerNorm models all vectors are centred first: no component reads their mean."""

EXPERIMENT = Experiment(
    name="norms",
    title="How much attention and MLP add to the residual stream.",
    question="How much do the attention and MLP of every layer add to the residual stream?",
    make="depthscope.experiments.norms:make",
    tables={"norms": Table(columns=NORMS_TABLE, metrics=METRICS)},
    source="Lad et al. 2024, figures 5 and 7",
)

"""Formation: when in training the effect of each layer forms, from a series of checkpoints. SERIES/tables/formation.parquet."""

import polars as pl

from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.metric import Metric

NAME = "formation"
HALF_CHANGE = Metric(
    "half_change_step",
    "steps",
    "Half of the change",
    "step of training at which the mean KL first crosses the middle between its values at the first and at the last "
    "checkpoint, interpolated linearly in log(1 + step); 95% interval by a bootstrap over documents, "
    "the same ones at every checkpoint",
    0.0,
)
CHANGE = Metric(
    "change",
    "nats",
    "Change over training",
    "mean KL at the last checkpoint minus that at the first; 95% interval by the same bootstrap",
)
METRICS = (HALF_CHANGE, CHANGE)
FORMATION_TABLE = {
    "study": pl.String,
    "trained": pl.String,
    "text": pl.String,
    "edit": pl.String,
    "layer": pl.Int32,
    **ESTIMATE,
}
"""For each training run, text, edit and layer. There is no step where the interval of the change contains 0."""

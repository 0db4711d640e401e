"""How precise a sweep with a goal has become, row by row."""

import polars as pl

PRECISION_TABLE = {
    "edit": pl.String,
    "layer": pl.Int32,
    "mean": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "half_width_relative": pl.Float64,
    "under_noise_floor": pl.Boolean,
    "documents": pl.Int64,
    "tokens": pl.Int64,
}
"""tables/precision.parquet, of runs with `--precision`: the mean KL in nats of each edit at each layer where the run stopped,
with the interval that decided on stopping. That interval holds however often one looked, and is wider than the sweep's own
(docs/concepts/precision.md); it and the relative half-width, which is over the mean, are null before there are enough
documents. `under_noise_floor`: whether the whole interval lies under what the rounding of the run's dtype gives."""

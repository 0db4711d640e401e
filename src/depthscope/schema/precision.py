"""How precise a sweep or a map with a goal has become, row by row."""

import polars as pl

PRECISION_TABLE = {
    "edit": pl.String,
    "layer": pl.Int32,
    "other": pl.Int32,
    "mean": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "half_width_relative": pl.Float64,
    "under_noise_floor": pl.Boolean,
    "documents": pl.Int64,
    "tokens": pl.Int64,
}
"""tables/precision.parquet, for runs with `--precision`: the mean KL in nats of each edit at each layer when the run stopped,
with the interval that decided when to stop. In a run with a map and no sweep it is that of each cell: `layer` and `other` are
its first and last layer, which are equal in a sweep. That interval is valid however often it is checked, and is wider than
the sweep's; its 95 % is per row, not for all rows together (docs/concepts/precision.md). The interval and its half-width
relative to the mean are null until there are enough documents. `under_noise_floor`: whether the whole interval lies below the
KL that rounding in the run's dtype produces."""

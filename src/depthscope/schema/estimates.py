"""The columns every table of estimates ends with, and those of shards of moments."""

import polars as pl

ESTIMATE = {
    "metric": pl.String,
    "unit": pl.String,
    "mean": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "tokens": pl.Int64,
    "documents": pl.Int64,
}
"""A row of a table of estimates, after the columns that say what it is about. The interval is the 95 % one over
documents; null where one document gives none. `tokens` are those the mean is over."""

MOMENTS = {
    "documents": pl.Int64,
    "tokens": pl.Int64,
    "tokens_squared": pl.Float64,
    "sum": pl.Float64,
    "square": pl.Float64,
    "product": pl.Float64,
}
"""A row of a shard of moments over whole documents, after the columns that say what it is about: with n_d tokens in document
d and the sum S_d of a quantity over them, the number of documents that have any, Σ n_d, Σ n_d², Σ S_d, Σ S_d², Σ n_d S_d."""

"""Quantities and the columns every table of estimates ends with."""

from dataclasses import dataclass

import polars as pl


@dataclass(frozen=True, slots=True)
class Metric:
    """One measured quantity: its column name, unit, range, and the sentence that defines it."""

    name: str
    unit: str
    title: str
    definition: str
    lowest: float | None = None
    highest: float | None = None


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

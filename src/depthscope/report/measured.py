"""A run's tables, read for showing: series by layer and metric, and numbers as text."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from depthscope.errors import RunError
from depthscope.report.palette import SHOWN
from depthscope.run.store import RunDirectory
from depthscope.schema.metric import Metric
from depthscope.schema.sweep import AGREEMENT, BASELINE_EDIT, BASELINE_LAYER, METRICS, SWEEP_TABLE

SWEEP = "sweep"
NBSP = "\u00a0"
"""Keeps a number beside its unit at the end of a line."""
SAID_UNITS = ("nats",)
"""Units that are said after a number; the others stand in the name of the quantity."""


@dataclass(frozen=True, slots=True)
class Value:
    """A mean and its 95 % interval in the metric's unit; the interval is None where one document gives none."""

    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def has_interval(self) -> bool:
        """Whether both bounds are there."""
        return self.low is not None and self.high is not None


Series = dict[int, Value]
"""Values by layer, or by another whole number, in order."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a sweep table holds: values by (edit, layer, metric), and what they rest on."""

    depth: int
    tokens: int
    documents: int
    values: dict[tuple[str, int, str], Value]

    @property
    def edits(self) -> list[str]:
        """The edits that were measured, in the order they are shown."""
        there = {edit for edit, _, _ in self.values}
        return [name for name in SHOWN if name in there]

    def series(self, edit: str, metric: Metric) -> Series:
        """Values by layer, from the first layer to the last that were measured."""
        found = {layer: value for (e, layer, m), value in self.values.items() if (e, m) == (edit, metric.name)}
        return dict(sorted(found.items()))

    def baseline(self, metric: Metric) -> Value | None:
        """The unedited model's value."""
        return self.values.get((BASELINE_EDIT, BASELINE_LAYER, metric.name))


def read_table(run: RunDirectory, name: str, columns: Iterable[str]) -> pl.DataFrame:
    """A table of a run. Raises RunError where there is none, it lacks columns or has no rows."""
    table = run.table(name)
    columns = list(columns)
    if missing := [column for column in columns if column not in table.columns]:
        raise RunError(
            f"the {name} table of {run.path} lacks {', '.join(missing)}: expected the columns {', '.join(columns)}"
        )
    if table.is_empty():
        raise RunError(f"the {name} table of {run.path} has no rows: expected one per layer and metric at least")
    return table


def read_sweep(run: RunDirectory) -> Measured:
    """Read a run's sweep table. Raises RunError where there is none, or it is not such a table."""
    table = read_table(run, SWEEP, SWEEP_TABLE)
    rows = table.filter(pl.col("metric").is_in(list(METRICS)))
    values = {
        (edit, layer, metric): Value(mean, low, high)
        for edit, layer, metric, mean, low, high in rows.select(
            "edit", "layer", "metric", "mean", "ci_low", "ci_high"
        ).iter_rows()
    }
    seen = max((layer + (2 if edit == "swap" else 1) for edit, layer, _ in values), default=1)
    return Measured(depth_of(run.manifest, seen), table["tokens"][0], table["documents"][0], values)


def depth_of(manifest: dict[str, Any], seen: int) -> int:
    """Layers of the model, from the manifest; at least as many as were `seen`, where the manifest is silent."""
    return max(manifest.get("model", {}).get("layers") or 1, seen, 1)


def series(table: pl.DataFrame, metric: Metric, by: str = "layer", **where: Any) -> Series:
    """A metric's values by a column, of the rows where other columns are as told; rows without a mean are left out."""
    chosen = table.filter(pl.col("metric") == metric.name, pl.col("mean").is_not_null(), **where)
    rows = chosen.sort(by).select(by, "mean", "ci_low", "ci_high").iter_rows()
    return {key: Value(mean, low, high) for key, mean, low, high in rows}


def ranked(values: Mapping[int, Value]) -> list[int]:
    """Layers from the largest mean to the smallest."""
    return sorted(values, key=lambda layer: -values[layer].mean)


def is_share(metric: Metric) -> bool:
    """Whether a metric is a share, written in per cent."""
    return metric.unit == AGREEMENT.unit


def number(value: float, metric: Metric, digits: int | None = None) -> str:
    """A value as text without its unit: shares in per cent with one decimal, others with 3 significant digits.

    `digits` sets the decimals instead, for columns that line up.
    """
    if is_share(metric):
        value, digits = 100 * value, 1
    decimals = decimals_for([value]) if digits is None else digits
    text = f"{value:.{decimals}f}"
    # A true minus is as wide as a plus, and an interval's end that rounds to nought has no sign.
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def unit_of(metric: Metric) -> str:
    """The unit a value is written with: %, nats."""
    return "%" if is_share(metric) else metric.unit


def decimals_for(values: list[float]) -> int:
    """Decimals that leave the smallest of some values 3 significant digits; 2 at least, 6 at most."""
    smallest = min((abs(value) for value in values if value != 0), default=1.0)
    return max(2, min(6, 2 - math.floor(math.log10(smallest))))


def interval(value: Value, metric: Metric, digits: int | None = None) -> str:
    """`low to high` without unit, to as many decimals as the mean, unbroken; empty where there is no interval."""
    if value.low is None or value.high is None:
        return ""
    decimals = decimals_for([value.mean]) if digits is None else digits
    return f"{number(value.low, metric, decimals)}{NBSP}to{NBSP}{number(value.high, metric, decimals)}"


def with_unit(value: Value, metric: Metric) -> str:
    """A mean with its unit, unbroken: `5.30 nats`, `72.6%`; cosines and ratios have none."""
    text = number(value.mean, metric)
    if is_share(metric):
        return f"{text}%"
    return f"{text}{NBSP}{metric.unit}" if metric.unit in SAID_UNITS else text


def spoken(value: Value, metric: Metric) -> str:
    """A value in a sentence: `5.30 nats (5.18 to 5.43)`, without brackets where there is no interval."""
    text = with_unit(value, metric)
    return f"{text} ({interval(value, metric)})" if value.has_interval else text


def protocol_note(run: RunDirectory, experiment: str, note: str) -> list[str]:
    """`note`, where the experiment followed the published script rather than the paper's text."""
    own = run.settings.get("experiments", {}).get(experiment, {})
    return [note] if own.get("protocol") == "lad2024" else []

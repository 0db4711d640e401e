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


SMALLEST = 1e-4
"""Below, numbers are written with a power of ten."""


def number(value: float, metric: Metric, digits: int | None = None) -> str:
    """A value as text without its unit: shares in per cent with one decimal, others with 3 significant digits.

    `digits` sets the decimals instead, for columns that line up. A number that would then be written as nought, though it is
    not, has as many decimals as show it, or a power of ten: `0.00123`, `3.10 × 10⁻⁷`.
    """
    scaled, decimals = _form(value, metric, digits)
    return _text(scaled, decimals)


def _form(mean: float, metric: Metric, digits: int | None) -> tuple[float, int | None]:
    """A mean in the unit it is written in, and how many decimals show it; None: a power of ten."""
    if is_share(metric):
        mean, digits = 100 * mean, 1
        too_few = float(f"{mean:.1f}") == 0
    else:
        too_few = digits is None or abs(mean) < 10 ** (1 - digits)
    if digits is None or (mean != 0 and too_few):
        digits = decimals_for([mean])
    return mean, None if 0 < abs(mean) < SMALLEST else digits


def _text(value: float, decimals: int | None) -> str:
    if decimals is None:
        return scientific(value, 3).replace(" ", NBSP)
    text = f"{value:.{decimals}f}"
    # A true minus is as wide as a plus, and an interval's end that rounds to nought has no sign.
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def scientific(value: float, digits: int = 2) -> str:
    """Significant digits, with a power of ten where plain figures would be long: `3.1 × 10⁻¹²`, `0.020`, `240`."""
    least = SMALLEST if digits > 2 else 1e-3
    if value == 0 or least <= abs(value) < 1e4:
        return f"{value:.{digits}g}" if abs(value) < 100 else f"{value:.0f}"
    figures, power = f"{value:.{digits - 1}e}".split("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{figures} × 10{raised}".replace("-", "−")


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
    _, decimals = _form(value.mean, metric, digits)
    low, high = (_text(_form(end, metric, None)[0], decimals) for end in (value.low, value.high))
    return f"{low}{NBSP}to{NBSP}{high}"


def give_or_take(value: Value, metric: Metric, digits: int = 3) -> str:
    """`0.324 ± 0.026`: a mean and half of its interval, to as many decimals; the mean alone where there is no interval.

    What is not 0 is not written as 0.000, and what is exactly 0, as a model's KL to itself, is written 0.
    """
    mean, decimals = _form(value.mean, metric, digits)
    if value.low is None or value.high is None:
        return "0" if mean == 0 else _text(mean, decimals)
    half = max(value.mean - value.low, value.high - value.mean)  # an end may have been cut at what the metric can be
    half, of_half = _form(half, metric, digits)
    if mean == half == 0:
        return "0"
    if decimals is None or half == 0 or float(f"{half:.{decimals}f}") != 0:
        of_half = decimals if decimals is not None else of_half
    elif of_half is not None:
        decimals = of_half = of_half - 2  # one digit of the half
    return f"{_text(mean, decimals)} ± {_text(half, of_half)}"


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

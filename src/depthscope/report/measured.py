"""A run's tables prepared for display: series by layer and metric, and numbers as text."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from depthscope.edit_registry import sweeps
from depthscope.errors import DepthscopeError, RunError
from depthscope.report.palette import shown_edits
from depthscope.run.store import RunDirectory
from depthscope.schema.manifest import Manifest
from depthscope.schema.measures import Measure, metrics_of
from depthscope.schema.metric import Metric
from depthscope.schema.sweep import AGREEMENT, BASELINE_EDIT, BASELINE_LAYER, METRICS, SWEEP_TABLE

SWEEP = "sweep"
NBSP = "\u00a0"
"""Prevents a line break between a number and its unit."""
MOST_MEASURES = 32
"""Registered measures of a run that are shown: each has a panel."""
SAID_UNITS = ("nats",)
"""Units written after a number; others are part of the quantity's name."""


@dataclass(frozen=True, slots=True)
class Value:
    """A mean and its 95% interval in the metric's unit; the bounds are None if there is no interval (one document)."""

    mean: float
    low: float | None = None
    high: float | None = None

    @property
    def has_interval(self) -> bool:
        """Whether both bounds are known."""
        return self.low is not None and self.high is not None


Series = dict[int, Value]
"""Values by layer, or by another integer, in order."""


@dataclass(frozen=True, slots=True)
class SweepValues:
    """A sweep table: values by (edit, layer, metric), with the numbers of tokens and documents behind them."""

    depth: int
    tokens: int
    documents: int
    values: dict[tuple[str, int, str], Value]
    more: tuple[Measure, ...] = ()
    """Registered measures in addition to the built-in ones, as recorded by the run."""
    _by_curve: dict[tuple[str, str], Series] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        for (edit, layer, metric), value in sorted(self.values.items()):
            self._by_curve.setdefault((edit, metric), {})[layer] = value

    @property
    def edits(self) -> list[str]:
        """The measured edits in display order."""
        return shown_edits(edit for edit, _, _ in self.values)

    def series(self, edit: str, metric: Metric) -> Series:
        """Values by layer, in order, for the layers that were measured."""
        return dict(self._by_curve.get((edit, metric.name), {}))

    def baseline(self, metric: Metric) -> Value | None:
        """The unmodified model's value."""
        return self.values.get((BASELINE_EDIT, BASELINE_LAYER, metric.name))


def read_table(run: RunDirectory, name: str, columns: Iterable[str]) -> pl.DataFrame:
    """A table of a run. Raises RunError if it is missing, lacks columns or has no rows."""
    table = run.table(name)
    columns = list(columns)
    if missing := [column for column in columns if column not in table.columns]:
        raise RunError(
            f"the {name} table of {run.path} lacks {', '.join(missing)}: expected the columns {', '.join(columns)}"
        )
    if table.is_empty():
        raise RunError(f"the {name} table of {run.path} has no rows: expected at least one per layer and metric")
    # What is not a number was not measured.
    floats = [column for column, kind in table.schema.items() if kind.is_float()]
    return table.with_columns(
        pl.when(pl.col(column).is_finite()).then(pl.col(column)).alias(column) for column in floats
    )


def read_sweep(run: RunDirectory) -> SweepValues:
    """Read a run's sweep table. Raises RunError if it is missing or malformed."""
    table = read_table(run, SWEEP, SWEEP_TABLE)
    more = _registered(run)
    known_metrics = pl.col("metric").is_in([*METRICS, *metrics_of(more)])
    placed = (pl.col("layer") >= 0) | (pl.col("edit") == BASELINE_EDIT)
    rows = table.filter(known_metrics, placed, pl.col("mean").is_not_null())
    values = {
        (edit, layer, metric): Value(mean, low, high)
        for edit, layer, metric, mean, low, high in rows.select(
            "edit", "layer", "metric", "mean", "ci_low", "ci_high"
        ).iter_rows()
    }
    known = sweeps()
    seen = max((known[edit].blocks(layer)[-1] if edit in known else layer for edit, layer, _ in values), default=0) + 1
    return SweepValues(depth_of(run.manifest, seen), table["tokens"][0], table["documents"][0], values, more)


def _registered(run: RunDirectory) -> tuple[Measure, ...]:
    """The measures recorded in the run: a reader need not have registered them."""
    recorded = run.settings.of(SWEEP).get("measures", [])
    try:
        found = tuple(Measure(**described) for described in recorded)
        if len(found) > MOST_MEASURES or not all(map(_plain, found)):
            raise TypeError(f"expected at most {MOST_MEASURES}, with texts and numbers")
        return found
    except (TypeError, DepthscopeError) as error:
        raise RunError(f"the measures that {run.path} records cannot be read: {error}") from error


def _plain(measure: Measure) -> bool:
    texts = (measure.unit, measure.title, measure.definition, measure.change or "")
    bounds = (measure.lowest or 0, measure.highest or 0)
    return all(isinstance(one, str) for one in texts) and all(isinstance(one, int | float) for one in bounds)


def depth_of(manifest: Manifest, seen: int) -> int:
    """Layers of the model from the manifest, and at least `seen`, for manifests without the entry."""
    return max(manifest.model.layers or 1, seen, 1)


def series(table: pl.DataFrame, metric: Metric, by: str = "layer", **where: Any) -> Series:
    """A metric's values by the column `by`, for rows that match `where`; rows without a mean are skipped."""
    chosen = table.filter(pl.col("metric") == metric.name, pl.col("mean").is_not_null(), **where)
    rows = chosen.sort(by).select(by, "mean", "ci_low", "ci_high").iter_rows()
    return {key: Value(mean, low, high) for key, mean, low, high in rows}


def ranked(values: Mapping[int, Value]) -> list[int]:
    """Layers in order of decreasing mean."""
    return sorted(values, key=lambda layer: -values[layer].mean)


def is_share(metric: Metric) -> bool:
    """Whether a metric is a share, displayed in per cent."""
    return metric.unit == AGREEMENT.unit


SMALLEST = 1e-4
"""Smaller numbers are written with a power of ten."""


def number(value: float, metric: Metric, digits: int | None = None) -> str:
    """A value as text without its unit: shares in per cent with one decimal, others with 3 significant digits.

    `digits` sets the number of decimals instead, for aligned columns. A nonzero number that would then be written as zero has
    enough decimals to show it, or a power of ten: `0.00123`, `3.10 × 10⁻⁷`.
    """
    scaled, decimals = _form(value, metric, digits)
    return _text(scaled, decimals)


def _form(mean: float, metric: Metric, digits: int | None) -> tuple[float, int | None]:
    """A mean in its display unit, and its number of decimals; None: a power of ten."""
    if not math.isfinite(100 * mean):
        return mean, None
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
    if not math.isfinite(value):
        return scientific(value)
    text = f"{value:.{decimals}f}"
    # A true minus is as wide as a plus, and a bound that rounds to zero has no sign.
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


def scientific(value: float | None, digits: int = 2) -> str:
    """A number with `digits` significant digits, with a power of ten where needed: `3.1 × 10⁻¹²`, `0.020`, `240`.

    `unknown` for None, NaN and infinity, which a manifest of another version or an edited one may hold.
    """
    if value is None or not math.isfinite(value):
        return "unknown"
    least = SMALLEST if digits > 2 else 1e-3
    if value == 0 or least <= abs(value) < 1e4:
        return f"{value:.{digits}g}" if abs(value) < 100 else f"{value:.0f}"
    figures, power = f"{value:.{digits - 1}e}".split("e")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{figures} × 10{raised}".replace("-", "−")


def unit_of(metric: Metric) -> str:
    """The display unit of a value: %, nats."""
    return "%" if is_share(metric) else metric.unit


def decimals_for(values: list[float]) -> int:
    """Decimals that give the smallest nonzero value 3 significant digits; from 2 to 6."""
    smallest = min((abs(value) for value in values if value != 0 and math.isfinite(value)), default=1.0)
    return max(2, min(6, 2 - math.floor(math.log10(smallest))))


def interval(value: Value, metric: Metric, digits: int | None = None) -> str:
    """`low to high` without unit, with the mean's decimals and no line breaks; empty if there is no interval."""
    if value.low is None or value.high is None:
        return ""
    _, decimals = _form(value.mean, metric, digits)
    low, high = (_text(_form(end, metric, None)[0], decimals) for end in (value.low, value.high))
    return f"{low}{NBSP}to{NBSP}{high}"


def give_or_take(value: Value, metric: Metric, digits: int = 3) -> str:
    """`0.324 ± 0.026`: a mean and its interval's half-width, with the same decimals; the mean alone without an interval.

    A nonzero number is never written as 0.000; exactly 0, such as a model's KL to itself, is written 0.
    """
    mean, decimals = _form(value.mean, metric, digits)
    if value.low is None or value.high is None:
        return "0" if mean == 0 else _text(mean, decimals)
    half = max(value.mean - value.low, value.high - value.mean)  # a bound may have been clipped to the metric's range
    half, of_half = _form(half, metric, digits)
    if mean == half == 0:
        return "0"
    if decimals is None or half == 0 or float(f"{half:.{decimals}f}") != 0:
        of_half = decimals if decimals is not None else of_half
    elif of_half is not None:
        decimals = of_half = of_half - 2  # one digit of the half-width
    return f"{_text(mean, decimals)} ± {_text(half, of_half)}"


def with_unit(value: Value, metric: Metric) -> str:
    """A mean with its unit, without line breaks: `5.30 nats`, `72.6%`; cosines and ratios have no unit."""
    text = number(value.mean, metric)
    if is_share(metric):
        return f"{text}%"
    return f"{text}{NBSP}{metric.unit}" if metric.unit in SAID_UNITS else text


def spoken(value: Value, metric: Metric) -> str:
    """A value for a sentence: `5.30 nats (5.18 to 5.43)`, or `5.30 nats` without an interval."""
    text = with_unit(value, metric)
    return f"{text} ({interval(value, metric)})" if value.has_interval else text


def protocol_note(run: RunDirectory, experiment: str, note: str) -> list[str]:
    """[`note`] if the experiment followed the published script rather than the paper's text, otherwise []."""
    return [note] if run.settings.of(experiment).get("protocol") == "lad2024" else []

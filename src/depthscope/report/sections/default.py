"""The default section of an experiment without its own, from its table and the definitions of its metrics."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import polars as pl

from depthscope.report.charts import Curve, heat, layers, lines
from depthscope.report.measured import Value, interval, series, unit_of, with_unit
from depthscope.report.palette import OWN
from depthscope.report.panels import Panel
from depthscope.report.section import Section, TextTable
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.metric import Metric

SHOWN_ROWS = 40
"""Rows of a table shown on the page; the run's table holds all."""
MOST_ROWS, MOST_METRICS = 1_000_000, 64
"""Rows of a table, and metrics as panels, that a page has room for."""
ACROSS = 3
SAID: tuple[str, ...] = ("metric", "value", "95% interval")
"""Columns of estimates as text, after the key columns."""


def default_section(name: str, title: str, table: pl.DataFrame, metrics: Sequence[Metric]) -> Section:
    """A section for one table. `name` prefixes its panels' names, so it must differ from other sections' names.

    Estimates (the columns of schema/estimates.py's ESTIMATE) by `layer` become lines with 95% intervals, a panel per metric; by
    `layer` and one other integer, heat maps; any other table becomes text. Metrics of the table that are not among
    `metrics` are shown by name and unit, without a definition. An empty table gives a section that only says so.
    """
    if table.is_empty():
        return Section(panels=(), missing=[f"The table of “{title}” has no rows."])
    if len(table) > MOST_ROWS:
        return Section(panels=(), missing=[f"The table of “{title}” has {len(table):,} rows, too many for a page."])
    floats = [column for column, kind in table.schema.items() if kind.is_float()]
    table = table.with_columns(pl.when(pl.col(name).is_finite()).then(pl.col(name)).alias(name) for name in floats)
    if not _estimates(table):
        return Section(panels=(), tables=[_text(title, table, table.columns)])
    shown = _metrics(table, metrics)
    keys = [column for column in table.columns if column not in ESTIMATE]
    panels = _panels(name, table, keys, shown)
    return Section(
        panels=panels,
        tables=[] if panels else [_text(title, _said(table, shown), [*keys, *SAID])],
        missing=_without_mean(table, shown) if panels else (),
        definitions=[metric for metric in shown if metric.definition],
        across=min(ACROSS, max(len(panels), 1)),
    )


def _estimates(table: pl.DataFrame) -> bool:
    return set(ESTIMATE) <= set(table.columns)


def _metrics(table: pl.DataFrame, metrics: Sequence[Metric]) -> list[Metric]:
    """The metrics in the table: the defined ones in their order, then the others by their names in the table."""
    units = dict(table.select("metric", "unit").unique(maintain_order=True).drop_nulls().iter_rows())
    known = [metric for metric in metrics if metric.name in units]
    names = {metric.name for metric in known}
    return [*known, *(Metric(name, unit, name, "") for name, unit in units.items() if name not in names)]


def _panels(name: str, table: pl.DataFrame, keys: list[str], metrics: Sequence[Metric]) -> list[Panel]:
    """A panel per metric with a mean; none if the keys are not layers or are not unique."""
    if len(metrics) > MOST_METRICS:
        return []
    whole = all(table.schema[key].is_integer() and table[key].null_count() == 0 for key in keys)
    once = not table.select(*keys, "metric").is_duplicated().any()
    if "layer" not in keys or not whole or not once or table["layer"].min() < 0:  # type: ignore[operator]
        return []
    depth: Any = table["layer"].max()
    with_mean = [metric for metric in metrics if not _of(table, metric).is_empty()]
    if keys == ["layer"]:
        x = layers(depth + 1)
        return [
            lines(
                _panel_name(name, metric),
                metric.title,
                metric,
                [Curve(look=OWN, values=series(table, metric), call="layer {}")],
                x,
                share_of_all=False,
            )
            for metric in with_mean
        ]
    others = [key for key in keys if key != "layer"]
    if len(others) != 1 or table[others[0]].min() < 0:  # type: ignore[operator]
        return []
    (other,) = others
    largest: Any = table[other].max()
    return [
        heat(
            _panel_name(name, metric),
            metric.title,
            metric,
            {
                (row, layer): Value(*value)
                for row, layer, *value in _of(table, metric)
                .select(other, "layer", "mean", "ci_low", "ci_high")
                .iter_rows()
            },
            (largest + 1, depth + 1),
            (other, "layer"),
        )
        for metric in with_mean
    ]


def _panel_name(name: str, metric: Metric) -> str:
    """A name for the page's elements and saved pictures: of a metric that is no plain name, its digest."""
    plain = re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", metric.name)
    return f"{name}-{metric.name if plain else hashlib.sha256(metric.name.encode()).hexdigest()[:16]}"


def _of(table: pl.DataFrame, metric: Metric) -> pl.DataFrame:
    return table.filter(pl.col("metric") == metric.name, pl.col("mean").is_finite())


def _without_mean(table: pl.DataFrame, metrics: Sequence[Metric]) -> list[str]:
    return [f"{metric.title} has no value in the table." for metric in metrics if _of(table, metric).is_empty()]


def _said(table: pl.DataFrame, metrics: Sequence[Metric]) -> pl.DataFrame:
    """Estimates with the metric's title, and with value and interval as text in place of the numbers."""
    by_name = {metric.name: metric for metric in metrics}
    said = []
    for row in table.select("metric", "mean", "ci_low", "ci_high").iter_rows():
        metric = by_name[row[0]]
        if row[1] is None:
            said.append((metric.title, None, None))
        else:
            value = Value(*row[1:])
            unit = "" if unit_of(metric) in ("%", "nats", "none", "") else f" {metric.unit}"
            said.append((metric.title, with_unit(value, metric) + unit, interval(value, metric) or None))
    columns = dict.fromkeys(SAID, pl.String)
    return table.drop("metric").with_columns(pl.DataFrame(said, schema=columns, orient="row"))


def _text(title: str, table: pl.DataFrame, columns: Sequence[str]) -> TextTable:
    """The first rows as text; the title gives the number of rows if some are omitted."""
    rows = [tuple(_cell(value) for value in row) for row in table.select(columns).head(SHOWN_ROWS).iter_rows()]
    more = f" (the first {SHOWN_ROWS} of {len(table):,} rows)" if len(table) > SHOWN_ROWS else ""
    words = any(kind in (pl.String, pl.List) for kind in table.select(columns).dtypes)
    return TextTable(title=f"{title}{more}", head=columns, rows=rows, words=words)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, list):
        return " · ".join(map(_cell, value))
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−")
    return str(value)

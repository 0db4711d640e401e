"""Probes by depth: accuracy against control tasks and baselines for each property, and the depth where each is read best."""

from dataclasses import replace
from typing import Any

import polars as pl

from depthscope.report.charts import Curve, XAxis, lines
from depthscope.report.measured import Series, Value, read_table, series, spoken, with_unit
from depthscope.report.palette import ATTENTION, CONTROL, OWN, REFERENCE
from depthscope.report.panels import Panel
from depthscope.report.section import Kind, Section, TextTable
from depthscope.report.wording import counted_units, ends
from depthscope.run.store import RunDirectory
from depthscope.schema.depth_probes import (
    ACCURACY,
    BEST_OF,
    CONTROL_ACCURACY,
    DEPTH_PROBES_BEST_TABLE,
    DEPTH_PROBES_CLASSES_TABLE,
    DEPTH_PROBES_TABLE,
    METRICS,
    OVER_MAJORITY,
    OVER_TOKEN,
    PROPERTIES,
    SELECTIVITY,
)
from depthscope.schema.metric import Metric

NAME, BEST, CLASSES = "depth_probes", "depth_probes_best", "depth_probes_classes"
BEST_HEAD = ("property", "quantity", "best depth", "value there")
"""Where each quantity is highest, with 95% intervals; that of the value covers all depths at once."""
QUANTITIES = {ACCURACY.name: "accuracy", SELECTIVITY.name: "selectivity", OVER_TOKEN.name: "over the token"}
CLASSES_HEAD = ("property", "classes", "training examples", "test examples")
MOST_CLASSES = 12
PROBE = replace(OWN, title="Probe", definition="a linear classifier of the residual stream at that depth")
CONTROL_TASK = replace(
    CONTROL, title="Control task", definition="the same, where each token has a random class in the same proportions"
)
MAJORITY = replace(
    REFERENCE,
    title="Majority class",
    definition="always the class that is most frequent among the training examples",
    dash="dot",
    glyph="┈",
    marker="line-ew",
)
BY_TOKEN = replace(
    ATTENTION,
    title="Token alone",
    definition="no network: the class that the position’s token most often has among the training examples",
    dash="longdash",
    glyph="╌",
    marker="line-ew",
)


def build(run: RunDirectory) -> Section:
    """A panel per property: accuracy and control accuracy by depth, with the baselines as levels."""
    table = read_table(run, NAME, DEPTH_PROBES_TABLE)
    best = read_table(run, BEST, DEPTH_PROBES_BEST_TABLE)
    classes = read_table(run, CLASSES, DEPTH_PROBES_CLASSES_TABLE)
    there = [name for name in PROPERTIES if name in set(table["property"])]
    last: int = table["layer"].max() or 1  # type: ignore[assignment]
    units = counted_units(run.manifest.text, int(table["documents"].max() or 0))  # type: ignore[arg-type]
    return Section(
        panels=[_panel(table, name, last) for name in there],
        sentences=[said for name in there if (said := _sentence(table, best, name))],
        legend=(PROBE, CONTROL_TASK, BY_TOKEN, MAJORITY),
        notes=[
            f"x_l is the residual stream before layer l, and after the last layer for l = L. Test examples are from {units}, "
            "which no probe was trained on. In brackets: 95% intervals over them, of a best depth by a bootstrap."
        ],
        tables=[
            TextTable(
                title="The depth at which each property is read best", head=BEST_HEAD, rows=best_rows(best), words=True
            ),
            TextTable(title="Classes and examples", head=CLASSES_HEAD, rows=_class_rows(classes), words=True),
        ],
        definitions=METRICS,
        across=3,
    )


def _panel(table: pl.DataFrame, name: str, last: int) -> Panel:
    accuracy = series(table, ACCURACY, property=name)
    curves = [
        Curve(look=MAJORITY, values=_level(table, name, OVER_MAJORITY, last), call="majority class"),
        Curve(look=BY_TOKEN, values=_level(table, name, OVER_TOKEN, last), call="token alone"),
        Curve(look=CONTROL_TASK, values=series(table, CONTROL_ACCURACY, property=name), call="control task, x_{}"),
        Curve(look=PROBE, values=accuracy, call="probe, x_{}"),
    ]
    x = XAxis(title="depth l of x_l", last=last)
    return lines(f"{NAME}-{name}", PROPERTIES[name].title, ACCURACY, [one for one in curves if one.values], x)


def _level(table: pl.DataFrame, name: str, over: Metric, last: int) -> Series:
    """The accuracy that `over` compares with, which no depth changes, at both ends of the axis."""
    accuracy, above = (series(table, metric, property=name) for metric in (ACCURACY, over))
    both = sorted(accuracy.keys() & above.keys())
    return {depth: Value(accuracy[both[0]].mean - above[both[0]].mean) for depth in (0, last)} if both else {}


def _sentence(table: pl.DataFrame, best: pl.DataFrame, name: str) -> str | None:
    """Where accuracy and selectivity are highest, and whether the probe beats the token alone there."""
    rows = {row["metric"]: row for row in best.filter(property=name).iter_rows(named=True)}
    accuracy, selective, over = (rows.get(metric.name) for metric in BEST_OF)
    first = series(table, ACCURACY, property=name).get(0)
    if accuracy is None or selective is None or over is None or first is None:
        return None
    said = (
        f"{PROPERTIES[name].title}: read best at x_{accuracy['layer']}{_between(accuracy)}, with "
        f"{spoken(_value(accuracy), ACCURACY)} correct and {with_unit(first, ACCURACY)} at x_0; selectivity is highest at "
        f"x_{selective['layer']}{_between(selective)}, {_points(selective)}"
    )
    if ends(_value(over))[0] <= 0:
        return f"{said}; no depth is clearly above what the token alone suggests."
    gained = f"{_points(over)} at x_{over['layer']}{_between(over)}"
    return f"{said}; the probe is above what the token alone suggests by up to {gained}."


def _value(row: dict[str, Any]) -> Value:
    return Value(row["mean"], row["ci_low"], row["ci_high"])


def _points(row: dict[str, Any]) -> str:
    """A difference of shares in percentage points, with its interval."""
    return spoken(_value(row), SELECTIVITY).replace("%", " points")


def _between(row: dict[str, Any]) -> str:
    if row["layer_low"] is None or row["layer_high"] is None:
        return ""
    return f" (x_{row['layer_low']} to x_{row['layer_high']})"


def best_rows(best: pl.DataFrame) -> list[tuple[str, ...]]:
    """The rows of BEST_HEAD, for page and terminal."""
    titles, rows = {metric.name: metric for metric in BEST_OF}, []
    for row in best.iter_rows(named=True):
        metric, one = titles.get(row["metric"]), PROPERTIES.get(row["property"])
        if metric is None or one is None or row["mean"] is None:
            continue
        known = row["layer_low"] is not None and row["layer_high"] is not None
        depth = f"{row['layer']} ({row['layer_low']} to {row['layer_high']})" if known else str(row["layer"])
        rows.append((one.title, QUANTITIES[metric.name], depth, spoken(_value(row), metric)))
    return rows


def _class_rows(classes: pl.DataFrame) -> list[tuple[str, ...]]:
    rows = []
    for name, one in PROPERTIES.items():
        of = classes.filter(property=name)
        if not of.is_empty():
            labels = [str(label) for label in of["label"]]
            names = " · ".join([*labels[:MOST_CLASSES], *(["…"] if len(labels) > MOST_CLASSES else [])])
            rows.append((one.title, names, f"{of['training'].sum():,}", f"{of['test'].sum():,}"))
    return rows


KIND = Kind(
    name=NAME,
    title="What a linear probe reads by depth",
    source="Lad et al. 2024, table 1; Hewitt and Liang 2019",
    experiment=NAME,
    file=f"tables/{NAME}.parquet",
    build=build,
    look_for="where accuracy leaves what the token alone suggests: there the context has been written into the stream; and how "
    "far above the control task it is, which any probe can solve that only recognises tokens.",
    more_tables=(BEST, CLASSES),
)

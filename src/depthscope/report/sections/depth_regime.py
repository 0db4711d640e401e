"""Depth regime: angles, progress and the loss through the last layer by depth, and which regime they speak for."""

from collections.abc import Iterator

import polars as pl

from depthscope.report.charts import Curve, XAxis, layers, lines
from depthscope.report.measured import Value, depth_of, interval, number, read_table, series, spoken
from depthscope.report.palette import LINEARITY
from depthscope.report.panels import Panel
from depthscope.report.section import Kind, Section, TextTable
from depthscope.report.wording import counted_units
from depthscope.run.store import RunDirectory
from depthscope.schema.depth_regime import (
    COMPOSITION,
    CURVES,
    DEPTH_REGIME_READINGS_TABLE,
    DEPTH_REGIME_TABLE,
    DEPTH_REGIME_VERDICT_TABLE,
    ENSEMBLE,
    EVEN_UPDATES,
    LOSS_BELOW_LINE,
    LOSS_FALL,
    METRICS,
    MIDDLE_WRITE_ANGLE,
    NAME,
    PROCEDURAL,
    PROGRESS,
    READINGS,
    STEP_ANGLE,
    STRAIGHT_LOSS,
    VERDICT,
    WRITE_ANGLE,
)
from depthscope.schema.linearity import ALL, NOT_FIRST, POSITIONS
from depthscope.schema.metric import Metric

READINGS_HEAD = ("reading", "positions", "value (95% interval)", "side")
VERDICT_HEAD = ("regime", "positions")
SHORT = {ALL: "all", NOT_FIRST: "without first"}
BY_NAME = {metric.name: metric for metric in METRICS}
SAID = {
    ENSEMBLE: "By all three readings the middle layers act as an ensemble: many small, independent updates",
    PROCEDURAL: "By the readings the middle layers follow a smooth path: many small updates in the same direction",
    COMPOSITION: "By the readings the middle layers compose: a few large updates, and a loss that falls late",
}


def build(run: RunDirectory) -> Section:
    """The five curves by layer, the readings of the middle layers and the verdict."""
    curves = read_table(run, NAME, DEPTH_REGIME_TABLE)
    readings = read_table(run, READINGS, DEPTH_REGIME_READINGS_TABLE)
    verdicts = read_table(run, VERDICT, DEPTH_REGIME_VERDICT_TABLE)
    depth = depth_of(run.manifest, int(curves["layer"].max() or 0) + 1)  # type: ignore[arg-type]
    panels = [_panel(curves, metric, depth) for metric in CURVES]
    units = counted_units(run.manifest.text, int(curves["documents"].max() or 0))  # type: ignore[arg-type]
    return Section(
        panels=[panel for panel in panels if any(points.y for points in panel.points)],
        sentences=[*_verdict(verdicts), *_said(readings)],
        legend=[LINEARITY[positions] for positions in POSITIONS],
        notes=[
            f"Middle layers are 1 to {depth - 2}: the first and the last differ from them in most models. Intervals are over "
            f"{units}. Thresholds and the rule for the regime are depthscope’s; Liu et al. compare curves, without any. "
            "Other mechanisms can give the same readings: take the regime as exploratory.",
        ],
        tables=[
            TextTable(
                title="What is read from the middle layers", head=READINGS_HEAD, rows=reading_rows(readings), words=True
            )
        ],
        definitions=[*CURVES, *METRICS],
    )


def _panel(table: pl.DataFrame, metric: Metric, depth: int) -> Panel:
    found = [
        Curve(look=LINEARITY[positions], values=series(table, metric, positions=positions), call=_call(metric))
        for positions in (ALL, NOT_FIRST)
    ]
    at_depths = metric not in (STEP_ANGLE, WRITE_ANGLE)
    x = XAxis(title="depth l of x_l", last=depth - 1) if at_depths else layers(depth)
    right = [(90.0, "90")] if metric is WRITE_ANGLE else []
    return lines(f"{NAME}-{metric.name}", metric.title, metric, found, x, levels=right)


def _call(metric: Metric) -> str:
    if metric is STEP_ANGLE:
        return "layer {}"
    if metric is WRITE_ANGLE:
        return "layer {} and the next"
    return "x_{}, progress" if metric is PROGRESS else "x_{} to the last layer" if metric is STRAIGHT_LOSS else "x_{}"


def reading_rows(readings: pl.DataFrame) -> list[tuple[str, ...]]:
    """The rows of READINGS_HEAD, for page and terminal."""
    rows = []
    for one in readings.filter(pl.col("metric").is_in([*BY_NAME]), pl.col("mean").is_not_null()).iter_rows(named=True):
        metric = BY_NAME[one["metric"]]
        value = Value(one["mean"], one["ci_low"], one["ci_high"])
        unit = "%" if metric.unit == EVEN_UPDATES.unit else "" if metric.unit == PROGRESS.unit else f" {metric.unit}"
        within = f" ({interval(value, metric)})" if value.has_interval else ""
        positions = SHORT.get(one["positions"], one["positions"])
        rows.append((metric.title, positions, number(value.mean, metric) + unit + within, str(one["side"] or "–")))
    return rows


def verdict_rows(verdicts: pl.DataFrame) -> list[tuple[str, ...]]:
    """The rows of VERDICT_HEAD, for the terminal."""
    return [
        (f"{verdict}: {reason}" if reason else str(verdict), str(SHORT.get(positions, positions)))
        for positions, verdict, reason in verdicts.select("positions", "verdict", "reason").iter_rows()
    ]


def _verdict(verdicts: pl.DataFrame) -> Iterator[str]:
    """The regime over all positions, and where first positions change it."""
    found = {row["positions"]: row for row in verdicts.iter_rows(named=True)}
    if ALL not in found:
        return
    verdict, reason = found[ALL]["verdict"], found[ALL]["reason"]
    yield f"{SAID[verdict]}." if verdict in SAID else f"The depth regime is not resolved: {reason}."
    later = found.get(NOT_FIRST, found[ALL])
    if later["verdict"] != verdict:
        because = f" ({later['reason']})" if later["reason"] else ""
        yield f"Without the first position of each window it is “{later['verdict']}”{because}."


def _said(readings: pl.DataFrame) -> Iterator[str]:
    """The three readings that decide, over all positions."""
    rows = readings.filter(pl.col("mean").is_not_null(), positions=ALL)
    known = {row["metric"]: Value(row["mean"], row["ci_low"], row["ci_high"]) for row in rows.iter_rows(named=True)}
    if even := known.get(EVEN_UPDATES.name):
        yield f"{spoken(even, EVEN_UPDATES)} of the tokens are rotated by more than half of the middle layers."
    if turn := known.get(MIDDLE_WRITE_ANGLE.name):
        yield (
            f"The writes of consecutive middle layers are at an angle of {spoken(turn, MIDDLE_WRITE_ANGLE)} degrees on "
            "average: 90 if they are independent, near 0 on a smooth path."
        )
    below, fall = known.get(LOSS_BELOW_LINE.name), known.get(LOSS_FALL.name)
    if below and fall:
        where, value = ("below", below) if below.mean >= 0 else ("above", _negative(below))
        yield (
            f"Read through the last layer, the loss falls by {spoken(fall, LOSS_FALL)} from x_1 to the model’s own, and in "
            f"between lies {spoken(value, LOSS_BELOW_LINE)} {where} a straight line."
        )


def _negative(value: Value) -> Value:
    return Value(-value.mean, None if value.high is None else -value.high, None if value.low is None else -value.low)


KIND = Kind(
    name=NAME,
    title="Depth regime: ensemble or composition",
    source="Liu et al. 2026",
    experiment=NAME,
    file=f"tables/{NAME}.parquet",
    build=build,
    look_for="equal small steps in the middle, writes near 90 degrees to each other and a loss that falls early: layers that "
    "average; or a few large steps and a loss that falls only near the end: layers that build on each other.",
    more_tables=(READINGS, VERDICT),
)

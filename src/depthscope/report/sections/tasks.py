"""What edits do to tasks of the lm-evaluation-harness, and whether their KL on a text predicts it."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from depthscope.errors import RunError
from depthscope.report.charts import hover, ranking
from depthscope.report.measured import Value, interval, number, read_table, spoken
from depthscope.report.palette import DROP
from depthscope.report.panels import Axis, Hover, Panel, Points
from depthscope.report.section import Kind, Section, TextTable
from depthscope.run.store import RunDirectory
from depthscope.schema.metric import Metric
from depthscope.schema.sweep import BASELINE_EDIT, KL
from depthscope.schema.tasks import (
    CORRELATION_TABLE,
    CORRELATIONS,
    EDIT_KL,
    EVAL,
    EXAMPLES,
    KL_TABLE,
    TASK_TABLE,
    TASKS,
)

NAME = "tasks"
MOST_METRICS, MOST_EDITS, MOST_ROWS = 8, 100, 400
"""Metrics with panels, edits in one panel, and rows in the table of the page; the run's tables have all."""
LOOK = replace(DROP, title="An edit", definition="its difference to the unmodified model", marker="circle", glyph="●")
DIFFERENCE = Metric(
    "difference",
    "none",
    "Difference",
    "the metric of the edited model minus that of the unmodified model, with a 95 % interval over examples (or over what the "
    "task says belongs together) from the differences by example, so that what both get right or wrong does not widen it",
)
STDERR = Metric(
    "stderr", "none", "Standard error", "the harness's own, of one model alone; two of them do not decide a difference"
)


@dataclass(frozen=True, slots=True)
class _Task:
    """One metric of a task: its value without an edit, and the rows of the edits."""

    task: str
    metric: str
    own: dict[str, Any] | None
    edits: list[dict[str, Any]] = field(default_factory=list)

    @property
    def called(self) -> str:
        return f"{self.task}, {self.metric}"


def build(run: RunDirectory) -> Section:
    """For each metric of a task the paired difference by edit, and the difference against the KL on the text."""
    found = list(_tasks(read_table(run, TASKS, TASK_TABLE)))
    kl = _kl(run)
    shown = found[:MOST_METRICS]
    panels = []
    for place, one in enumerate(shown):
        rows = [row for row in one.edits if row["difference"] is not None][:MOST_EDITS]
        if rows:
            panels.append(_ranking(f"{NAME}-{place}", one, rows))
        if both := [(row, kl[row["edit"]]) for row in rows if row["edit"] in kl]:
            panels.append(_scatter(f"{NAME}-{place}-kl", one, both))
    return Section(
        panels=panels,
        sentences=[*(said for one in shown for said in _sentences(one)), *_correlations(run)],
        notes=_notes(found, kl),
        tables=[_table(found, kl)],
        definitions=(DIFFERENCE, STDERR, KL),
        across=2,
    )


def _tasks(table: pl.DataFrame) -> Iterator[_Task]:
    keys = ["task", "filter", "metric"]
    table = table.drop_nulls([*keys, "edit"])
    filters = table.select("task", "filter").unique()["task"].value_counts()
    several = set(filters.filter(pl.col("count") > 1)["task"])
    for (task, kept, metric), rows in table.group_by(keys, maintain_order=True):
        by_edit = rows.to_dicts()
        named = f"{metric} ({kept})" if task in several else str(metric)
        own = next((row for row in by_edit if row["edit"] == BASELINE_EDIT), None)
        yield _Task(str(task), named, own, [row for row in by_edit if row["edit"] != BASELINE_EDIT])


def _kl(run: RunDirectory) -> dict[str, Value]:
    """KL on the text by edit; empty where it was not measured."""
    if EDIT_KL not in run.tables():
        return {}
    rows = read_table(run, EDIT_KL, KL_TABLE).filter(pl.col("metric") == KL.name, pl.col("mean") > 0)
    return {edit: Value(*value) for edit, *value in rows.select("edit", "mean", "ci_low", "ci_high").iter_rows()}


def _value(row: dict[str, Any]) -> Value:
    return Value(row["difference"], row["ci_low"], row["ci_high"])


def _ranking(name: str, one: _Task, rows: list[dict[str, Any]]) -> Panel:
    values = [(row["edit"], _value(row)) for row in rows]
    return ranking(name, f"{one.called}: difference", DIFFERENCE, LOOK, values, height=max(200, 60 + 18 * len(values)))


def _scatter(name: str, one: _Task, both: list[tuple[dict[str, Any], Value]]) -> Panel:
    mark = Points(
        name=LOOK.title,
        look=LOOK,
        x=tuple(kl for _, kl in both),
        y=tuple(_value(row) for row, _ in both),
        hover=tuple(_hover(row, kl) for row, kl in both),
        line=False,
        size=6.0,
        bar=4.0,
    )
    return Panel(
        name=name,
        title=f"{one.called}: difference against KL",
        unit="",
        marks=(mark,),
        x=Axis(title=f"{KL.title} on the text ({KL.unit})", scale="log", between=False),
        y=(Axis(form="~g", zero_line=True),),
        together=False,
    )


def _hover(row: dict[str, Any], kl: Value) -> Hover:
    own = hover(row["edit"], _value(row), DIFFERENCE)
    return Hover(own.head, f"{own.text}\nKL {spoken(kl, KL)}")


def _sentences(one: _Task) -> list[str]:
    if one.own is None or one.own["value"] is None:
        return []
    error = one.own["stderr"]
    alone = "" if error is None else f" (standard error {number(error, STDERR)})"
    said = [
        f"{one.task}: without an edit {one.metric} is {number(one.own['value'], DIFFERENCE)}{alone} on "
        f"{one.own['examples']} examples."
    ]
    rows = [row for row in one.edits if row["difference"] is not None and row["ci_low"] is not None]
    if one.edits and not any(row["changed"] for row in one.edits):
        said.append(f"No edit changes {one.metric} of any example.")
    elif rows:
        apart = [row for row in rows if row["ci_low"] > 0 or (row["ci_high"] or 0) < 0]
        most = max(rows, key=lambda row: abs(row["difference"]))
        said.append(
            f"For {len(apart)} of {len(rows)} edits the paired interval of {one.metric} excludes 0; the largest difference is "
            f"that of {most['edit']}, {spoken(_value(most), DIFFERENCE)}."
        )
    return said


def _correlations(run: RunDirectory) -> Iterator[str]:
    if CORRELATIONS not in run.tables():
        return
    try:
        rows = read_table(run, CORRELATIONS, CORRELATION_TABLE).head(MOST_METRICS).to_dicts()
    except RunError:  # no edits, so no rows
        return
    for row in rows:
        if row["spearman"] is not None:
            bounds = Value(row["spearman"], row["ci_low"], row["ci_high"])
            yield (
                f"Exploratory: over {row['edits']} edits, Spearman's correlation of the difference in {row['task']}, "
                f"{row['metric']}, with the KL on the text is {spoken(bounds, DIFFERENCE)}."
            )


def _notes(found: list[_Task], kl: dict[str, Value]) -> list[str]:
    said = ["Intervals are of each edit alone: with many edits some exclude 0 by chance."]
    if kl:
        said.append(
            "The interval of a correlation takes the edits for independent (Bonett and Wright 2000), which edits of one model "
            "are not: it describes these edits."
        )
    if len(found) > MOST_METRICS:
        said.append(f"Figures show the first {MOST_METRICS} of {len(found)} metrics.")
    return said


def _table(found: list[_Task], kl: dict[str, Value]) -> TextTable:
    rows: list[list[str | tuple[str, str]]] = []
    for one in found:
        for row in ([one.own] if one.own else []) + one.edits:
            edited = row["edit"] != BASELINE_EDIT
            error = "" if row["stderr"] is None else f"± {number(row['stderr'], STDERR)}"
            value = "infinite" if row["value"] is None else number(row["value"], DIFFERENCE)
            difference = _value(row) if edited and row["difference"] is not None else None
            on_text = kl.get(row["edit"])
            rows.append(
                [
                    one.called,
                    row["edit"],
                    (value, error),
                    "" if difference is None else _cell(difference, DIFFERENCE),
                    f"{row['changed']} of {row['examples']}" if edited else "",
                    "" if on_text is None else _cell(on_text, KL),
                ]
            )
    more = f" (first {MOST_ROWS} of {len(rows):,})" if len(rows) > MOST_ROWS else ""
    head = ("task", "edit", "value ± standard error", "difference, paired", "examples changed", "KL on the text, nats")
    return TextTable(title=f"Tasks by edit{more}", head=head, rows=rows[:MOST_ROWS])


def _cell(value: Value, metric: Metric) -> tuple[str, str]:
    return number(value.mean, metric), interval(value, metric)


KIND = Kind(
    name=NAME,
    title="What edits do to tasks",
    source="lm-evaluation-harness (Gao et al.), paired differences (Miller 2024)",
    experiment=EVAL,
    file=f"tables/{TASKS}.parquet",
    build=build,
    look_for="edits with a small KL and a difference whose interval is far from 0, or the reverse: there KL on the text does "
    "not say what happens to the task.",
    more_tables=(EDIT_KL, CORRELATIONS, EXAMPLES),
)

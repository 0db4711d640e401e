"""The painters' edits: ranges of middle layers changed, against the number of layers changed (Sun et al. 2024, figure 11)."""

import polars as pl

from depthscope.report.charts import Curve, XAxis, layers, lines
from depthscope.report.measured import Series, Value, interval, read_table, with_unit
from depthscope.report.palette import PAINTERS
from depthscope.report.panels import Panel
from depthscope.report.section import Kind, Section, TextTable
from depthscope.report.wording import counted_units
from depthscope.run.store import RunDirectory
from depthscope.schema.measures import KL
from depthscope.schema.metric import Metric
from depthscope.schema.painters import (
    AS_CLAIMED,
    CLAIMED_ORDER,
    EDITS,
    KL_DIFFERENCE,
    METRICS,
    PAINTERS_ORDER_TABLE,
    PAINTERS_TABLE,
    REVERSED,
)

NAME, ORDER_NAME = "painters", "painters_order"
BLOCKS = tuple(name for name, one in EDITS.items() if one.block)
ORDER_HEAD = ("worse", "better", "difference in KL", "95% interval", "verdict")
"""Which of two edits is worse by the claim, and what their difference, with its corrected interval, says of it."""


def build(run: RunDirectory) -> Section:
    """A panel per metric against the number of layers changed, blocks run twice by layer, and the claimed order tested."""
    table, order = read_table(run, NAME, PAINTERS_TABLE), run.table(ORDER_NAME)
    # Individual orders are in the table; the figure has their mean.
    table = table.filter(pl.col("draw").is_null(), pl.col("mean").is_not_null(), pl.col("other") >= pl.col("layer"))
    depth = max(int(table["other"].max() or 0) + 1, run.manifest.model.layers or 1)  # type: ignore[arg-type]
    panels = [
        _panel(table, metric, CLAIMED_ORDER, XAxis(title="layers changed", last=depth, relative=False))
        for metric in METRICS
    ]
    if any(name in set(table["edit"]) for name in BLOCKS):
        panels.append(_panel(table, KL, BLOCKS, layers(depth)))
    there = [name for name in EDITS if name in set(table["edit"])]
    units = counted_units(run.manifest.text, int(table["documents"].max() or 0))  # type: ignore[arg-type]
    rows = order_rows(order)
    zeros = not table.filter(pl.col("metric") == KL.name, pl.col("mean") <= 0).is_empty()
    return Section(
        panels=[panel for panel in panels if panel.marks],
        sentences=[said] if (said := sentence(order)) else (),
        legend=[PAINTERS[name] for name in there],
        notes=[
            f"Over {units}. The changed layers are those from f to T − 2 − f of T layers, counted from 0, the last one never."
        ],
        tables=[
            TextTable(
                title="The claimed order, over all ranges (intervals of 5 comparisons at once)",
                head=ORDER_HEAD,
                rows=rows,
                words=True,
            )
        ]
        if rows
        else (),
        definitions=[*(PAINTERS[name] for name in there), *METRICS, KL_DIFFERENCE],
        across=2,
        log_note="A KL of 0 is below the end of a logarithmic axis." if zeros else None,
    )


def _panel(table: pl.DataFrame, metric: Metric, edits: tuple[str, ...], x: XAxis) -> Panel:
    blocks = edits == BLOCKS
    curves = [
        Curve(
            look=PAINTERS[name],
            values=values,
            call=f"{PAINTERS[name].title}, {'from layer {}' if blocks else '{} layers'}",
        )
        for name in edits
        if (values := _series(table, name, metric))
    ]
    title = f"{metric.title}, each layer of a block twice" if blocks else metric.title
    return lines(f"{NAME}-{'blocks' if blocks else metric.name}", title, metric, curves, x, log=metric is KL)


def _series(table: pl.DataFrame, edit: str, metric: Metric) -> Series:
    """Values by the number of layers changed; of blocks, by their first layer."""
    rows = table.filter(pl.col("edit") == edit, pl.col("metric") == metric.name).sort(
        "layer", descending=not EDITS[edit].block
    )
    found = rows.select("layer", "other", "mean", "ci_low", "ci_high").iter_rows()
    return {first if EDITS[edit].block else last - first + 1: Value(*value) for first, last, *value in found}


def pooled(order: pl.DataFrame) -> pl.DataFrame:
    """The rows of the claimed order over all ranges, one per step."""
    if PAINTERS_ORDER_TABLE.keys() - set(order.columns):
        return pl.DataFrame(schema=PAINTERS_ORDER_TABLE)
    known = order.filter(
        pl.col("worse").is_in(CLAIMED_ORDER), pl.col("better").is_in(CLAIMED_ORDER), pl.col("mean").is_not_null()
    )
    return known.filter(pl.col("ranges") == pl.col("ranges").max().over("worse", "better")).unique(
        ["worse", "better"], keep="first", maintain_order=True
    )


def order_rows(order: pl.DataFrame) -> list[tuple[str, ...]]:
    """The rows of ORDER_HEAD, for page and terminal."""
    rows = []
    for one in pooled(order).iter_rows(named=True):
        value = Value(one["mean"], one["ci_low"], one["ci_high"])
        rows.append(
            (
                EDITS[one["worse"]].title,
                EDITS[one["better"]].title,
                with_unit(value, KL_DIFFERENCE),
                interval(value, KL_DIFFERENCE) or "–",
                str(one["verdict"]),
            )
        )
    return rows


def sentence(order: pl.DataFrame) -> str | None:
    """How many steps of the claimed order hold, and which are reversed; None without a tested step."""
    rows = list(pooled(order).iter_rows(named=True))
    if not rows:
        return None
    held = sum(one["verdict"] == AS_CLAIMED for one in rows)
    turned = [
        f"{EDITS[one['better']].title.lower()} costs more than {EDITS[one['worse']].title.lower()}"
        for one in rows
        if one["verdict"] == REVERSED
    ]
    rest = len(rows) - held - len(turned)
    said = f"Of the claimed order, from worst to best, {held} of {len(rows)} steps are confirmed"
    said += f", {len(turned)} reversed ({'; '.join(turned)})" if turned else ""
    return said + (f", {rest} not resolved." if rest else ".")


KIND = Kind(
    name=NAME,
    title="Middle layers skipped, repeated, reordered",
    source="Sun et al. 2024, figure 11",
    experiment=NAME,
    file=f"tables/{NAME}.parquet",
    build=build,
    look_for="curves that rise slowly: edits that middle layers tolerate; and whether the order of the curves is the one "
    "claimed, with repeating the middle layer worst and looped parallel best.",
    more_tables=(ORDER_NAME,),
)

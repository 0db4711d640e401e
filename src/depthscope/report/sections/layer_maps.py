"""Maps: ranges dropped and run twice, pairs exchanged and dropped together, as triangular heat maps with their best cells."""

from dataclasses import replace

import numpy as np
import polars as pl

from depthscope.report.charts import heat
from depthscope.report.measured import Value, interval, number, read_table, spoken
from depthscope.report.palette import DROP, OWN
from depthscope.report.panels import Heat, Panel
from depthscope.report.section import Kind, Section, TextTable
from depthscope.report.wording import counted_units
from depthscope.run.store import RunDirectory
from depthscope.schema.layer_maps import (
    HIGHEST,
    INTERACTION,
    KINDS,
    LOSS_CHANGE,
    MAP_BEST_TABLE,
    MAP_TABLE,
    METRICS,
    MapKind,
)
from depthscope.schema.measures import KL
from depthscope.schema.metric import Metric

NAME, BEST_NAME = "map", "map_best"
PANELS = {
    "drop_range": (KL,),
    "repeat_range": (KL, LOSS_CHANGE),
    "swap_pair": (KL,),
    "drop_pair": (KL, INTERACTION),
}
"""The metrics of each kind that have a heat map; the others are in the table."""
END = 0.9
"""The share of cells within the colour scale: the costliest cells would leave one colour for all others."""
BY_NAME = {metric.name: metric for metric in METRICS}
Cells = dict[tuple[int, int], Value]


def build(run: RunDirectory) -> Section:
    """A heat map of each kind and metric, the later layer upwards, and the best cells as sentences and a table."""
    table, best = read_table(run, NAME, MAP_TABLE), read_table(run, BEST_NAME, MAP_BEST_TABLE)
    depth = max(int(table["other"].max()) + 1, run.manifest.model.layers or 1)  # type: ignore[arg-type]
    panels = [
        _panel(kind, metric, cells, depth)
        for kind in KINDS.values()
        for metric in PANELS[kind.name]
        if (cells := _cells(table, kind.name, metric))
    ]
    units = counted_units(run.manifest.text, int(table["documents"].max()))  # type: ignore[arg-type]
    return Section(
        panels=panels,
        sentences=[said for one in best.iter_rows(named=True) if (said := sentence(one)) and not one["layers"]],
        notes=[
            f"Over {units}. Colours end at the value that {END:.0%} of a map’s cells do not exceed; hover shows every value.",
            "The intervals of the best cells are wider than those of the map: they cover all cells of a kind at once, because "
            "the best of many looks better than it is.",
        ],
        missing=[
            f"{kind.title} were not part of this run." for kind in KINDS.values() if kind.name not in set(table["kind"])
        ],
        tables=[
            TextTable(
                title="Best cells (intervals of all cells at once)", head=BEST_HEAD, rows=best_rows(best), words=True
            )
        ],
        definitions=METRICS,
        across=2,
    )


def _cells(table: pl.DataFrame, kind: str, metric: Metric) -> Cells:
    """Values by (later layer, earlier layer), so that a map is one triangle."""
    rows = table.filter(pl.col("kind") == kind, pl.col("metric") == metric.name, pl.col("mean").is_finite())
    columns = rows.select("other", "layer", "mean", "ci_low", "ci_high").iter_rows()
    return {(other, layer): Value(*value) for other, layer, *value in columns if 0 <= layer <= other}


def _panel(kind: MapKind, metric: Metric, cells: Cells, depth: int) -> Panel:
    signed = metric.lowest is None
    axes = ("later layer", "earlier layer") if kind.pair else ("last layer", "first layer")
    shown = heat(
        f"{NAME}-{kind.name}-{metric.name}",
        f"{kind.title}: {metric.title}",
        metric,
        cells,
        (depth, depth),
        axes,
        look=DROP if signed else OWN,  # of two greys the sign would be hard to see
        height=360,
    )
    (mark,) = shown.marks
    assert isinstance(mark, Heat)
    end = float(np.quantile([abs(value.mean) for value in cells.values()], END))
    return replace(shown, marks=(replace(mark, end=end or None, signed=signed),))


BEST_HEAD = ("map", "best", "layers", "value (95% interval)", "cells")


def best_rows(best: pl.DataFrame) -> list[tuple[str, ...]]:
    """The rows of BEST_HEAD: the best cells as text, for page and terminal."""
    rows = []
    for one in best.filter(pl.col("mean").is_not_null()).iter_rows(named=True):
        if one["kind"] not in KINDS or one["metric"] not in BY_NAME:
            continue
        metric, value = BY_NAME[one["metric"]], Value(one["mean"], one["ci_low"], one["ci_high"])
        of = f", {one['layers']} layer{'s' * (one['layers'] > 1)}" if one["layers"] else ""
        best_of = f"{one['extreme']} {'KL' if metric is KL else metric.title.lower()}{of}"
        rows.append(
            (
                one["kind"].replace("_", "-"),
                best_of,
                layers_of(one),
                number(value.mean, metric) + (f" ({interval(value, metric)})" if value.has_interval else ""),
                f"{one['cells']:,}",
            )
        )
    return rows


def layers_of(cell: dict[str, int | str]) -> str:
    """The layers of a cell: `3`, `3 to 5` or, of a pair, `3 and 5`."""
    first, last = cell["layer"], cell["other"]
    joint = "and" if KINDS[str(cell["kind"])].pair else "to"
    return f"{first}" if first == last else f"{first} {joint} {last}"


def sentence(best: dict[str, int | str | float | None]) -> str | None:
    """The best cell of a whole map in a sentence; None where there is nothing to say of it."""
    kind, metric = best["kind"], BY_NAME.get(str(best["metric"]))
    if kind not in KINDS or metric is None or best["mean"] is None or best["extreme"] == HIGHEST:
        return None
    value = Value(float(best["mean"]), best["ci_low"], best["ci_high"])  # type: ignore[arg-type]
    layers = f"layer{'s' * (best['layer'] != best['other'])} {layers_of(best)}"  # type: ignore[arg-type]
    said = spoken(value, metric)
    if kind == "repeat_range" and metric is LOSS_CHANGE:
        if value.high is not None and value.high < 0:
            return f"Running {layers} twice lowers the loss, the best of {best['cells']} ranges: it changes by {said}."
        return (
            f"No range is shown to lower the loss by running twice: the best of {best['cells']}, {layers}, changes it by "
            f"{said}."
        )
    if kind == "swap_pair":
        return f"Of {best['cells']} pairs, {layers} are cheapest to exchange: KL {said}."
    if kind == "drop_pair" and metric is KL:
        return f"Of {best['cells']} pairs, {layers} are cheapest to drop: KL {said}."
    return None


KIND = Kind(
    name=NAME,
    title="Ranges and pairs of layers",
    source="Gromov et al. 2024 (ranges dropped), Lad et al. 2025 (ranges repeated)",
    experiment=NAME,
    file=f"tables/{NAME}.parquet",
    build=build,
    look_for="pale triangles along the diagonal: ranges that can go, or run again, at little cost; and pairs whose "
    "interaction is far from 0, which single drops do not predict.",
    more_tables=(BEST_NAME,),
)

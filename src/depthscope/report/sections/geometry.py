"""How similar the residual streams at two depths are (Gromov et al. 2024; Kornblith et al. 2019)."""

from typing import Any

import polars as pl

from depthscope.report.charts import heat
from depthscope.report.measured import Value, read_table, spoken
from depthscope.report.panels import Panel
from depthscope.report.section import Kind, Section
from depthscope.report.wording import counted_units
from depthscope.run.store import RunDirectory
from depthscope.schema.metric import Metric
from depthscope.schema.similarity import ANGULAR_DISTANCE, CKA, GEOMETRY_TABLE

NAME = "geometry"
Pairs = dict[tuple[int, int], Value]


def build(run: RunDirectory) -> Section:
    """Angular distance and CKA of each pair of depths as heat maps; a pair appears once, above the diagonal."""
    table = read_table(run, NAME, GEOMETRY_TABLE)
    found = {metric: _pairs(table, metric) for metric in (ANGULAR_DISTANCE, CKA)}
    shown = {metric: pairs for metric, pairs in found.items() if pairs}
    windows, units = table["tokens"].max(), counted_units(run.manifest.text, int(table["documents"].max()))  # type: ignore[arg-type]
    return Section(
        panels=[_panel(metric, pairs) for metric, pairs in shown.items()],
        sentences=_sentences(found[ANGULAR_DISTANCE], found[CKA]),
        notes=[f"From the last tokens of {windows} windows of {units}. Depth l is the input of layer l."],
        missing=[_missing(metric, windows) for metric, pairs in found.items() if not pairs],
        definitions=(ANGULAR_DISTANCE, CKA),
        across=2,
    )


def _pairs(table: pl.DataFrame, metric: Metric) -> Pairs:
    rows = table.filter(pl.col("metric") == metric.name, pl.col("mean").is_finite())
    columns = rows.select("layer", "other", "mean", "ci_low", "ci_high").iter_rows()
    return {(layer, other): Value(*value) for layer, other, *value in columns}


def _panel(metric: Metric, pairs: Pairs) -> Panel:
    depths = max(other for _, other in pairs) + 1
    # The later depth is on the y axis: a pair is in the table once and is drawn once.
    turned = {(other, layer): value for (layer, other), value in pairs.items()}
    return heat(
        f"geometry-{metric.name}",
        metric.title,
        metric,
        turned,
        (depths, depths),
        ("later depth", "earlier depth"),
        height=340,
    )


def _missing(metric: Metric, windows: Any) -> str:
    return f"{metric.title} is not in the table: {windows} windows are too few for it."


def _sentences(apart: Pairs, aligned: Pairs) -> list[str]:
    said = []
    neighbours = {pair: value for pair, value in apart.items() if pair[1] == pair[0] + 1}
    if len(neighbours) > 1:
        near, far = (best(neighbours, key=lambda pair: neighbours[pair].mean) for best in (min, max))
        said.append(
            f"Layer {near[0]} rotates the residual stream least, by {spoken(neighbours[near], ANGULAR_DISTANCE)} of π, and "
            f"layer {far[0]} most, by {spoken(neighbours[far], ANGULAR_DISTANCE)} of π."
        )
    ends = {pair: value for pair, value in aligned.items() if pair == (0, max(other for _, other in aligned))}
    said += [f"Between the first depth and the last CKA is {spoken(value, CKA)}." for value in ends.values()]
    return said


KIND = Kind(
    name=NAME,
    title="How similar two depths are",
    source="Gromov et al. 2024 (angular distance), Lad et al. 2025 (CKA)",
    experiment=NAME,
    file=f"tables/{NAME}.parquet",
    build=build,
    look_for="blocks along the diagonal: ranges of similar depths, with edges where the representation changes.",
)

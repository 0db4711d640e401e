"""Layer dependency: whose writes change when a block is skipped, and by how much (Csordás, Manning, Potts 2025)."""

from dataclasses import replace

import numpy as np
import polars as pl

from depthscope.report.charts import Curve, heat, layers, lines
from depthscope.report.measured import Value, depth_of, interval, number, read_table, series, spoken
from depthscope.report.palette import DEPENDENCY, OWN
from depthscope.report.panels import Heat, Panel
from depthscope.report.section import Kind, Section, TextTable
from depthscope.report.wording import counted_units
from depthscope.run.store import RunDirectory
from depthscope.schema.dependency import (
    CHAINED,
    CHANGE,
    DEPENDENCY_DEPTH_TABLE,
    DEPENDENCY_EFFECTS_TABLE,
    DEPENDENCY_TABLE,
    DEPTH_SCORE,
    EFFECTS,
    FUTURE,
    SCORES,
    SECOND_HALF,
)

NAME, EFFECTS_NAME, DEPTH_NAME = "dependency", "dependency_effects", "dependency_depth"
DEPTH_HEAD = ("variant", "score", "value (95% interval)")
END = 0.95
"""The share of cells within the colour scale: a few large ratios would leave one colour for all others."""
BY_NAME = {metric.name: metric for metric in SCORES}


def build(run: RunDirectory) -> Section:
    """A heat map of each variant, skipped block by later block, and the effects of each skip by layer."""
    changes = read_table(run, NAME, DEPENDENCY_TABLE)
    effects = read_table(run, EFFECTS_NAME, DEPENDENCY_EFFECTS_TABLE)
    scores = read_table(run, DEPTH_NAME, DEPENDENCY_DEPTH_TABLE)
    depth = depth_of(run.manifest, int(changes["other"].max()) + 1)  # type: ignore[arg-type]
    there = [name for name in DEPENDENCY if name in set(changes["variant"])]
    panels = [panel for name in there if (panel := _map(name, changes.filter(variant=name), depth))]
    for metric in EFFECTS:
        curves = [
            Curve(look=DEPENDENCY[name], values=values, call=f"{DEPENDENCY[name].title}: layer {{}} skipped")
            for name in there
            if (values := series(effects, metric, variant=name))
        ]
        if curves:
            panels.append(lines(f"{NAME}-{metric.name}", metric.title, metric, curves, layers(depth)))
    units = counted_units(run.manifest.text, int(changes["documents"].max() or 0))  # type: ignore[arg-type]
    first = run.settings.of(NAME).get("keep_first")
    return Section(
        panels=panels,
        sentences=[said for name in there if name in CHAINED and (said := _sentence(name, scores, depth))],
        legend=[DEPENDENCY[name] for name in there],
        notes=[
            f"Over {units}. Colours end at the value that {END:.0%} of a map’s cells do not exceed; hover shows every value.",
            *(["The first position of a window is neither skipped nor measured."] if first else ()),
        ],
        tables=[TextTable(title="Where the layers are that others depend on", head=DEPTH_HEAD, rows=rows, words=True)]
        if (rows := depth_rows(scores))
        else (),
        definitions=[*(DEPENDENCY[name] for name in there), CHANGE, *EFFECTS, *SCORES],
        across=2,
    )


def _map(variant: str, changes: pl.DataFrame, depth: int) -> Panel | None:
    rows = changes.filter(pl.col("metric") == CHANGE.name, pl.col("mean").is_finite())
    columns = rows.select("layer", "other", "mean", "ci_low", "ci_high").iter_rows()
    cells = {(layer, other): Value(*value) for layer, other, *value in columns if 0 <= layer < other < depth}
    if not cells:
        return None
    axes = ("skipped layer", "later layer")
    shown = heat(
        f"{NAME}-{variant}", DEPENDENCY[variant].title, CHANGE, cells, (depth, depth), axes, look=OWN, height=360
    )
    (mark,) = shown.marks
    assert isinstance(mark, Heat)
    end = float(np.quantile([value.mean for value in cells.values()], END))
    return replace(shown, marks=(replace(mark, end=end or None),))


def depth_rows(scores: pl.DataFrame) -> list[tuple[str, ...]]:
    """The rows of DEPTH_HEAD, for page and terminal."""
    rows = []
    for one in scores.filter(pl.col("mean").is_not_null()).iter_rows(named=True):
        if (metric := BY_NAME.get(one["metric"])) is None or one["variant"] not in DEPENDENCY:
            continue
        value = Value(one["mean"], one["ci_low"], one["ci_high"])
        within = f" ({interval(value, metric)})" if value.has_interval else ""
        rows.append((one["variant"].replace("_", "-"), metric.title, number(value.mean, metric) + within))
    return rows


def _sentence(variant: str, scores: pl.DataFrame, depth: int) -> str | None:
    """Whether later layers depend less on the second half than on the first, and the depth score."""
    found = {
        row["metric"]: Value(row["mean"], row["ci_low"], row["ci_high"])
        for row in scores.filter(pl.col("mean").is_not_null(), variant=variant).iter_rows(named=True)
    }
    if SECOND_HALF.name not in found or DEPTH_SCORE.name not in found:
        return None
    halves, score = found[SECOND_HALF.name], found[DEPTH_SCORE.name]
    where = " at later positions" if variant == FUTURE else ""
    low, high = (halves.low, halves.high) if halves.has_interval else (None, None)
    compared = (
        "about as much as"
        if low is None or high is None or low <= 1 <= high
        else "less than"
        if high < 1
        else "more than"
    )
    return (
        f"Skipping a layer of the second half changes what later layers write{where} {compared} skipping one of the first "
        f"half: {spoken(halves, SECOND_HALF)} times as much. The depth score is {spoken(score, DEPTH_SCORE)}, of layers 0 to "
        f"{depth - 1}."
    )


KIND = Kind(
    name=NAME,
    title="Which layers later layers depend on",
    source="Csordás, Manning, Potts 2025",
    experiment=NAME,
    file=f"tables/{NAME}.parquet",
    build=build,
    look_for="strong cells in the lower rows and faint ones above: later layers then build on early layers, and hardly on each "
    "other.",
    more_tables=(EFFECTS_NAME, DEPTH_NAME),
)

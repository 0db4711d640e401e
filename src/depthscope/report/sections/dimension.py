"""The geometry of the residual stream by depth: intrinsic dimension and rank of many texts, spread and curvature of each."""

from collections.abc import Sequence

from depthscope.report.charts import Curve, layers, lines
from depthscope.report.measured import Series, depth_of, ranked, read_table, series, spoken
from depthscope.report.palette import OWN, SCALES
from depthscope.report.panels import Panel
from depthscope.report.section import Kind, Section
from depthscope.report.wording import counted_units
from depthscope.run.store import RunDirectory
from depthscope.schema.dimension import (
    ANISOTROPY,
    DIMENSION_SCALES_TABLE,
    DIMENSION_TABLE,
    EFFECTIVE_RANK,
    GRIDE,
    POINT_METRICS,
    PROMPT_ENTROPY,
    TRAJECTORY_METRICS,
    TRAJECTORY_TABLE,
    TWO_NN,
    UNIT_PROMPT_ENTROPY,
)
from depthscope.schema.metric import Metric

NAME, SCALES_NAME, TRAJECTORY_NAME = "dimension", "dimension_scales", "trajectory"
INPUT = "before layer {}"


def build(run: RunDirectory) -> Section:
    """TwoNN, GRIDE on every scale, anisotropy and effective rank by depth."""
    table, scales = read_table(run, NAME, DIMENSION_TABLE), read_table(run, SCALES_NAME, DIMENSION_SCALES_TABLE)
    depths = depth_of(run.manifest, int(table["layer"].max())) + 1  # type: ignore[arg-type]
    found = {metric: series(table, metric) for metric in POINT_METRICS}
    shown = {n: values for n in SCALES if (values := series(scales, GRIDE, neighbours=n))}
    curves = [Curve(look=SCALES[n], values=values, call=f"{SCALES[n].title}, {INPUT}") for n, values in shown.items()]
    panels = [_panel(TWO_NN, found[TWO_NN], depths)]
    if curves:
        panels.append(lines(f"{NAME}-{GRIDE.name}", GRIDE.title, GRIDE, curves, layers(depths)))
    panels += [_panel(metric, found[metric], depths) for metric in (EFFECTIVE_RANK, ANISOTROPY)]
    points, units = table["tokens"].max(), counted_units(run.manifest.text, int(table["documents"].max() or 0))  # type: ignore[arg-type]
    return Section(
        panels=[panel for panel in panels if panel.marks],
        sentences=_peaks(found[TWO_NN], TWO_NN, depths),
        legend=[SCALES[n] for n in shown],
        notes=[
            f"From the last tokens of {points} windows of {units}, equal ones once. Depth l is the input of layer l. Few "
            "points in many dimensions give too small an intrinsic dimension: compare depths, not models with different texts.",
        ],
        definitions=(*POINT_METRICS, GRIDE),
        across=2,
    )


def build_trajectory(run: RunDirectory) -> Section:
    """Prompt entropy, with and without the vectors' lengths, and curvature by depth."""
    table = read_table(run, TRAJECTORY_NAME, TRAJECTORY_TABLE)
    depths = depth_of(run.manifest, int(table["layer"].max())) + 1  # type: ignore[arg-type]
    found = {metric: series(table, metric) for metric in TRAJECTORY_METRICS}
    return Section(
        panels=[_panel(metric, values, depths, TRAJECTORY_NAME) for metric, values in found.items() if values],
        sentences=[
            *_lowest(found[UNIT_PROMPT_ENTROPY], UNIT_PROMPT_ENTROPY, depths),
            *_lowest(found[PROMPT_ENTROPY], PROMPT_ENTROPY, depths),
        ],
        notes=["Depth l is the input of layer l."],
        definitions=TRAJECTORY_METRICS,
    )


def _panel(metric: Metric, values: Series, depths: int, name: str = NAME) -> Panel:
    return lines(
        f"{name}-{metric.name}",
        metric.title,
        metric,
        [Curve(look=OWN, values=values, call=INPUT)],
        layers(depths),
        share_of_all=False,
    )


def _peaks(values: Series, metric: Metric, depths: int) -> Sequence[str]:
    if len(values) < 3:
        return []
    first, last = min(values), max(values)
    peak = ranked({depth: value for depth, value in values.items() if first < depth < last})[0]
    return [
        f"The intrinsic dimension is {spoken(values[first], metric)} at the first depth, {spoken(values[last], metric)} at the "
        f"last, and between them highest at depth {peak} of {depths - 1}, {spoken(values[peak], metric)}."
    ]


def _lowest(values: Series, metric: Metric, depths: int) -> Sequence[str]:
    if len(values) < 3:
        return []
    least, first, last = ranked(values)[-1], min(values), max(values)
    return [
        f"{metric.title} is {spoken(values[first], metric)} at the first depth, lowest at depth {least} of {depths - 1}, "
        f"{spoken(values[least], metric)}, and {spoken(values[last], metric)} at the last."
    ]


KIND = Kind(
    name=NAME,
    title="Intrinsic dimension and rank by depth",
    source="Valeriani et al. 2023, Cheng et al. 2024",
    experiment=NAME,
    file=f"tables/{NAME}.parquet",
    build=build,
    look_for="a peak of the intrinsic dimension in the first half, where representations of different texts are most "
    "different, and whether it is there on every scale.",
    more_tables=(SCALES_NAME,),
)
TRAJECTORY_KIND = Kind(
    name=TRAJECTORY_NAME,
    title="Spread and curvature of each text by depth",
    source="Skean et al. 2025",
    experiment=TRAJECTORY_NAME,
    file=f"tables/{TRAJECTORY_NAME}.parquet",
    build=build_trajectory,
    look_for="a valley of the entropy in the middle, where a text’s vectors are most alike, and steps that turn less with "
    "depth.",
)

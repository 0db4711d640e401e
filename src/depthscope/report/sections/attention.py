"""Where attention goes (the paper's figure 4)."""

from dataclasses import replace

import polars as pl

from depthscope.report.charts import Curve, heat, layers, lines
from depthscope.report.measured import Value, depth_of, protocol_note, ranked, read_table, series, spoken
from depthscope.report.palette import ATTENTION, ON_FIRST, ON_ITSELF, REACHES
from depthscope.report.panels import Panel
from depthscope.report.section import Kind, Section
from depthscope.run.store import RunDirectory
from depthscope.schema.attention import ATTENTION_TABLE, BANDS, FIRST, HEADS_TABLE, ITSELF, PREVIOUS
from depthscope.schema.metric import Metric

NAME, HEADS = "attention", "attention_heads"
PAPER = 5
"""The number of previous tokens k in the paper."""
LAD2024 = (
    "Protocol lad2024: mean entry of the pattern’s first k sub-diagonals, as in the published script; about share / k."
)


def build(run: RunDirectory) -> Section:
    """Attention to the previous k tokens; to the first token and to itself; by layer and head for k = 5."""
    table = read_table(run, NAME, ATTENTION_TABLE)
    there = set(table["metric"])
    kinds = BANDS if any(metric.name in there for metric in BANDS.values()) else PREVIOUS
    reaches = [reach for reach, metric in kinds.items() if metric.name in there]
    x = layers(depth_of(run.manifest, (table["layer"].max() or 0) + 1))  # type: ignore[operator]
    before = [
        Curve(look=REACHES[k], values=series(table, kinds[k]), call=f"layer {{}}, k = {k}", title=f"k = {k}")
        for k in reaches
    ]
    others = [
        Curve(look=look, values=series(table, metric), call=f"layer {{}}, {word}")
        for look, metric, word in ((ON_FIRST, FIRST, "first"), (ON_ITSELF, ITSELF, "itself"))
    ]
    shown = PREVIOUS[PAPER] if kinds is PREVIOUS else BANDS[PAPER]
    title = "On the k tokens before" if kinds is PREVIOUS else "Mean entry of the first k sub-diagonals"
    panels = [
        lines("attention-previous", title, shown, before, x, share_of_all=False),
        lines("attention-others", "On the first token, on itself", FIRST, others, x, share_of_all=False),
    ]
    by_head = _by_head(run, shown, x.last + 1)
    return Section(
        panels=[*panels, *by_head],
        legend=[replace(REACHES[k], title=f"k = {k}", definition="") for k in reaches]
        + [replace(look, definition="") for look in (ON_FIRST, ON_ITSELF)],
        sentences=_sentences(table, shown if shown.name in there else kinds[reaches[-1]]),
        notes=protocol_note(run, NAME, LAD2024),
        definitions=[*(kinds[k] for k in reaches), FIRST, ITSELF],
    )


def _by_head(run: RunDirectory, metric: Metric, depth: int) -> list[Panel]:
    if HEADS not in run.tables():
        return []
    table = read_table(run, HEADS, HEADS_TABLE).filter(metric=metric.name)
    if table.is_empty():
        return []
    rows = table.select("head", "layer", "mean", "ci_low", "ci_high").iter_rows()
    values = {(head, layer): Value(*value) for head, layer, *value in rows}
    shape = (max(head for head, _ in values) + 1, depth)
    return [heat("attention-heads", f"k = {PAPER}, by head", metric, values, shape, ("head", "layer"), ATTENTION)]


def _sentences(table: pl.DataFrame, metric: Metric) -> list[str]:
    said = []
    for shown, lead in ((metric, metric.title), (FIRST, FIRST.title)):
        values = series(table, shown)
        if len(values) > 1:
            most, least = ranked(values)[0], ranked(values)[-1]
            said.append(
                f"{lead} is highest in layer {most}, {spoken(values[most], shown)}, and lowest in layer {least}, "
                f"{spoken(values[least], shown)}."
            )
    return said


KIND = Kind(
    name=NAME,
    title="Where attention goes",
    source="Lad et al. 2024, figure 4",
    experiment=NAME,
    file=f"tables/{NAME}.parquet",
    build=build,
    look_for="a peak in the early layers, where neighbouring tokens are merged into words, and attention that shifts to the "
    "first token after them.",
    more_tables=(HEADS,),
)

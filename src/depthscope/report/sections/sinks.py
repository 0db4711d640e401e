"""Attention sinks: heads that attend mostly to the first token, by layer and head (Gu et al. 2024)."""

from dataclasses import replace

import polars as pl

from depthscope.report.charts import Curve, heat, layers, lines
from depthscope.report.measured import (
    Series,
    Value,
    depth_of,
    give_or_take,
    interval,
    ranked,
    read_table,
    series,
    spoken,
)
from depthscope.report.palette import ATTENTION, ON_FIRST, ON_ITSELF
from depthscope.report.panels import Panel
from depthscope.report.section import Kind, Section
from depthscope.report.wording import layer_list
from depthscope.run.store import RunDirectory
from depthscope.schema.sinks import (
    LATER_SINK,
    METRICS,
    QUERIES,
    SINK,
    SINK_HEADS,
    SINK_HEADS_TABLE,
    SINKS_MODEL_TABLE,
    SINKS_TABLE,
    THRESHOLD,
    TO_FIRST,
)

NAME, MODEL, HEADS = "sinks", "sinks_model", "sink_heads"
ON_FIRST_TOKEN = replace(ON_FIRST, title="on the first token", definition="")
ON_LATER_TOKEN = replace(ON_ITSELF, title="on a later token", definition="")
HALF = 0.5
AGREE = "An interval without width means that all documents of this text agree, not that every other text does."
MODEL_HEAD = ("model", "value", "95% interval")
"""What the terminal prints of the whole model."""


def build(run: RunDirectory) -> Section:
    """The share of heads with a sink and the attention to the first token by layer, and the latter by head."""
    table = read_table(run, NAME, SINKS_TABLE)
    x = layers(depth_of(run.manifest, int(table["layer"].max() or 0) + 1))  # type: ignore[arg-type]
    queries = min(max(int(run.settings.of(NAME).get("queries", QUERIES)), 1), QUERIES)
    uniform = sum(1 / (query + 1) for query in range(queries)) / queries
    shares = {look: series(table, metric) for look, metric in ((ON_FIRST_TOKEN, SINK), (ON_LATER_TOKEN, LATER_SINK))}
    panels = [
        lines(
            "sinks-share",
            "Heads with a sink",
            SINK,
            [Curve(look=look, values=values, call=f"layer {{}}, {look.title}") for look, values in shares.items()],
            x,
        ),
        lines(
            "sinks-attention",
            TO_FIRST.title,
            TO_FIRST,
            [Curve(look=ON_FIRST_TOKEN, values=series(table, TO_FIRST), call="layer {}")],
            x,
            levels=[(THRESHOLD, "ε"), (uniform, "spread evenly")],
            share_of_all=False,
        ),
        *_by_head(run, x.last + 1),
    ]
    return Section(
        panels=panels,
        legend=(ON_FIRST_TOKEN, ON_LATER_TOKEN),
        sentences=[*_of_model(run), *_of_layers(shares[ON_FIRST_TOKEN])],
        notes=[
            f"Attention of the first {queries} queries of each window, the first token’s own included. Spread evenly over the "
            f"tokens up to each query, it would give the first token {100 * uniform:.1f}%.",
            AGREE,
        ],
        definitions=(*METRICS, SINK_HEADS),
    )


def _by_head(run: RunDirectory, depth: int) -> list[Panel]:
    if HEADS not in run.tables():
        return []
    table = read_table(run, HEADS, SINK_HEADS_TABLE).filter(
        pl.col("metric") == TO_FIRST.name, pl.col("mean").is_not_null()
    )
    if table.is_empty():
        return []
    rows = table.select("head", "layer", "mean", "ci_low", "ci_high").iter_rows()
    values = {(head, layer): Value(*value) for head, layer, *value in rows}
    shape = (max(head for head, _ in values) + 1, depth)
    return [heat("sinks-heads", "By head", TO_FIRST, values, shape, ("head", "layer"), ATTENTION)]


def model_values(table: pl.DataFrame) -> dict[str, Value]:
    """The model's values by metric."""
    rows = table.filter(pl.col("mean").is_not_null()).select("metric", "mean", "ci_low", "ci_high").iter_rows()
    return {name: Value(*value) for name, *value in rows}


def model_rows(table: pl.DataFrame) -> list[tuple[str, ...]]:
    """The rows of MODEL_HEAD for the terminal."""
    values = model_values(table)
    rows = []
    for metric in (*METRICS, SINK_HEADS):
        if metric.name in values:
            value = values[metric.name]
            text = f"{value.mean:.0f}" if metric is SINK_HEADS else give_or_take(value, metric)
            rows.append((metric.title, text, interval(value, metric, 0) or "–"))
    return rows


def _of_model(run: RunDirectory) -> list[str]:
    if MODEL not in run.tables():
        return []
    values = model_values(read_table(run, MODEL, SINKS_MODEL_TABLE))
    said = []
    if SINK.name in values and LATER_SINK.name in values:
        said.append(
            f"{spoken(values[SINK.name], SINK)} of the heads have an attention sink on the first token, "
            f"{spoken(values[LATER_SINK.name], LATER_SINK)} on a later one."
        )
    if SINK_HEADS.name in values:
        found = values[SINK_HEADS.name]
        total = _heads(run)
        at_once = (
            f" ({found.low:.0f} to {found.high:.0f} with intervals for all heads at once)" if found.has_interval else ""
        )
        said.append(
            f"On average over the windows, {found.mean:.0f}{f' of {total}' if total else ''} heads{at_once} give the first "
            f"token more than {THRESHOLD:.0%} of their attention."
        )
    return said


def _heads(run: RunDirectory) -> int:
    if HEADS not in run.tables():
        return 0
    return read_table(run, HEADS, SINK_HEADS_TABLE).select("layer", "head").n_unique()


def _of_layers(shares: Series) -> list[str]:
    if not shares:
        return []
    most = ranked(shares)[0]
    without = [layer for layer, value in shares.items() if value.mean == 0]
    if len(without) == len(shares):
        return ["No head has a sink on the first token in any window."]
    half = [layer for layer, value in shares.items() if value.mean >= HALF]
    said = [
        f"Sinks on the first token are most frequent in layer {most}, {spoken(shares[most], SINK)} of its heads.",
        f"At least half of the heads have one in {layer_list(half)}." if half else "",
        f"No window has one in {layer_list(without)}." if without else "",
    ]
    return [one for one in said if one]


KIND = Kind(
    name=NAME,
    title="Attention sinks",
    source="Gu et al. 2024",
    experiment=NAME,
    file=f"tables/{NAME}.parquet",
    build=build,
    look_for="layers where most heads attend to the first token, whatever it is, and whether they begin where massive "
    "activations do.",
    more_tables=(MODEL, HEADS),
)

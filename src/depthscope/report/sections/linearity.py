"""Linearity (Razzhigaev et al. 2024): how much of a block an affine map explains, and the KL of replacing the block by it."""

import polars as pl

from depthscope.report.charts import Curve, layers, lines
from depthscope.report.measured import Series, Value, depth_of, give_or_take, number, read_table, series, spoken
from depthscope.report.palette import DROP, LINEARITY
from depthscope.report.panels import Panel
from depthscope.report.section import Kind, Section
from depthscope.report.wording import compared, counted_units, layer_list, sentence
from depthscope.run.store import RunDirectory
from depthscope.schema.linearity import (
    ALL,
    DROP_KL,
    ENOUGH_PER_COORDINATE,
    HIGHEST,
    IN_SAMPLE,
    KL_DIFFERENCE,
    LINEAR_KL,
    LINEARITY_EXTREMES_TABLE,
    LINEARITY_MEAN_TABLE,
    LINEARITY_TABLE,
    LOWEST,
    NOT_FIRST,
    SCORES,
    STREAM,
    STREAM_IN_SAMPLE,
    WRITE,
    WRITE_IN_SAMPLE,
)
from depthscope.schema.metric import Metric

NAME, MEAN_NAME, EXTREMES_NAME = "linearity", "linearity_mean", "linearity_extremes"
SHORT = {ALL: "all positions", NOT_FIRST: "without first positions"}


def build(run: RunDirectory) -> Section:
    """Linearity of stream and write by layer, and KL of replacing and of dropping the block."""
    table = read_table(run, NAME, LINEARITY_TABLE)
    x = layers(depth_of(run.manifest, int(table["layer"].max() or 0) + 1))  # type: ignore[arg-type]
    of_edits = {metric: series(table, metric, positions=ALL) for metric in (LINEAR_KL, DROP_KL, KL_DIFFERENCE)}
    panels = [
        lines(f"{NAME}-{score.name}", score.title, score, _curves(table, score, in_sample), x)
        for score, in_sample in zip(SCORES, IN_SAMPLE, strict=True)
    ]
    edits = [
        Curve(look=LINEARITY["linear"], values=of_edits[LINEAR_KL], call="layer {} replaced"),
        Curve(look=DROP, values=of_edits[DROP_KL], call="drop({})"),
    ]
    panels.append(lines(f"{NAME}-kl", "KL, replaced or dropped", LINEAR_KL, edits, x, log=True))
    means = read_table(run, MEAN_NAME, LINEARITY_MEAN_TABLE) if MEAN_NAME in run.tables() else None
    extremes = read_table(run, EXTREMES_NAME, LINEARITY_EXTREMES_TABLE) if EXTREMES_NAME in run.tables() else None
    return Section(
        panels=[panel for panel in panels if _drawn(panel)],
        sentences=[
            *(() if means is None else _average(means)),
            *_large_positions(table),
            *(() if extremes is None else _extreme(extremes)),
            *(() if extremes is None else _edited(extremes, of_edits)),
        ],
        legend=[*LINEARITY.values(), DROP],
        notes=_notes(run, table),
        definitions=(*SCORES, *IN_SAMPLE, LINEAR_KL, DROP_KL),
        log_note="A KL of 0 is below the end of a logarithmic axis."
        if any(value.mean <= 0 for value in of_edits[LINEAR_KL].values())
        else None,
    )


def _curves(table: pl.DataFrame, score: Metric, in_sample: Metric) -> list[Curve]:
    said = "layer {}"
    found = [
        Curve(look=LINEARITY[positions], values=series(table, score, positions=positions), call=said)
        for positions in (ALL, NOT_FIRST)
    ]
    fitted = series(table, in_sample, positions=ALL)
    return [*found, Curve(look=LINEARITY["in_sample"], values=fitted, call=f"{said}, in sample")]


def _drawn(panel: Panel) -> bool:
    return any(points.y for points in panel.points)


def _picked(table: pl.DataFrame, metric: Metric, **where: str) -> Value | None:
    """The value of a metric in the row that matches; None where there is none."""
    found = table.filter(pl.col("metric") == metric.name, pl.col("mean").is_not_null(), **where)
    return None if found.is_empty() else Value(*found.select("mean", "ci_low", "ci_high").row(0))


def _average(means: pl.DataFrame) -> list[str]:
    """Means over the blocks, with and without first positions, and in sample."""
    stream, write = (_picked(means, score, positions=ALL) for score in SCORES)
    if stream is None or write is None:
        return []
    said = (
        f"On average over the blocks, an affine map explains {spoken(stream, STREAM)} of the variance of the stream after the "
        f"block, and {spoken(write, WRITE)} of what the block writes"
    )
    later = [_picked(means, score, positions=NOT_FIRST) for score in SCORES]
    if later[0] is not None and later[1] is not None:
        said += f"; without the first position of each window {spoken(later[0], STREAM)} and {spoken(later[1], WRITE)}"
    fitted = [_picked(means, score, positions=ALL) for score in IN_SAMPLE]
    if fitted[0] is None or fitted[1] is None:
        return [f"{said}."]
    return [
        f"{said}.",
        f"On the text that the maps were fitted on, as the paper measures it, the two averages are "
        f"{number(fitted[0].mean, STREAM_IN_SAMPLE)} and {number(fitted[1].mean, WRITE_IN_SAMPLE)}.",
    ]


def _large_positions(table: pl.DataFrame) -> list[str]:
    """In how many layers first positions raise the score of the stream."""
    over_all, later = (series(table, STREAM, positions=positions) for positions in (ALL, NOT_FIRST))
    higher, _, _ = compared(over_all, later)
    if not higher:
        return []
    return [
        f"In {len(higher)} of {len(over_all)} layers the score of the stream over all positions is above that without first "
        "positions (95% intervals apart): there, positions with a large norm make it."
    ]


MEAN_HEAD = ("mean over blocks", STREAM.title.lower(), WRITE.title.lower(), "in sample")


def mean_rows(means: pl.DataFrame) -> list[tuple[str, ...]]:
    """The rows of MEAN_HEAD, for the terminal."""
    rows = []
    for positions, title in SHORT.items():
        values = [_picked(means, score, positions=positions) for score in SCORES]
        fitted = [_picked(means, score, positions=positions) for score in IN_SAMPLE]
        cells = [
            "–" if value is None else give_or_take(value, score) for value, score in zip(values, SCORES, strict=True)
        ]
        both = " and ".join("–" if value is None else number(value.mean, STREAM) for value in fitted)
        rows.append((title, *cells, both))
    return rows


def _extreme(extremes: pl.DataFrame) -> list[str]:
    """The least linear blocks."""
    said = []
    for metric, what in (
        (WRITE, "The least linear write is that of"),
        (STREAM, "the least linear stream is that after"),
    ):
        rows = extremes.filter(pl.col("metric") == metric.name, positions=ALL, extreme=LOWEST)
        if value := _picked(rows, metric):
            said.append(f"{what} layer {rows['layer'][0]}, {spoken(value, metric)}")
    return [f"{sentence(said).removesuffix('.')} ({_together(extremes)})."] if said else []


def _together(extremes: pl.DataFrame) -> str:
    return f"intervals for all {extremes['blocks'].max()} blocks at once"


def _edited(extremes: pl.DataFrame, of_edits: dict[Metric, Series]) -> list[str]:
    """The cheapest replacement against the drop, and in which blocks the fit saves KL."""
    rows = {
        (metric, extreme): extremes.filter(pl.col("metric") == metric.name, positions=ALL, extreme=extreme)
        for metric, extreme in ((LINEAR_KL, LOWEST), (KL_DIFFERENCE, LOWEST), (KL_DIFFERENCE, HIGHEST))
    }
    picked = {key: (int(one["layer"][0]), value) for key, one in rows.items() if (value := _picked(one, key[0]))}
    said, together = [], _together(extremes)
    if (LINEAR_KL, LOWEST) in picked:
        layer, value = picked[LINEAR_KL, LOWEST]
        dropped = of_edits[DROP_KL].get(layer)
        against = f", against {spoken(dropped, DROP_KL)} for dropping it" if dropped else ""
        said.append(
            f"Cheapest to replace by its affine fit is layer {layer}: KL {spoken(value, LINEAR_KL)} ({together}){against}."
        )
    if (KL_DIFFERENCE, LOWEST) in picked and (KL_DIFFERENCE, HIGHEST) in picked:
        (least, low), (most, high) = picked[KL_DIFFERENCE, LOWEST], picked[KL_DIFFERENCE, HIGHEST]
        worse = [layer for layer, value in of_edits[KL_DIFFERENCE].items() if value.mean < 0]
        begin = (
            f"The fit costs more than dropping the block in {layer_list(worse)}"
            if worse
            else "The fit costs less than dropping the block in every layer"
        )
        said.append(
            f"{begin}: it saves least in layer {least}, {spoken(low, KL_DIFFERENCE)}, and most in layer {most}, "
            f"{spoken(high, KL_DIFFERENCE)} ({together})."
        )
    return said


def _notes(run: RunDirectory, table: pl.DataFrame) -> list[str]:
    units = counted_units(run.manifest.text, int(table["documents"].max() or 0))  # type: ignore[arg-type]
    notes = [
        "A block is replaced at all positions by the map fitted on all positions. Scores compare squared errors, so positions "
        "with a large norm count most; in many models those are the first of each window."
    ]
    fitted = _fitted(table)
    width = run.manifest.model.d_model
    if fitted is None or not width:
        return [f"Intervals are over {units}.", *notes]
    tokens, documents = fitted
    few = few_tokens(run, table)
    return [
        f"The maps were fitted on {tokens:,} tokens of {documents:,} documents that are not measured, {tokens / width:.0f} for "
        f"each of the {width:,} coordinates.",
        *([few] if few else []),
        *notes,
    ]


def _fitted(table: pl.DataFrame) -> tuple[int, int] | None:
    """Tokens and documents that the maps were fitted on."""
    rows = table.filter(pl.col("metric") == STREAM_IN_SAMPLE.name, positions=ALL)
    return None if rows.is_empty() else (int(rows["tokens"][0]), int(rows["documents"][0]))


def few_tokens(run: RunDirectory, table: pl.DataFrame) -> str | None:
    """A warning, for page and terminal, if the maps were fitted on few tokens for their size."""
    fitted, width = _fitted(table), run.manifest.model.d_model
    if fitted is None or not width or fitted[0] >= ENOUGH_PER_COORDINATE * width:
        return None
    return (
        f"The affine maps were fitted on {fitted[0] / width:.0f} tokens per coordinate, which is few: linearity is too low and "
        f"KL too high by the noise of the fit. Expected --fit-tokens of at least {ENOUGH_PER_COORDINATE * width:,}."
    )


KIND = Kind(
    name=NAME,
    title="Blocks as affine maps",
    source="Razzhigaev et al. 2024",
    experiment=NAME,
    file=f"tables/{NAME}.parquet",
    build=build,
    look_for="blocks whose write is nearly affine and whose replacement costs little: what they do, a matrix does; and a "
    "high linearity of the stream with a low one of the write, which says that the block writes little.",
    more_tables=(MEAN_NAME, EXTREMES_NAME),
)

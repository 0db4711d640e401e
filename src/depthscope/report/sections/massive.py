"""Massive activations: how large, at which depths, dimensions and positions, and which layers write and remove them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import polars as pl

from depthscope.report.charts import Curve, XAxis, layers, lines
from depthscope.report.measured import Series, Value, number, ranked, read_table, series, spoken
from depthscope.report.palette import MAGNITUDES, ON_FIRST, ON_ITSELF
from depthscope.report.panels import Panel
from depthscope.report.section import Kind, Section, TextTable
from depthscope.report.sections.sinks import AGREE
from depthscope.report.wording import layer_list, listed, ranges
from depthscope.run.store import RunDirectory
from depthscope.schema.massive import (
    BLOCK_METRICS,
    FIRST,
    LARGEST,
    LARGEST_RATIO,
    LATER,
    MAGNITUDE,
    MASSIVE_BLOCKS_TABLE,
    MASSIVE_DIMENSIONS_TABLE,
    MASSIVE_EXTREMES_TABLE,
    MASSIVE_FIRST,
    MASSIVE_LATER,
    MASSIVE_TABLE,
    MASSIVE_TOKENS_TABLE,
    MASSIVE_WINDOWS,
    MEDIAN,
    METRICS,
    RATIO,
    RELATIVE,
    REMOVING,
    SECOND,
    SHARE,
    THIRD,
    VALUE,
    WRITING,
)
from depthscope.schema.metric import Metric

NAME, BLOCKS, DIMENSIONS, EXTREMES, TOKENS = (
    "massive",
    "massive_blocks",
    "massive_dimensions",
    "massive_extremes",
    "massive_tokens",
)
LOOKS = {
    FIRST: replace(ON_FIRST, title="at the first position", definition=""),
    LATER: replace(ON_ITSELF, title="at later positions", definition=""),
}
SHOWN_DIMENSIONS, SHOWN_TOKENS = 12, 10
MOST = 64
"""Dimensions that the page looks at; the table holds all."""
HALF = 0.5


def build(run: RunDirectory) -> Section:
    """Magnitudes by depth; where there are massive activations, their numbers and the layers that write and remove them."""
    table = read_table(run, NAME, MASSIVE_TABLE)
    x = XAxis(title="depth l of x_l", last=max(int(table["layer"].max() or 0), 1))  # type: ignore[arg-type]
    there = any(value.mean > 0 for value in series(table, MASSIVE_WINDOWS).values())
    blocks = _optional(run, BLOCKS, MASSIVE_BLOCKS_TABLE)
    dimensions = found_dimensions(_optional(run, DIMENSIONS, MASSIVE_DIMENSIONS_TABLE)) if there else []
    panels = [_magnitudes(table, x), _ratio(table, x), *(_numbers(table, blocks, x) if there else ())]
    said = _of_depths(table, x.last) + _of_blocks(blocks) + _of_dimensions(dimensions) if there else _of_none(table)
    return Section(
        panels=panels,
        legend=[*(replace(look, definition="") for look in MAGNITUDES.values()), *(LOOKS.values() if there else ())],
        sentences=[*said, *_largest_seen(run)],
        notes=[
            "x_l is the residual stream before layer l, and after the last layer for l = L. Windows are run alone: the first "
            "position is that of the window, the BOS token only where the run adds one.",
            AGREE,
        ],
        tables=[*_dimension_table(dimensions), *_token_table(_optional(run, TOKENS, MASSIVE_TOKENS_TABLE))],
        definitions=(*METRICS, *BLOCK_METRICS, SHARE, VALUE),
        across=3 if there else 2,
    )


def _optional(run: RunDirectory, name: str, columns: dict) -> pl.DataFrame:
    """A table that may have no rows, or not be there."""
    found = run.table(name) if name in run.tables() else pl.DataFrame(schema=columns)
    return read_table(run, name, columns) if len(found) else pl.DataFrame(schema=columns)


def _magnitudes(table: pl.DataFrame, x: XAxis) -> Panel:
    curves = [
        Curve(look=MAGNITUDES[metric.name], values=series(table, metric), call=f"x_{{}}, {metric.title.lower()}")
        for metric in (LARGEST, SECOND, THIRD, MEDIAN)
    ]
    return lines(
        "massive-magnitudes", "Magnitudes in a window", LARGEST, curves, x, log=True, levels=[(MAGNITUDE, "100")]
    )


def _ratio(table: pl.DataFrame, x: XAxis) -> Panel:
    curve = Curve(look=MAGNITUDES[LARGEST.name], values=series(table, LARGEST_RATIO), call="x_{}")
    levels = [(RATIO, f"{RATIO:,g}")]
    return lines("massive-ratio", LARGEST_RATIO.title, LARGEST_RATIO, [curve], x, log=True, levels=levels, unit="")


def _numbers(table: pl.DataFrame, blocks: pl.DataFrame, x: XAxis) -> list[Panel]:
    counts = [
        Curve(look=LOOKS[position], values=series(table, metric), call=f"x_{{}}, {LOOKS[position].title}")
        for position, metric in ((FIRST, MASSIVE_FIRST), (LATER, MASSIVE_LATER))
    ]
    panels = [lines("massive-numbers", "Massive activations of a window", MASSIVE_FIRST, counts, x, unit="number")]
    for metric, name in ((WRITING, "written"), (REMOVING, "removed")):
        curves = [
            Curve(look=look, values=values, call=f"layer {{}}, {look.title}")
            for position, look in LOOKS.items()
            if (values := series(blocks, metric, position=position))
        ]
        if curves:
            panels.append(lines(f"massive-{name}", metric.title, metric, curves, layers(x.last)))
    return panels


def _amount(value: Value, metric: Metric) -> str:
    """A magnitude with its interval: whole numbers from 10 on, with separators from 1,000 on."""
    if value.low is None or value.high is None:
        return _large(value.mean, metric)
    return f"{_large(value.mean, metric)} ({_large(value.low, metric)} to {_large(value.high, metric)})"


def _large(value: float, metric: Metric) -> str:
    return number(value, metric) if abs(value) < 10 else f"{value:,.0f}".replace("-", "−")


def _of_none(table: pl.DataFrame) -> list[str]:
    ratios, relative = series(table, LARGEST_RATIO), series(table, RELATIVE)
    said = [
        f"No activation is massive: none has a magnitude above {MAGNITUDE:g} and at least {RATIO:,g} times the median "
        "magnitude of its window’s x_l."
    ]
    if ratios:
        most = ranked(ratios)[0]
        said.append(
            f"The largest magnitude is on average at most {_amount(ratios[most], LARGEST_RATIO)} times the median, in x_{most}."
        )
    if any(value.mean > 0 for value in relative.values()):
        most = ranked(relative)[0]
        said.append(
            f"By the median alone there are values of {RATIO:,g} times: {_amount(relative[most], RELATIVE)} per window in "
            f"x_{most}."
        )
    return said


def _of_depths(table: pl.DataFrame, last: int) -> list[str]:
    windows = series(table, MASSIVE_WINDOWS)
    most = ranked(windows)[0]
    often = [depth for depth, value in windows.items() if value.mean >= HALF]
    if not often:
        return [
            f"Massive activations are in fewer than half of the windows at every depth; most often in x_{most}, in "
            f"{spoken(windows[most], MASSIVE_WINDOWS)}."
        ]
    first, later = (series(table, metric) for metric in (MASSIVE_FIRST, MASSIVE_LATER))
    numbers = [
        f"{number(values[most].mean, metric) if values[most].mean else 'none'} {LOOKS[position].title}"
        for position, metric, values in ((FIRST, MASSIVE_FIRST, first), (LATER, MASSIVE_LATER, later))
        if most in values
    ]
    said = [
        f"At least half of the windows have massive activations in x_l for l = {ranges(often)}; in x_{most} "
        f"{spoken(windows[most], MASSIVE_WINDOWS)} have, on average {' and '.join(numbers)}."
    ]
    if last in often:
        said.append("They are still there after the last layer.")
    return said


def _of_blocks(blocks: pl.DataFrame) -> list[str]:
    said = []
    for position, look in LOOKS.items():
        parts = []
        for metric, verb in ((WRITING, "writes"), (REMOVING, "removes")):
            values = series(blocks, metric, position=position)
            if not values or values[ranked(values)[0]].mean == 0:
                continue
            most = ranked(values)[0]
            also = [layer for layer in values if layer != most and values[layer].mean > 0]
            others = f" (less often: {layer_list(also)})" if also else ""
            parts.append(f"layer {most} {verb} some in {spoken(values[most], metric)} of the windows{others}")
        if parts:
            said.append(f"{look.title[0].upper()}{look.title[1:]}, {'; '.join(parts)}.")
    return said


@dataclass(frozen=True, slots=True)
class FoundDimension:
    """A dimension with massive activations at a position: the share of windows and the mean value, by depth."""

    dimension: int
    position: str
    shares: Series
    values: Series

    @property
    def peak(self) -> int:
        """The first depth at which most windows have it."""
        return ranked(self.shares)[0]

    @property
    def often(self) -> list[int]:
        """The depths at which at least half of the windows have it."""
        return [depth for depth, value in self.shares.items() if value.mean >= HALF]


def found_dimensions(table: pl.DataFrame) -> list[FoundDimension]:
    """The dimensions with massive activations, those in most windows first, then by their mean value; at most MOST."""
    there = table.filter(pl.col("position").is_in([FIRST, LATER]), pl.col("mean").is_not_null())
    peaks = pl.col("mean").abs().max()
    by_metric = {
        metric: there.filter(metric=metric.name).group_by("dimension", "position", maintain_order=True).agg(peaks)
        for metric in (SHARE, VALUE)
    }
    both = by_metric[SHARE].join(by_metric[VALUE], on=["dimension", "position"], maintain_order="left")
    order = both.sort("mean", "mean_right", descending=True, maintain_order=True).head(MOST)
    found = []
    for dimension, position in order.select("dimension", "position").iter_rows():
        where = {"dimension": dimension, "position": position}
        one = FoundDimension(dimension, position, series(there, SHARE, **where), series(there, VALUE, **where))
        if one.peak in one.values:
            found.append(one)
    return found


def _of_dimensions(found: Sequence[FoundDimension]) -> list[str]:
    said = []
    for position, look in LOOKS.items():
        often = [one for one in found if one.position == position and one.often]
        if often:
            names = listed([f"{one.dimension} (x_l for l = {ranges(one.often)})" for one in often])
            said.append(
                f"{look.title[0].upper()}{look.title[1:]}, in at least half of the windows: "
                f"dimension{'s' if len(often) > 1 else ''} {names}."
            )
    return said


def _dimension_table(found: Sequence[FoundDimension]) -> list[TextTable]:
    rows = []
    for one in found[:SHOWN_DIMENSIONS]:
        depths = [depth for depth, value in one.shares.items() if value.mean > 0]
        rows.append(
            (
                str(one.dimension),
                LOOKS[one.position].title,
                f"x_{one.peak}",
                spoken(one.shares[one.peak], SHARE),
                _amount(one.values[one.peak], VALUE),
                ranges(depths),
            )
        )
    more = " (those in most windows)" if len(found) > SHOWN_DIMENSIONS else ""
    head = ("Dimension", "Position", "Most windows in", "Windows", "Mean value there", "Depths l with any")
    return [TextTable(title=f"Dimensions with massive activations{more}", head=head, rows=rows)] if rows else []


def _token_table(table: pl.DataFrame) -> list[TextTable]:
    rows = []
    for position, look in LOOKS.items():
        most = table.filter(pl.col("position") == position).sort("rank").head(SHOWN_TOKENS)
        tokens = [f"{text} ({count})" for text, count in most.select("text", "count").iter_rows()]
        if tokens:
            rows.append((look.title, " · ".join(tokens)))
    head = ("Position", "Tokens, with the number of positions in this text")
    return [TextTable(title="Tokens with massive activations", head=head, rows=rows, words=True)] if rows else []


def _largest_seen(run: RunDirectory) -> list[str]:
    """The largest value of the text: a description of what was read, not an estimate."""
    table = _optional(run, EXTREMES, MASSIVE_EXTREMES_TABLE).filter(pl.col("value").is_not_null())
    if table.is_empty():
        return []
    one = table.sort(pl.col("value").abs(), descending=True, maintain_order=True).row(0, named=True)
    times = "" if one["ratio"] is None else f", {_large(one['ratio'], LARGEST_RATIO)} times its window’s median"
    return [
        f"The largest magnitude seen in {one['tokens']:,} tokens is {_large(abs(one['value']), LARGEST)}{times}: in "
        f"x_{one['layer']}, dimension {one['dimension']}, position {one['place']}, at the token “{one['text']}”."
    ]


KIND = Kind(
    name=NAME,
    title="Massive activations",
    source="Sun et al. 2024 (Massive Activations in Large Language Models)",
    experiment=NAME,
    file=f"tables/{NAME}.parquet",
    build=build,
    look_for="a largest magnitude that jumps by orders of magnitude in one early layer, stays there, and falls in the last "
    "layers, while the median hardly changes.",
    more_tables=(BLOCKS, DIMENSIONS, EXTREMES, TOKENS),
)

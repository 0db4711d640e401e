"""Effective depth: the curves that depths are read from, and the depths with their intervals (Hu et al. 2025)."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import polars as pl

from depthscope.report.charts import Curve, XAxis, lines, with_y
from depthscope.report.measured import Series, read_table, series
from depthscope.report.palette import ATTENTION, CONTROL, FITTED, MLP, OWN, Look
from depthscope.report.panels import LAYER, Panel
from depthscope.report.section import Kind, Section, TextTable
from depthscope.run.store import RunDirectory
from depthscope.schema.effective_depth import (
    ATTENTION_COSINE,
    COMPONENT_COSINE,
    CURVES,
    EFFECTIVE_DEPTH_CURVES_TABLE,
    EFFECTIVE_DEPTH_TABLE,
    KL_SHARE,
    LENS_CURVES,
    METRICS,
    MLP_COSINE,
    NAME,
    OVERLAP,
    READINGS,
    WRITE_COSINE,
)
from depthscope.schema.lens import LENSES
from depthscope.schema.metric import Metric

HEAD = ("reading", "lens", "depth (95% interval)", "of the layers", "in resamples")
"""The last: the share of resamples in which the depth exists."""
COSINES = {
    WRITE_COSINE: replace(OWN, title="Block", definition=WRITE_COSINE.definition),
    ATTENTION_COSINE: ATTENTION,
    MLP_COSINE: MLP,
    COMPONENT_COSINE: replace(CONTROL, title=COMPONENT_COSINE.title, definition=COMPONENT_COSINE.definition),
}


def build(run: RunDirectory) -> Section:
    """The cosines by layer, KL over its maximum and top-5 overlap by depth, and a table of the readings."""
    curves = read_table(run, CURVES, EFFECTIVE_DEPTH_CURVES_TABLE)
    readings = read_table(run, NAME, EFFECTIVE_DEPTH_TABLE)
    cosines = {metric: series(curves, metric) for metric in COSINES}
    there = [metric for metric, values in cosines.items() if values]
    lenses = {name: _look(name, number) for number, name in enumerate(_lenses(curves))}
    last = max((depth for values in cosines.values() for depth in values), default=0)
    panels = [
        lines(
            f"{NAME}-cosine",
            "Cosine of writes with the stream",
            WRITE_COSINE,
            [
                Curve(look=COSINES[metric], values=cosines[metric], call=f"{metric.title}, layer {{}}")
                for metric in there
            ],
            XAxis(title=LAYER, last=last),
        ),
        *(_of_lenses(curves, metric, lenses) for metric in (KL_SHARE, OVERLAP)),
    ]
    rows = _with_reasons(readings)
    return Section(
        panels=[panel for panel in panels if panel.marks],
        sentences=list(_sentences(readings)),
        legend=[*(COSINES[metric] for metric in there), *(lenses.values() if len(lenses) > 1 else ())],
        notes=[
            "A depth is found again on the mean curve of every one of 1,000 resamples of the documents; its interval holds "
            "95% of those in which it exists. x_l is the residual stream before layer l."
        ],
        tables=[TextTable(title="Depths read off the curves", head=HEAD, rows=rows, words=True)] if rows else (),
        definitions=[*(metric for metric in METRICS if metric in there or metric in LENS_CURVES)],
    )


def _of_lenses(curves: pl.DataFrame, metric: Metric, looks: dict[str, Look]) -> Panel:
    found = {name: series(curves.filter(pl.col("lens") == name), metric) for name in looks}
    last = max((depth for values in found.values() for depth in values), default=1)
    panel = lines(
        f"{NAME}-{metric.name}",
        metric.title,
        metric,
        [
            Curve(look=looks[name], values=_before(values), call=f"{looks[name].title}, x_{{}}")
            for name, values in found.items()
        ],
        XAxis(title="depth l of x_l", last=last),
        levels=[(one.threshold, f"{one.threshold:.0%}") for one in READINGS.values() if one.curve == metric],
    )
    return with_y(panel, range=(-0.02, 1.02))


def _before(values: Series) -> Series:
    """Without x_L, where the lens is the model."""
    return {depth: value for depth, value in values.items() if depth < max(values)}


def _lenses(table: pl.DataFrame) -> list[str]:
    return [name for name in table["lens"].unique(maintain_order=True) if name is not None]


def _look(name: str, number: int) -> Look:
    kind = LENSES.get(name)  # a lens that a reader of the run need not have registered
    if name in FITTED:
        return FITTED[name]
    return replace(
        OWN if number == 0 else CONTROL,
        title=kind.title if kind else name,
        definition=kind.definition if kind else "a lens that is not registered here",
    )


def reading_rows(readings: pl.DataFrame) -> list[tuple[str, ...]]:
    """The rows of HEAD, for page and terminal."""
    return [
        (
            _title(one["reading"]),
            _lens(one["lens"]) or "–",
            "none" if one["depth"] is None else f"{one['depth']}{_interval(one, ' ({} to {})')}",
            "–" if one["share"] is None else f"{one['share']:.0%}",
            "–" if one["exists"] is None else f"{one['exists']:.1%}",
        )
        for one in readings.iter_rows(named=True)
    ]


def _with_reasons(readings: pl.DataFrame) -> list[tuple[str | tuple[str, str], ...]]:
    """The same with the reason below a reading without a depth."""
    rows = zip(reading_rows(readings), readings["reason"], strict=True)
    return [((row[0], reason) if reason else row[0], *row[1:]) for row, reason in rows]


def _title(reading: str) -> str:
    return READINGS[reading].title if reading in READINGS else reading


def _lens(name: str | None) -> str | None:
    return LENSES[name].title if name is not None and name in LENSES else name


def _interval(one: dict[str, Any], form: str) -> str:
    return "" if one["ci_low"] is None else form.format(one["ci_low"], one["ci_high"])


def _sentences(readings: pl.DataFrame) -> Iterator[str]:
    """Of the readings with the thresholds of the published functions."""
    what = {
        "write_cosine": "The block’s write turns for the last time from negative to non-negative cosine with the stream after "
        "layer {}",
        "kl": "KL of the {lens} is first below a tenth of its maximum at x_{}",
        "overlap": "the {lens}’s five most likely tokens first share more than 20% with the model’s at x_{}",
    }
    for one in readings.filter(pl.col("reading").is_in(list(what))).iter_rows(named=True):
        called = (_lens(one["lens"]) or "").lower()
        if one["depth"] is None:
            yield f"“{_title(one['reading'])}” does not occur{called and ' under the '}{called}: {one['reason']}."
            continue
        said = what[one["reading"]].replace("{lens}", called).replace("{}", str(one["depth"]))
        seen = "" if (one["exists"] or 1) >= 1 else f", found in {one['exists']:.1%} of resamples"
        between = _interval(one, ", 95% interval {} to {}")
        yield f"{said[0].upper()}{said[1:]} ({one['share']:.0%} of the layers{between}{seen})."


KIND = Kind(
    name=NAME,
    title="Effective depth",
    source="Hu et al. 2025; Csordás et al. 2025",
    experiment=NAME,
    file=f"tables/{NAME}.parquet",
    build=build,
    look_for="whether the three readings agree: how late blocks stop changing the stream and only amplify it, and how late "
    "the prediction takes its final form. Late readings mean that the model uses nearly all of its depth.",
    more_tables=(CURVES,),
)

"""Residual patching: what of a clean prediction each position's stream carries, by depth."""

from dataclasses import replace

import polars as pl

from depthscope.report.charts import Curve, XAxis, lines
from depthscope.report.measured import Value, read_table, series, spoken
from depthscope.report.palette import ATTENTION, DROP, OWN
from depthscope.report.panels import Panel
from depthscope.report.section import Kind, Section, TextTable
from depthscope.report.wording import counted_units, ends
from depthscope.run.store import RunDirectory
from depthscope.schema.metric import Metric
from depthscope.schema.patching import (
    BETWEEN,
    GROUPS,
    HALF_DEPTH,
    KL,
    LARGEST,
    LAST,
    METRICS,
    NOTHING,
    PATCHING_TABLE,
    RECOVERED,
    WORD,
)

NAME, DEPTHS = "patching", "patching_depths"
LOOKS = {
    WORD: replace(DROP, title="The word’s position", definition=GROUPS[WORD]),
    BETWEEN: replace(ATTENTION, title="Positions between", definition=GROUPS[BETWEEN]),
    LAST: replace(OWN, title="The last position", definition=GROUPS[LAST]),
}
DEPTHS_HEAD = ("patched", "quantity", "depth, or depth and value")
"""Where the effect moves, with 95% intervals."""
QUANTITY = {WORD: HALF_DEPTH, LAST: HALF_DEPTH, BETWEEN: LARGEST}
SAID = {
    WORD: "recovery falls below one half",
    LAST: "recovery rises above one half",
    BETWEEN: "recovery is largest",
}


def build(run: RunDirectory) -> Section:
    """Recovery and KL by depth, a curve per group of positions, and where the effect moves."""
    table = read_table(run, NAME, PATCHING_TABLE)
    depths = run.table(DEPTHS)  # without rows if the exchanged words have no effect
    rows = depth_rows(depths)
    last: int = table["layer"].max() or 1  # type: ignore[assignment]
    units = counted_units(run.manifest.text, int(table["documents"].max() or 0))  # type: ignore[arg-type]
    distance = run.settings.of(NAME).get("patch_distance", "some")
    corrupted = series(table, KL, group=NOTHING)
    note = (
        f"{table['tokens'].max()} pairs of prompts from {units}; the prediction is measured {distance} tokens after the "
        "exchanged word. x_l is the residual stream before layer l, and after the last layer for l = L."
    )
    return Section(
        panels=[panel for metric in METRICS if (panel := _panel(table, metric, last))],
        sentences=_sentences(depths, corrupted.get(0)),
        legend=tuple(LOOKS.values()),
        notes=[note],
        missing=() if rows else ("The exchanged words change no prediction, so there is nothing to recover.",),
        tables=[TextTable(title="Where the effect of the word moves", head=DEPTHS_HEAD, rows=rows, words=True)]
        if rows
        else (),
        definitions=(*METRICS, HALF_DEPTH, LARGEST),
        across=2,
    )


def _panel(table: pl.DataFrame, metric: Metric, last: int) -> Panel | None:
    curves = [
        Curve(look=look, values=values, call=f"{look.title}, x_{{}}")
        for group, look in LOOKS.items()
        if (values := series(table, metric, group=group))
    ]
    if not curves:
        return None
    unpatched = series(table, KL, group=NOTHING)
    levels = [(0.5, "one half")] if metric is RECOVERED else [(value.mean, "no patch") for value in unpatched.values()]
    x = XAxis(title="depth l of the patched x_l", last=last)
    return lines(f"{NAME}-{metric.name}", metric.title, metric, curves, x, levels=levels, share_of_all=False)


def _found(depths: pl.DataFrame) -> dict[str, tuple[int, Metric, Value]]:
    """Depth, quantity and value of each group's row."""
    found = {}
    for row in depths.iter_rows(named=True):
        metric = QUANTITY.get(row["group"])
        if metric is not None and metric.name == row["metric"] and row["mean"] is not None:
            found[row["group"]] = row["layer"], metric, Value(row["mean"], row["ci_low"], row["ci_high"])
    return found


def depth_rows(depths: pl.DataFrame) -> list[tuple[str, ...]]:
    """The rows of DEPTHS_HEAD, for page and terminal."""
    rows = []
    for group, (layer, metric, value) in _found(depths).items():
        at = spoken(value, metric) if metric is HALF_DEPTH else f"{layer}, {spoken(value, metric)}"
        rows.append((LOOKS[group].title, SAID[group], at))
    return rows


def _sentences(depths: pl.DataFrame, corrupted: Value | None) -> list[str]:
    found = _found(depths)
    if WORD not in found or LAST not in found:
        return []
    (_, _, word), (_, _, last) = found[WORD], found[LAST]
    said = [
        "Put back at the word’s own position, the clean stream recovers more than half of the prediction up to depth "
        f"{spoken(word, HALF_DEPTH)}; at the last position it does so from depth {spoken(last, HALF_DEPTH)} on."
    ]
    if BETWEEN in found:
        layer, _, most = found[BETWEEN]
        clear = ends(most)[0] > 0
        said.append(
            f"At the positions between it recovers at most {spoken(most, RECOVERED)}, at depth {layer}"
            + ("." if clear else ", which is not clearly above 0.")
        )
    if corrupted is not None:
        said.append(f"The exchanged word changes the prediction by {spoken(corrupted, KL)} of KL on average.")
    return said


KIND = Kind(
    name=NAME,
    title="Where a word’s effect is, by depth",
    source="Lad et al. 2024, table 1; Meng et al. 2022; Zhang and Nanda 2023",
    experiment=NAME,
    file=f"tables/{NAME}.parquet",
    build=build,
    look_for="the depths between which the curve of the word’s position falls and that of the last position rises: there the "
    "layers move what they know of the word to where it is needed.",
    more_tables=(DEPTHS,),
)

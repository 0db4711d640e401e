"""Heads that merge sub-word tokens (the paper's figure 9), and previous-token, duplicate-token and induction heads."""

from dataclasses import replace

import polars as pl

from depthscope.report.charts import Curve, XAxis, heat, lines, ranking
from depthscope.report.measured import Value, interval, read_table, series, spoken, with_unit
from depthscope.report.palette import ATTENTION, CONTROL
from depthscope.report.panels import Panel
from depthscope.report.section import Kind, Section, TextTable
from depthscope.run.store import RunDirectory
from depthscope.schema.heads import (
    ATTENTION as OF_FINAL,
)
from depthscope.schema.heads import (
    HEAD_METRICS,
    HEAD_POSITIONS_TABLE,
    HEADS_TABLE,
    MERGE,
    NATURAL,
    OF_A_KIND,
    PLAIN,
    REPEATED,
    TEXT_OF,
    WORD,
)
from depthscope.schema.metric import Metric

NAME, POSITIONS = "heads", "head_positions"
RANKED, LISTED = 10, 3
"""Number of heads in the ranking, and of each other kind in the table."""
SURE = 0.05
WORD_LOOK = replace(
    ATTENTION, title="Prompts that end with a word of several tokens", definition="the word’s last token attends"
)
PLAIN_LOOK = replace(CONTROL, title="Prompts that end with a word of one token", definition="the word attends")


def build(run: RunDirectory) -> Section:
    """The strongest merging heads with intervals, a map of all heads, the best head's attention, and the best of each kind."""
    table = read_table(run, NAME, HEADS_TABLE)
    merging = table.filter(metric=MERGE.name).sort("rank")
    panels, sentences = [], []
    if not merging.is_empty():
        named = [(_name(layer, head), value) for (layer, head), value in _values(merging.head(RANKED)).items()]
        panels.append(ranking("heads-merge", f"{MERGE.title}: strongest heads", MERGE, ATTENTION, named))
        values = {(head, layer): value for (layer, head), value in _values(merging).items()}
        shape = (max(head for head, _ in values) + 1, max(layer for _, layer in values) + 1)
        panels.append(
            heat("heads-map", f"{MERGE.title}: all heads", MERGE, values, shape, ("head", "layer"), ATTENTION)
        )
        panels += _positions(run, merging)
        sentences = _sentences(merging)
    sentences += [kind_of_heads(table, metric) for metric in REPEATED if metric.name in set(table["metric"])]
    words = merging["word_tokens"].max() if not merging.is_empty() else None
    return Section(
        panels=panels,
        legend=(WORD_LOOK, PLAIN_LOOK) if POSITIONS in run.tables() else (),
        sentences=sentences,
        tables=[_strongest(table)],
        notes=[f"Multi-token words have {words} tokens here. L2H5 is head 5 of layer 2, both numbered from 0."]
        if words
        else [],
        definitions=list(HEAD_METRICS.values()),
    )


def _positions(run: RunDirectory, merging: pl.DataFrame) -> list[Panel]:
    """The best head's attention from the final token by position, if the table exists."""
    if POSITIONS not in run.tables():
        return []
    table = read_table(run, POSITIONS, HEAD_POSITIONS_TABLE)
    layer, head = merging.select("layer", "head").row(0)
    curves = [
        Curve(
            look=look, values=series(table, OF_FINAL, "offset", layer=layer, head=head, prompts=prompts), call="{} back"
        )
        for look, prompts in ((WORD_LOOK, WORD), (PLAIN_LOOK, PLAIN))
    ]
    x = XAxis(title="tokens back from the final one", last=max(curves[0].values, default=1), relative=False)
    title = f"The final token’s attention, {_name(layer, head)}"
    return [lines("heads-positions", title, OF_FINAL, curves, x, share_of_all=False)]


def _values(rows: pl.DataFrame) -> dict[tuple[int, int], Value]:
    columns = rows.select("layer", "head", "mean", "ci_low", "ci_high").iter_rows()
    return {(layer, head): Value(*value) for layer, head, *value in columns}


def _name(layer: int, head: int) -> str:
    return f"L{layer}H{head}"


def _sentences(merging: pl.DataFrame) -> list[str]:
    (place, best), *_ = _values(merging).items()
    words = merging["word_tokens"][0]
    said = [
        f"The strongest sub-word merging head is {_name(*place)}: the last token of a word of {words} tokens attends to the "
        f"word’s other tokens more than a one-token word attends there, by {spoken(best, MERGE)} of its attention."
    ]
    sure = merging.filter(pl.col("p_adjusted") < SURE)
    if not merging["p_adjusted"].is_null().all():
        if sure.is_empty():
            return [f"No sub-word merging heads were found; the strongest is {_name(*place)}, {spoken(best, MERGE)}."]
        said.append(
            f"{len(sure)} of {len(merging)} heads attend more to the word’s own tokens than a one-token word attends there "
            f"(false discovery rate {100 * SURE:.0f}%)."
        )
    return said


def of_a_kind(table: pl.DataFrame, metric: Metric) -> int:
    """How many heads are of a metric's kind, by the test on random tokens, or on text if there is no such test."""
    by_test = TEXT_OF.get(metric, metric)
    scores = table.filter(metric=by_test.name)
    scores = table.filter(metric=metric.name) if scores.is_empty() else scores
    return int((scores["mean"] >= OF_A_KIND).sum())


def kind_of_heads(table: pl.DataFrame, metric: Metric) -> str:
    """A sentence on heads of a kind: how many there are and the strongest, or that there are none."""
    place, value = next(iter(_values(table.filter(metric=metric.name).sort("rank").head(1)).items()))
    name, strongest = metric.title.lower().replace(" ", "-"), f"{_name(*place)}, {spoken(value, metric)}"
    count = of_a_kind(table, metric)
    share = f"{100 * OF_A_KIND:.0f}% of its attention there, on a repeated sequence of random tokens"
    if not count:
        return f"No {name} heads were found: none puts {share}. The strongest is {strongest}."
    found = f"{count} {name} heads were found: each puts" if count > 1 else f"1 {name} head was found: it puts"
    return f"{found} at least {share}. The strongest is {strongest}."


def _strongest(table: pl.DataFrame) -> TextTable:
    """The best heads of every kind, with the value under uniform attention."""
    rows = []
    for metric in (*REPEATED, *NATURAL):
        ranked = table.filter(metric=metric.name).sort("rank").head(LISTED)
        cells: list[str | tuple[str, str]] = [_cell(metric, place, value) for place, value in _values(ranked).items()]
        if cells and not of_a_kind(table, metric):
            name, interval_of = _cell(metric, *next(iter(_values(ranked).items())))
            cells = ["none found", (f"strongest: {name}", interval_of)]
        if cells:
            chance = ranked["chance"][0]
            cells += [""] * (LISTED - len(cells))
            rows.append((metric.title, *cells, "–" if chance is None else f"{100 * chance:.1f}%"))
    return TextTable(
        title="The strongest heads of other kinds",
        head=("", "First", "Second", "Third", "Uniform attention"),
        rows=rows,
    )


def _cell(metric: Metric, place: tuple[int, int], value: Value) -> tuple[str, str]:
    return f"{_name(*place)}  {with_unit(value, metric)}", interval(value, metric)


KIND = Kind(
    name=NAME,
    title="What heads attend to",
    source="Lad et al. 2024, figure 9; Olsson et al. 2022",
    experiment=NAME,
    file=f"tables/{NAME}.parquet",
    build=build,
    look_for="a few heads that stand out from all others, in the early layers; by position, weight on the "
    "word’s own first tokens that other words do not get.",
    more_tables=(POSITIONS,),
)

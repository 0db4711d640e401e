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
    FALSE_DISCOVERIES,
    HEAD_KINDS,
    HEAD_METRICS,
    HEAD_POSITIONS_TABLE,
    HEADS_TABLE,
    INDUCTION,
    INDUCTION_NATURAL,
    KIND_COLUMNS,
    MERGE,
    NATURAL,
    PLAIN,
    PREVIOUS_TOKEN,
    REPEATED,
    TEXT_OF,
    WORD,
)
from depthscope.schema.metric import Metric

NAME, POSITIONS = "heads", "head_positions"
RANKED, LISTED = 10, 3
"""Number of heads in the ranking, and of each other kind in the table."""
SURE = 0.05
PLACES = "L2H5 is head 5 of layer 2, both numbered from 0."
PASSING = (
    "A head passes if its score exceeds what position alone would give it by a least amount, by a t test over documents "
    f"corrected over all heads (false discovery rate {100 * FALSE_DISCOVERIES:.0f}%). By position alone: for previous-token "
    f"heads {HEAD_KINDS[PREVIOUS_TOKEN.name].definition}; for duplicate-token and induction heads on random tokens "
    f"{HEAD_KINDS[INDUCTION.name].definition}; on text {HEAD_KINDS[INDUCTION_NATURAL.name].definition}. The least amount is "
    f"{HEAD_KINDS[INDUCTION.name].reason}. Which heads are of a kind is decided on random tokens, not on text."
)
WORD_LOOK = replace(
    ATTENTION, title="Prompts that end with a word of several tokens", definition="the word’s last token attends"
)
PLAIN_LOOK = replace(CONTROL, title="Prompts that end with a word of one token", definition="the word attends")


def build(run: RunDirectory) -> Section:
    """The strongest merging heads with intervals, a map of all heads, the best head's attention, and the best of each kind."""
    table = read_table(run, NAME, [column for column in HEADS_TABLE if column not in KIND_COLUMNS])
    missing = [pl.lit(None, dtype).alias(name) for name, dtype in KIND_COLUMNS.items() if name not in table.columns]
    table = table.with_columns(missing)
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
        notes=[*([f"Multi-token words have {words} tokens here. {PLACES}"] if words else []), PASSING],
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
    if not merging["p_adjusted"].is_null().all():
        sure = merging.filter(pl.col("p_adjusted") < SURE)
        if sure.is_empty():
            return [f"No sub-word merging heads were found; the strongest is {_name(*place)}, {spoken(best, MERGE)}."]
        said.append(
            f"{len(sure)} of {len(merging)} heads attend more to the word’s own tokens than a one-token word attends there "
            f"(false discovery rate {100 * SURE:.0f}%)."
        )
    count = of_a_kind(merging, MERGE)
    if count is not None:
        heads = "merging head: its difference is" if count == 1 else "merging heads: their differences are"
        said.append(
            f"{count or 'None'} of them {'is a' if count == 1 else 'are'} {heads} reliably {_least(MERGE)} or more."
        )
    return said


def _least(metric: Metric) -> str:
    return f"{100 * HEAD_KINDS[metric.name].least:.0f}%"


def of_a_kind(table: pl.DataFrame, metric: Metric) -> int | None:
    """How many heads are of a metric's kind, by the test on random tokens, or on text if there is no such test.

    None if it was not tested: with one document, and in runs made before the test existed.
    """
    by_test = TEXT_OF.get(metric, metric)
    scores = table.filter(metric=by_test.name)
    tested = (table.filter(metric=metric.name) if scores.is_empty() else scores)["of_kind"]
    return None if tested.is_null().all() else int(tested.sum())


def kind_of_heads(table: pl.DataFrame, metric: Metric) -> str:
    """A sentence on heads of a kind: how many there are and the strongest, or that there are none."""
    rows = table.filter(metric=metric.name).sort("rank")
    place, value = next(iter(_values(rows.head(1)).items()))
    name, strongest = metric.title.lower().replace(" ", "-"), f"{_name(*place)}, {spoken(value, metric)}"
    count = of_a_kind(table, metric)
    if count is None:
        return f"Which heads are {name} heads was not tested in this run. The strongest is {strongest}."
    null = rows["null_mean"][0]
    alone = "" if null is None else f", of which position alone gives {100 * null:.1f}%"
    share = f"{_least(metric)} of its attention more than position alone gives, on a repeated sequence of random tokens"
    if not count:
        return f"No {name} heads were found: none puts there {share}. The strongest is {strongest}{alone}."
    found = (
        f"{count} {name} heads were found: each puts there" if count > 1 else f"1 {name} head was found: it puts there"
    )
    return f"{found} at least {share}. The strongest is {strongest}{alone}."


def _strongest(table: pl.DataFrame) -> TextTable:
    """The best heads of every kind, how many are of it, and the best one's value by position alone and uniformly."""
    rows = []
    for metric in (*REPEATED, *NATURAL):
        all_heads = table.filter(metric=metric.name).sort("rank")
        ranked = all_heads.head(LISTED)
        cells: list[str | tuple[str, str]] = [_cell(metric, place, value) for place, value in _values(ranked).items()]
        count = of_a_kind(table, metric)
        if cells and count == 0:
            name, interval_of = _cell(metric, *next(iter(_values(ranked).items())))
            cells = ["none found", (f"strongest: {name}", interval_of)]
        if cells:
            cells += [""] * (LISTED - len(cells))
            own = "–" if all_heads["of_kind"].is_null().all() else f"{all_heads['of_kind'].sum()} of {len(all_heads)}"
            rows.append((metric.title, *cells, own, _share(ranked["null_mean"][0]), _share(ranked["chance"][0])))
    return TextTable(
        title="The strongest heads of other kinds",
        head=("", "First", "Second", "Third", "Pass", "First by position alone", "Uniform attention"),
        rows=rows,
    )


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"


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

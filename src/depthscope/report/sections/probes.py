"""Probes on prediction and suppression neurons (the paper's figures 10 and 16)."""

from dataclasses import replace

import polars as pl

from depthscope.report.charts import Curve, XAxis, lines, on_one_scale
from depthscope.report.measured import Series, Value, read_table, series, spoken
from depthscope.report.palette import ATTENTION, CHOSEN, CONTROL, MLP, OWN, REFERENCE
from depthscope.report.panels import Panel
from depthscope.report.section import Kind, Section
from depthscope.report.wording import ends
from depthscope.run.store import RunDirectory
from depthscope.schema.probes import (
    ACCURACY,
    BIGRAM,
    BOTH,
    CHOSEN_GROUPS,
    CONTROL_ACCURACY,
    GROUPS,
    LAYER,
    METRICS,
    MODEL_THRESHOLD,
    MODEL_TOP1,
    OVER_BIGRAM,
    OVER_MODEL,
    OVER_RANDOM,
    OVER_SINGLE,
    OVER_UNIGRAM,
    PROBE_NEURONS_TABLE,
    PROBES_TABLE,
    RANDOM,
    SELECTED_BY,
    SELECTIVITY,
    UNIGRAM,
)

NAME, NEURONS = "probes", "probe_neurons"
RANDOM_LOOK = replace(
    CONTROL, title="Random neurons", definition="the same number from the same layers; mean over draws"
)
CONTROL_TASK_LOOK = replace(
    REFERENCE,
    title="Control tasks",
    definition="the same probes, where each last token of a context has a random label",
    dash="longdash",
)
ALONE = "each neuron alone"
LINES = {
    LAYER: replace(MLP, title="Whole layer", definition=GROUPS[LAYER], dash="dash"),
    MODEL_TOP1: replace(
        OWN, title="Model, top-1", definition=GROUPS[MODEL_TOP1], dash="dash", glyph="╌", marker="line-ew"
    ),
    MODEL_THRESHOLD: replace(
        REFERENCE,
        title="Model, probability",
        definition=GROUPS[MODEL_THRESHOLD],
        dash="dot",
        glyph="┈",
        marker="line-ew",
    ),
    UNIGRAM: replace(
        ATTENTION, title="Last token", definition=GROUPS[UNIGRAM], dash="longdash", glyph="╌", marker="line-ew"
    ),
    BIGRAM: replace(
        ATTENTION, title="Last two tokens", definition=GROUPS[BIGRAM], dash="dot", glyph="┈", marker="line-ew"
    ),
}
NGRAMS = ((OVER_UNIGRAM, UNIGRAM, "the last token"), (OVER_BIGRAM, BIGRAM, "the last two tokens"))


def build(run: RunDirectory) -> Section:
    """Accuracy by number of neurons, a panel per group; the model's own accuracy, a whole layer and n-grams as lines."""
    table = read_table(run, NAME, PROBES_TABLE).filter(pl.col("draw").is_null())
    suffix = table["suffix"][0]
    panels = [panel for group in CHOSEN_GROUPS if (panel := _panel(run, table, group))]
    return Section(
        panels=on_one_scale(panels),
        legend=[
            *(replace(look, definition=GROUPS[group]) for group, look in CHOSEN.items()),
            RANDOM_LOOK,
            CONTROL_TASK_LOOK,
            *LINES.values(),
        ],
        sentences=_sentences(table),
        notes=[
            f"The suffix is “{suffix}”; half of the examples have it, so chance accuracy is 50%. Single points are individual "
            "neurons, at their rank.",
            *_how_chosen(run),
        ],
        definitions=list(METRICS.values()),
    )


def _panel(run: RunDirectory, table: pl.DataFrame, group: str) -> Panel | None:
    chosen = series(table, ACCURACY, "k", group=group)
    if not chosen:
        return None
    last = max(chosen)
    curves = [
        Curve(look=RANDOM_LOOK, values=series(table, ACCURACY, "k", group=RANDOM[group]), call="{} random"),
        Curve(
            look=CONTROL_TASK_LOOK,
            values=series(table, CONTROL_ACCURACY, "k", group=group),
            call="{} on control tasks",
        ),
        *(Curve(look=look, values=_level(table, name, last), call=look.title) for name, look in LINES.items()),
        Curve(look=CHOSEN[group], values=chosen, call=f"{group}, {{}}"),
    ]
    if NEURONS in run.tables() and group != BOTH:
        alone = read_table(run, NEURONS, PROBE_NEURONS_TABLE).filter(group=group)
        look = replace(CHOSEN[group], marker=f"{CHOSEN[group].marker}-open", title=ALONE)
        curves.append(
            Curve(look=look, values=series(alone, ACCURACY, "rank"), call="neuron {} alone", points_only=True)
        )
    x = XAxis(title="neurons together", last=last, first=1, relative=False)
    title = f"{CHOSEN[group].title} together" if group == BOTH else CHOSEN[group].title
    return lines(f"probes-{group}", title, ACCURACY, [c for c in curves if c.values], x, share_of_all=False)


def _level(table: pl.DataFrame, group: str, last: int) -> Series:
    """A value that does not depend on the number of neurons, at both ends of the axis."""
    rows = table.filter(metric=ACCURACY.name, group=group).select("mean", "ci_low", "ci_high").rows()
    return {k: Value(*rows[0]) for k in (1, last)} if rows else {}


def _how_chosen(run: RunDirectory) -> list[str]:
    if NEURONS not in run.tables():
        return []
    ways = read_table(run, NEURONS, PROBE_NEURONS_TABLE)["selected_by"].unique(maintain_order=True)
    return [f"Selected neurons: {SELECTED_BY[way]}." for way in ways if way in SELECTED_BY]


def _sentences(table: pl.DataFrame) -> list[str]:
    """The largest ensemble of both groups compared with one neuron, random ones and the model, with intervals."""
    accuracy = series(table, ACCURACY, "k", group=BOTH)
    if not accuracy:
        return []
    k = max(accuracy)
    said = [f"The best {k} of both groups together classify {spoken(accuracy[k], ACCURACY)} of examples correctly."]
    for metric, than in (
        (OVER_SINGLE, "the best one alone"),
        (OVER_RANDOM, "the same number of random neurons"),
        (OVER_MODEL, "the model’s own most likely token"),
    ):
        difference = series(table, metric, "k", group=BOTH).get(k)
        if difference:
            said.append(f"Compared with {than}: {_points(difference)}.")
    return [*said, *_against_ngrams(table, k), *_selectivity(table, k)]


def _against_ngrams(table: pl.DataFrame, k: int) -> list[str]:
    """Whether the ensemble beats each n-gram, which reads no activation."""
    said = []
    for metric, group, what in NGRAMS:
        difference = series(table, metric, "k", group=BOTH).get(k)
        accuracy = series(table, ACCURACY, "k", group=group).get(0)
        if difference is None or accuracy is None:
            continue
        low, high = ends(difference)
        beats = "beat" if low > 0 else "are worse than" if high < 0 else "do not beat"
        said.append(
            f"The {k} neurons {beats} the n-gram baseline that knows only {what} of the context "
            f"({spoken(accuracy, ACCURACY)}): {_points(difference)}."
        )
    return said


def _selectivity(table: pl.DataFrame, k: int) -> list[str]:
    control = series(table, CONTROL_ACCURACY, "k", group=BOTH).get(k)
    difference = series(table, SELECTIVITY, "k", group=BOTH).get(k)
    if control is None or difference is None:
        return []
    return [
        f"On control tasks, where each last token has a random label, the same procedure reaches "
        f"{spoken(control, ACCURACY)}: its selectivity is {_points(difference)}."
    ]


def _points(value: Value) -> str:
    """A difference of shares in percentage points, marked as too close to call if its interval includes 0."""
    mean, low, high = (
        None if end is None else f"{100 * end:+.1f}".replace("-", "−") for end in (value.mean, value.low, value.high)
    )
    if value.low is None or value.high is None:
        return f"{mean} points"
    open_ = ", too close to call" if value.low <= 0 <= value.high else ""
    return f"{mean} points ({low} to {high}){open_}"


KIND = Kind(
    name=NAME,
    title="Do the neurons work as an ensemble?",
    source="Lad et al. 2024, figures 10 and 16",
    experiment=NAME,
    file=f"tables/{NAME}.parquet",
    build=build,
    look_for="how fast accuracy rises with more neurons: neurons that work as an ensemble do better together than the best "
    "one alone, than the same number of random neurons, and than the last tokens of the context, which need no network.",
    more_tables=(NEURONS,),
)

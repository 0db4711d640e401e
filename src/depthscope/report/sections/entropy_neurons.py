"""Entropy neurons, causally: what candidates and random neurons do, directly and through the scale of the final norm."""

from dataclasses import replace

import polars as pl

from depthscope.report.charts import ranking, scatter
from depthscope.report.measured import Value, interval, number, read_table, spoken, with_unit
from depthscope.report.palette import CONTROL as CONTROL_LOOK
from depthscope.report.palette import MLP, OWN, REFERENCE
from depthscope.report.panels import Hover, Panel, Points
from depthscope.report.section import Kind, Section, TextTable
from depthscope.report.wording import counted_units
from depthscope.run.store import RunDirectory
from depthscope.schema.entropy_neurons import (
    BEST,
    CANDIDATE,
    CONTROL,
    DIFFERENCE,
    ENTROPY_DIRECT,
    ENTROPY_NEURONS_BEST_TABLE,
    ENTROPY_NEURONS_GROUPS_TABLE,
    ENTROPY_NEURONS_TABLE,
    ENTROPY_TOTAL,
    GROUPS,
    HIGHEST,
    LOSS_DIRECT_SIZE,
    LOSS_TOTAL_SIZE,
    MEDIATED_SHARE,
    METRICS,
    NAME,
    NEURON_GROUPS,
    SHARES,
)
from depthscope.schema.metric import Metric
from depthscope.schema.neurons import ENTROPY

LOOKS = {
    CANDIDATE: replace(MLP, title="Candidates", definition=NEURON_GROUPS[CANDIDATE]),
    CONTROL: replace(CONTROL_LOOK, title="Random neurons", definition=NEURON_GROUPS[CONTROL]),
}
DIRECT_LOOK = replace(OWN, title="Norm frozen", definition="the direct effect: the final norm keeps its scale")
EQUAL = replace(REFERENCE, title="Direct = total", definition="where nothing is mediated by the final norm’s scale")
MOST_SHOWN = 12
"""Neurons of a group in the panels that name them, in the order of their ranks."""
HEIGHT = 440
HEAD = ("neurons", "how many", "mediated share of the loss effect", "of the entropy effect")


def build(run: RunDirectory) -> Section:
    """Total against direct effects, the entropy change of each candidate, and the mediated share of each neuron."""
    table = read_table(run, NAME, ENTROPY_NEURONS_TABLE).filter(pl.col("group").is_in([*NEURON_GROUPS]))
    groups = read_table(run, GROUPS, ENTROPY_NEURONS_GROUPS_TABLE)
    best = read_table(run, BEST, ENTROPY_NEURONS_BEST_TABLE)
    units = counted_units(run.manifest.text, int(table["documents"].max() or 0))  # type: ignore[arg-type]
    return Section(
        panels=[_total_and_direct(table), _entropy(table), _shares(table)],
        legend=[*LOOKS.values(), DIRECT_LOOK, EQUAL],
        sentences=[*_share_sentences(groups), *_kind_sentences(table), *_best_sentences(best)],
        notes=[
            f"Over {units}. L11N5 is neuron 5 of layer 11, both numbered from 0. Each neuron is set to its mean over a fixed "
            "reference text, alone. Direct: with the final norm’s scale kept, position by position, as it is in the unmodified "
            "model; a LayerNorm still takes the mean out.",
            "Shares compare mean magnitudes over tokens, as in the source: effects of both signs would cancel. Below 0, the "
            "direct effect is the larger: the norm damps it. Intervals are those of each value alone, but for the most extreme "
            f"candidates’. Those of {LOOKS[CONTROL].title.lower()} are over documents, for the neurons that were drawn.",
        ],
        tables=[TextTable(title="Mediated by the final norm’s scale", head=HEAD, rows=group_rows(groups), words=True)],
        definitions=METRICS,
    )


def _called(layer: int, neuron: int) -> str:
    return f"L{layer}N{neuron}"


def _values(table: pl.DataFrame, group: str, metric: Metric) -> dict[str, Value]:
    """By name, in the order of ranks."""
    rows = table.filter(pl.col("group") == group, pl.col("metric") == metric.name, pl.col("mean").is_not_null())
    columns = rows.sort("rank").select("layer", "neuron", "mean", "ci_low", "ci_high")
    return {_called(layer, neuron): Value(*value) for layer, neuron, *value in columns.iter_rows()}


def _total_and_direct(table: pl.DataFrame) -> Panel:
    metrics = (LOSS_TOTAL_SIZE, LOSS_DIRECT_SIZE)
    panels, means = [], []
    for group, look in LOOKS.items():
        total, direct = (_values(table, group, metric) for metric in metrics)
        points = [(name, total[name], direct[name]) for name in total if name in direct and total[name].mean > 0]
        panels.append(scatter(f"{NAME}-effects", "Effect on the loss: direct against total", metrics, look, points))
        means += [value.mean for _, *both in points for value in both if value.mean > 0]
    ends = (min(means), max(means)) if means else (1e-3, 1e-2)
    equal = Points(
        name=EQUAL.title,
        look=EQUAL,
        x=tuple(Value(end) for end in ends),
        y=tuple(Value(end) for end in ends),
        hover=tuple(Hover(EQUAL.title) for _ in ends),
        size=0.1,
    )
    return replace(panels[0], height=HEIGHT, marks=(equal, *(mark for panel in panels for mark in panel.marks)))


def _entropy(table: pl.DataFrame) -> Panel:
    """The entropy change of every candidate, with the norm live and frozen."""
    total, direct = (
        list(_values(table, CANDIDATE, metric).items())[:MOST_SHOWN] for metric in (ENTROPY_TOTAL, ENTROPY_DIRECT)
    )
    title = "Candidates: change of the entropy"
    panels = [
        ranking(f"{NAME}-entropy", title, metric, look, values, height=HEIGHT)
        for metric, look, values in ((ENTROPY_TOTAL, LOOKS[CANDIDATE], total), (ENTROPY_DIRECT, DIRECT_LOOK, direct))
    ]
    return replace(panels[0], marks=(*panels[0].marks, *panels[1].marks), unit=ENTROPY_TOTAL.unit)


def _shares(table: pl.DataFrame) -> Panel:
    title = "Mediated share of the loss effect"
    panels = [
        ranking(f"{NAME}-shares", title, MEDIATED_SHARE, look, values[:MOST_SHOWN], height=HEIGHT)
        for group, look in LOOKS.items()
        for values in [list(_values(table, group, MEDIATED_SHARE).items())]
    ]
    return replace(panels[0], marks=tuple(mark for panel in panels for mark in panel.marks))


def _group_value(groups: pl.DataFrame, group: str, metric: Metric) -> Value | None:
    rows = groups.filter(pl.col("group") == group, pl.col("metric") == metric.name, pl.col("mean").is_not_null())
    return Value(*rows.select("mean", "ci_low", "ci_high").row(0)) if len(rows) else None


def group_rows(groups: pl.DataFrame) -> list[tuple[str, ...]]:
    """The rows of HEAD: the mediated shares as text, for page and terminal."""
    titles = {CANDIDATE: "candidates", CONTROL: "random", DIFFERENCE: "difference"}
    rows = []
    for group, title in titles.items():
        values = [_group_value(groups, group, metric) for metric in SHARES]
        if any(values):
            count = groups.filter(pl.col("group") == group)["neurons"][0]
            texts = [
                "–" if value is None else f"{number(value.mean, metric)}% ({interval(value, metric)})"
                for value, metric in zip(values, SHARES, strict=True)
            ]
            rows.append((title, f"{count}", *texts))
    return rows


def _share_sentences(groups: pl.DataFrame) -> list[str]:
    said = []
    for metric, effect in zip(SHARES, ("loss", "entropy"), strict=True):
        own, control, apart = (_group_value(groups, group, metric) for group in (CANDIDATE, CONTROL, DIFFERENCE))
        if own is None or control is None:
            continue
        verdict = ""
        if apart is not None and apart.low is not None and apart.high is not None:
            by = f"{number(apart.mean, metric)} points ({interval(apart, metric)})"
            verdict = f", a difference of {by}"
            verdict += ", so none is shown" if apart.low <= 0 <= apart.high else ""
        said.append(
            f"The final norm’s scale mediates {spoken(own, metric)} of the effect on the {effect} in the candidates and "
            f"{spoken(control, metric)} in random neurons of the same layers{verdict}."
        )
    return said


def _kind_sentences(table: pl.DataFrame) -> list[str]:
    kinds = table.filter(pl.col("group") == CANDIDATE).unique(["layer", "neuron"])["kind"]
    count = int((kinds == ENTROPY.name).sum())
    if count == len(kinds):
        return []
    some, others = (f"only {count}", "the others") if count else ("none", "they")
    return [
        f"Of the {len(kinds)} candidates {some} {'are' if count > 1 else 'is'} of the kind “entropy” by the thresholds of the "
        f"experiment “neurons”; {others} are only those most like it."
    ]


def _best_sentences(best: pl.DataFrame) -> list[str]:
    said: list[str] = []
    changes: list[str] = []
    for one in best.filter(pl.col("mean").is_not_null()).iter_rows(named=True):
        value, where = Value(one["mean"], one["ci_low"], one["ci_high"]), _called(one["layer"], one["neuron"])
        if one["metric"] == LOSS_TOTAL_SIZE.name:
            said.append(
                f"Of {one['measured']} candidates, {where} changes the loss the most, by {spoken(value, LOSS_TOTAL_SIZE)} "
                "per token in either direction."
            )
        elif one["metric"] == ENTROPY_TOTAL.name and value.low is not None and value.high is not None:
            clear = value.low > 0 if one["extreme"] == HIGHEST else value.high < 0
            if clear:
                verb = "raises" if one["extreme"] == HIGHEST else "lowers"
                size = with_unit(Value(abs(value.mean)), ENTROPY_TOTAL)
                low, high = sorted((abs(value.low), abs(value.high)))
                ends = interval(Value(abs(value.mean), low, high), ENTROPY_TOTAL)
                changes.append(f"Ablating {where} {verb} the entropy the most, by {size} ({ends}).")
    known = best.filter(pl.col("metric") == ENTROPY_TOTAL.name)["ci_low"].is_not_null().any()
    neither = "The candidates with the lowest and the highest mean change of the entropy are not shown to change it."
    return [*said, *(changes or ([neither] if known else []))]


KIND = Kind(
    name=NAME,
    title="Entropy neurons: direct or through the final norm",
    source="Stolfo et al. 2024, figure 2",
    experiment=NAME,
    file=f"tables/{NAME}.parquet",
    build=build,
    look_for="candidates far below the diagonal, whose effect goes away with the scale frozen: entropy neurons act through the "
    "final norm, random neurons lie on the diagonal.",
    more_tables=(GROUPS, BEST),
)

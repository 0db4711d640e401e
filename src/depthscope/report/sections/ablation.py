"""Heads and neurons ablated one at a time: what each does, and how it adds up to what its layer's component does."""

from collections.abc import Sequence
from dataclasses import replace

import polars as pl

from depthscope.report.charts import Curve, heat, layers, lines, ranking
from depthscope.report.measured import Value, interval, number, read_table, series, spoken
from depthscope.report.palette import ATTENTION, CONTROL, MLP, OWN, Look
from depthscope.report.panels import Panel
from depthscope.report.section import Kind, Section, TextTable
from depthscope.report.wording import counted_units
from depthscope.routes import HEAD, MODES
from depthscope.run.store import RunDirectory
from depthscope.schema.ablation import (
    ABLATION_LAYERS_TABLE,
    APART,
    BEST,
    COMPONENT,
    HEADS,
    HIGHEST,
    INTERACTION,
    KINDS,
    LAYER_METRICS,
    LAYERS,
    LOSS_CHANGE,
    METRICS,
    MODE_TITLES,
    NEURONS,
    SHARE,
    TOGETHER,
    best_columns_of,
    columns_of,
)
from depthscope.schema.measures import KL

RANKED = 10
"""Neurons in the ranking of each mode."""
MOST_OF_LAYER = 0.5
"""A head that makes up more of its layer than this, interval included, is named."""
BY_NAME = {metric.name: metric for metric in METRICS}


def build_of(name: str, run: RunDirectory) -> Section:
    """A map of all heads (or the neurons that matter most) of every mode, the sums by layer, and the best and worst."""
    kind = KINDS[name]
    table = read_table(run, name, columns_of(kind)).filter(pl.col("mode").is_in([*MODES]))
    by_layer = read_table(run, name + LAYERS, ABLATION_LAYERS_TABLE).filter(pl.col("mode").is_in([*MODES]))
    best = read_table(run, name + BEST, best_columns_of(kind))
    depth = max(int(table["layer"].max() or 0) + 1, run.manifest.model.layers or 1)  # type: ignore[arg-type]
    modes = [mode for mode in MODES if mode in set(table["mode"])]
    looks = _looks(kind)
    panels = [_of_mode(name, table, mode, depth) for mode in modes]
    panels += [_of_layers(name, by_layer, mode, depth, looks) for mode in modes]
    units = counted_units(run.manifest.text, int(table["documents"].max() or 0))  # type: ignore[arg-type]
    letter = "H" if kind == HEAD else "N"
    candidates = "" if kind == HEAD else " Only the neurons of each layer that write the most were ablated."
    return Section(
        panels=panels,
        legend=looks,
        sentences=[*_best_sentences(best, kind), *_layer_sentences(table, by_layer, kind, modes)],
        notes=[
            f"Over {units}. L2{letter}5 is {kind} 5 of layer 2, both numbered from 0.{candidates}",
            "Zero ablation keeps the bias of the output projection, so all heads together are not the attention dropped where "
            "there is a bias. Means and other documents’ values are from a fixed reference text. Intervals are those of each "
            f"value alone, but for the best and worst, whose intervals cover all {kind}s of a mode at once, because the most "
            "extreme of many looks more extreme than it is.",
        ],
        missing=[f"{title} was not part of this run." for mode, title in MODE_TITLES.items() if mode not in modes],
        tables=[
            TextTable(
                title="Best and worst (intervals of all at once)", head=BEST_HEAD, rows=best_rows(best), words=True
            )
        ],
        definitions=[*METRICS, *LAYER_METRICS],
        across=2,
    )


def _looks(kind: str) -> tuple[Look, Look, Look]:
    of_kind = ATTENTION if kind == HEAD else MLP
    return (
        replace(CONTROL, title=APART.title, definition=APART.definition),
        replace(of_kind, title=TOGETHER.title, definition=TOGETHER.definition),
        replace(OWN, title=COMPONENT.title, definition=COMPONENT.definition),
    )


def called(kind: str, layer: int, index: int) -> str:
    """`L2H5` or `L2N130`."""
    return f"L{layer}{'H' if kind == HEAD else 'N'}{index}"


def _of_mode(name: str, table: pl.DataFrame, mode: str, depth: int) -> Panel:
    kind = KINDS[name]
    rows = table.filter(pl.col("mode") == mode, pl.col("metric") == KL.name, pl.col("mean").is_not_null())
    found = rows.select("layer", kind, "mean", "ci_low", "ci_high").iter_rows()
    values = {(index, layer): Value(*value) for layer, index, *value in found if layer >= 0 and index >= 0}
    if kind == HEAD:
        shape = (max((head for head, _ in values), default=0) + 1, depth)
        title = f"{MODE_TITLES[mode]}: KL of every head"
        return heat(f"{name}-{mode}", title, KL, values, shape, ("head", "layer"), ATTENTION)
    largest = sorted(values.items(), key=lambda item: -item[1].mean)[:RANKED]
    named = [(called(kind, layer, index), value) for (index, layer), value in largest]
    return ranking(f"{name}-{mode}", f"{MODE_TITLES[mode]}: the neurons that matter most", KL, MLP, named)


def _of_layers(name: str, by_layer: pl.DataFrame, mode: str, depth: int, looks: Sequence[Look]) -> Panel:
    curves = [
        Curve(look=look, values=values, call=f"{metric.title}, layer {{}}")
        for look, metric in zip(looks, (APART, TOGETHER, COMPONENT), strict=True)
        if (values := series(by_layer, metric, mode=mode))
    ]
    return lines(f"{name}-layers-{mode}", f"{MODE_TITLES[mode]}: KL by layer", KL, curves, layers(depth), log=True)


BEST_HEAD = ("ablation", "best or worst", "where", "value (95% interval)")


def best_rows(best: pl.DataFrame) -> list[tuple[str, ...]]:
    """The rows of BEST_HEAD: the best and worst as text, for page and terminal."""
    kind = next((kind for kind in KINDS.values() if kind in best.columns), HEAD)
    rows = []
    for one in best.filter(pl.col("mean").is_not_null()).iter_rows(named=True):
        if one["mode"] not in MODES or one["metric"] not in BY_NAME:
            continue
        metric, value = BY_NAME[one["metric"]], Value(one["mean"], one["ci_low"], one["ci_high"])
        rows.append(
            (
                one["mode"],
                f"{one['extreme']} {'KL' if metric is KL else 'loss change'}",
                called(kind, one["layer"], one[kind]),
                number(value.mean, metric) + (f" ({interval(value, metric)})" if value.has_interval else ""),
            )
        )
    return rows


def _best_sentences(best: pl.DataFrame, kind: str) -> list[str]:
    said = []
    for one in best.filter(pl.col("mean").is_not_null()).iter_rows(named=True):
        if one["mode"] not in MODES:
            continue
        value, where = Value(one["mean"], one["ci_low"], one["ci_high"]), called(kind, one["layer"], one[kind])
        ablation, many = MODE_TITLES[one["mode"]], f"{one['measured']:,} {kind}s"
        if one["metric"] == KL.name and one["extreme"] == HIGHEST:
            said.append(f"{ablation}: of {many}, {where} matters the most, KL {spoken(value, KL)}.")
        elif one["metric"] == LOSS_CHANGE.name:
            lowers = value.high is not None and value.high < 0
            said.append(
                f"{ablation} of {where} lowers the loss, by {_lowered(value)}, the most of {many}."
                if lowers
                else f"{ablation} of no {kind} is shown to lower the loss: the best of {many}, {where}, changes it by "
                f"{spoken(value, LOSS_CHANGE)}."
            )
    return said


def _lowered(value: Value) -> str:
    """A change below 0 as the amount that it lowers something."""
    low, high = (None if end is None else -end for end in (value.high, value.low))
    return spoken(Value(-value.mean, low, high), LOSS_CHANGE)


def _layer_sentences(table: pl.DataFrame, by_layer: pl.DataFrame, kind: str, modes: Sequence[str]) -> list[str]:
    said = []
    for mode in modes:
        found = series(by_layer, INTERACTION, mode=mode)
        known = {layer: value for layer, value in found.items() if value.has_interval}
        if known:
            more = sum(value.low > 0 for value in known.values() if value.low is not None)
            less = sum(value.high < 0 for value in known.values() if value.high is not None)
            rest = "; in the others neither is shown" if more + less < len(known) else ""
            what = "heads" if kind == HEAD else "candidates"
            said.append(
                f"{MODE_TITLES[mode]}: in {more} of {len(known)} layers the {what} cost more together than the sum of each "
                f"alone (they stand in for each other), in {less or 'none'} less{rest}."
            )
        if large := _large(table, kind, mode):
            of = "a layer’s sum" if kind == HEAD else "the sum of a layer’s candidates"
            said.append(f"{MODE_TITLES[mode]}: most of {of} is due to one {kind} at {large}.")
    return said


def _large(table: pl.DataFrame, kind: str, mode: str) -> str:
    """The heads that make up more than MOST_OF_LAYER of their layer, interval included."""
    several = pl.len().over("layer") > 1
    rows = table.filter(pl.col("mode") == mode, pl.col("metric") == SHARE.name).filter(several)
    rows = rows.filter(pl.col("ci_low") > MOST_OF_LAYER).sort("mean", descending=True)
    named = [
        f"{called(kind, layer, index)}, {spoken(Value(*value), SHARE)}"
        for layer, index, *value in rows.select("layer", kind, "mean", "ci_low", "ci_high").iter_rows()
    ]
    return "; ".join(named)


def _kind(name: str, title: str, source: str, look_for: str) -> Kind:
    return Kind(
        name=name,
        title=title,
        source=source,
        experiment=name,
        file=f"tables/{name}.parquet",
        build=lambda run: build_of(name, run),
        look_for=look_for,
        more_tables=(name + LAYERS, name + BEST),
    )


HEAD_KIND = _kind(
    HEADS,
    "Every attention head ablated",
    "Michel et al. 2019 (zero), Wang et al. 2022 (mean), Chan et al. 2022 (resample)",
    "a few dark cells in each layer, and how far the sum of the heads one by one is from the attention dropped: where it is "
    "far below, heads stand in for each other.",
)
NEURON_KIND = _kind(
    NEURONS,
    "MLP neurons ablated",
    "Michel et al. 2019, for neurons",
    "single neurons that cost far more than the others, and how little of what dropping the MLP costs the candidates make up.",
)

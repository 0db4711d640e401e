"""Prediction, suppression, partition and entropy neurons by layer (the paper's figures 6 and 16), and the strongest."""

from dataclasses import replace
from typing import Any

import polars as pl

from depthscope.report.charts import Curve, XAxis, layers, lines, with_y
from depthscope.report.measured import Series, Value, depth_of, number, ranked, read_table
from depthscope.report.palette import NEURONS, OWN
from depthscope.report.panels import Panel
from depthscope.report.section import Kind, Section, TextTable
from depthscope.run.store import RunDirectory
from depthscope.schema.metric import Metric
from depthscope.schema.neurons import CLASS_SHARE, KINDS, KURTOSIS, NEURON_COUNTS_TABLE, NEURON_TOKENS_TABLE, PEAKED

NAME, COUNTS, TOKENS = "neurons", "neuron_counts", "neuron_tokens"
COUNT = Metric("count", "neurons", "Neurons", "neurons of the layer’s MLP that are of the kind", 0.0)
FEW = 8
"""Largest count for which every integer gets a tick."""
LISTED, SHOWN_TOKENS = 5, 5
"""Neurons per kind, and tokens per neuron, shown on the page; the table holds more."""


def build(run: RunDirectory) -> Section:
    """Neuron counts by kind and layer, the largest kurtosis of each layer, and the strongest neurons with their tokens."""
    table = read_table(run, COUNTS, NEURON_COUNTS_TABLE)
    x = layers(depth_of(run.manifest, max(table["layer"]) + 1))
    threshold = float(run.settings.of(NAME).get("kurtosis", PEAKED))
    return Section(
        panels=[
            count_panel(run, "neurons-tokens", ("prediction", "suppression"), x, "Prediction and suppression"),
            count_panel(run, "neurons-others", ("partition", "entropy"), x, "Partition and entropy"),
            _kurtosis(table, x, threshold),
        ],
        legend=list(NEURONS.values()),
        sentences=_sentences(table, x.last, threshold),
        tables=_strongest(run),
        notes=["These numbers are computed from the weights alone, so they have no intervals.", *_experts(run)],
        definitions=[KURTOSIS, CLASS_SHARE],
    )


def _experts(run: RunDirectory) -> list[str]:
    """How neurons of experts are counted and numbered, for a mixture of experts."""
    found = run.manifest.neurons
    if found is None or found.experts is None or found.neurons_of_an_expert is None:
        return []
    each, shared = found.neurons_of_an_expert, found.neurons_of_shared_experts
    then = f", then {shared:,} of shared experts, which process every token" if shared else ""
    return [
        f"Every neuron of every expert is counted: a layer has {found.experts} routed experts of {each:,} neurons, in order"
        f"{then}; neuron n of the routed ones is neuron n mod {each:,} of expert ⌊n / {each:,}⌋. Each token uses only "
        "a few of the routed experts."
    ]


def counts(table: pl.DataFrame, kind: str) -> Series:
    """Neurons of a kind by layer."""
    rows = table.filter(kind=kind).sort("layer").select("layer", "count").iter_rows()
    return {layer: Value(float(count)) for layer, count in rows}


def count_panel(run: RunDirectory, name: str, kinds: tuple[str, ...], x: XAxis, title: str) -> Panel:
    """Counts of neurons of some kinds by layer. Raises RunError if they were not counted."""
    table = read_table(run, COUNTS, NEURON_COUNTS_TABLE)
    curves = [
        Curve(look=NEURONS[kind], values=counts(table, kind), call=f"layer {{}}, {kind}", title=NEURONS[kind].title)
        for kind in kinds
    ]
    panel = lines(name, title, replace(COUNT, unit="count"), curves, x)
    return with_y(panel, **_room(curves))


def _room(curves: list[Curve]) -> dict[str, Any]:
    """Integer ticks and a range for small counts; by default, an axis of zeros would be centred in its panel."""
    most = max((value.mean for curve in curves for value in curve.values.values()), default=0)
    return {"range": (-0.2, max(most, 3) * 1.05), "step": 1.0} if most <= FEW else {}


def _kurtosis(table: pl.DataFrame, x: XAxis, threshold: float) -> Panel:
    rows = table.filter(pl.col("largest_kurtosis").is_not_null()).unique("layer").sort("layer")
    values = {layer: Value(largest) for layer, largest in rows.select("layer", "largest_kurtosis").iter_rows()}
    curve = Curve(look=OWN, values=values, call="layer {}")
    return lines(
        "neurons-kurtosis", "Largest kurtosis", KURTOSIS, [curve], x, levels=[(threshold, f"{threshold:g}")], unit=""
    )


def _sentences(table: pl.DataFrame, last: int, threshold: float) -> list[str]:
    said = []
    for kind in ("prediction", "suppression"):
        found = counts(table, kind)
        total = sum(int(value.mean) for value in found.values())
        neurons = table.unique("layer")["neurons"].sum()
        if total == 0:
            most = table.sort("largest_kurtosis", descending=True, nulls_last=True).row(0, named=True)
            kurtosis = most["largest_kurtosis"]
            short = kurtosis is not None and kurtosis <= threshold
            largest = f"; the largest kurtosis is {kurtosis:.1f}, in layer {most['layer']}" if short else ""
            said.append(f"No {kind} neurons (kurtosis above {threshold:g}) among {neurons:,}{largest}.")
            continue
        peak = ranked(found)[0]
        share = f" ({100 * peak / last:.0f}% of the depth)" if last else ""
        said.append(
            f"{total} {kind} neuron{'s' if total > 1 else ''} among {neurons:,}; the most, {found[peak].mean:.0f}, in layer "
            f"{peak}{share}."
        )
    return said


def _strongest(run: RunDirectory) -> list[TextTable]:
    """The strongest neurons of each kind with the tokens they promote and suppress most."""
    if TOKENS not in run.tables():
        return []
    table = read_table(run, TOKENS, NEURON_TOKENS_TABLE)
    rows = []
    for kind in ("prediction", "suppression", "entropy", "partition"):
        for row in table.filter(kind=kind).head(LISTED).iter_rows(named=True):
            rows.append(
                (
                    f"L{row['layer']}.{row['neuron']}",
                    f"{kind}, {KINDS[kind].strength} {number(row['strength'], KURTOSIS)}",
                    " · ".join(row["promoted"][:SHOWN_TOKENS]),
                    " · ".join(row["suppressed"][:SHOWN_TOKENS]),
                    _class(row),
                )
            )
    head = ("Neuron", "Kind", "Promotes most", "Suppresses most", "Tokens it separates")
    return [TextTable(title="The strongest neurons", head=head, rows=rows, words=True)] if rows else []


def _class(row: dict) -> str:
    share = row[CLASS_SHARE.name]
    if row["token_class"] is None or share is None:
        return "–"
    return f"{row['token_class']} ({100 * share:.0f}% of variance)"


KIND = Kind(
    name=NAME,
    title="Prediction and suppression neurons",
    source="Lad et al. 2024, figures 6 and 16; Gurnee et al. 2024",
    experiment=NAME,
    file=f"tables/{COUNTS}.parquet",
    build=build,
    look_for="prediction neurons that appear past the middle and peak near 85% of the depth, and suppression neurons that "
    "overtake them in the last layers.",
    more_tables=(TOKENS,),
)

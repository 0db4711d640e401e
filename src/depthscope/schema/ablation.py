"""Ablation of single attention heads and MLP neurons: what each does for the predictions, and how it adds up in a layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from depthscope.errors import DepthscopeError
from depthscope.printable import shown
from depthscope.routes import HEAD, MEAN, MODES, NEURON, RESAMPLE, ZERO
from depthscope.schema.declaration import Experiment, Option, Table
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.measures import AGREEMENT, KL, LOSS, metrics_of
from depthscope.schema.metric import Metric

HEADS, NEURONS = "head_ablation", "neuron_ablation"
"""The experiments, and their first tables."""
LAYERS, BEST = "_layers", "_best"
"""After an experiment's name: its other tables."""
KINDS = {HEADS: HEAD, NEURONS: NEURON}

MEASURED = (KL, AGREEMENT, LOSS)
"""What is measured per token."""
LOSS_CHANGE = metrics_of([LOSS])["loss_change"]
SHARE = Metric(
    "layer_share",
    "share",
    "Share of its layer",
    "the KL of this one ablated, as a share of the sum of the KLs of all of its layer that are measured, each ablated alone",
    0.0,
    1.0,
)
METRICS = (KL, AGREEMENT, LOSS_CHANGE, SHARE)
APART = Metric(
    "kl_apart",
    "nats",
    "One by one",
    "the sum of the KLs of a layer’s heads (or measured neurons), each ablated alone",
    0.0,
)
TOGETHER = Metric("kl_together", "nats", "All together", "the KL with all of them ablated at once", 0.0)
INTERACTION = Metric(
    "kl_interaction",
    "nats",
    "Together minus one by one",
    "the KL of all together minus the sum of the KLs one by one: above 0, they stand in for each other, and what each does "
    "alone understates what they do; below 0, their effects overlap or cancel",
)
COMPONENT = Metric(
    "kl_component",
    "nats",
    "Component dropped",
    "the KL with the whole attention (or MLP) dropped, all heads or neurons and the bias of the output projection",
    0.0,
)
LAYER_METRICS = (APART, TOGETHER, INTERACTION, COMPONENT)

LOWEST, HIGHEST = "lowest", "highest"


@dataclass(frozen=True, slots=True)
class Extreme:
    """What is reported as best or worst of a mode: the lowest or the highest of a metric over all layers."""

    metric: Metric
    extreme: str


EXTREMES = (Extreme(KL, HIGHEST), Extreme(KL, LOWEST), Extreme(LOSS_CHANGE, LOWEST))

MODE_TITLES = {ZERO: "Zero ablation", MEAN: "Mean ablation", RESAMPLE: "Resample ablation"}


def columns_of(kind: str) -> dict[str, Any]:
    """The columns of the table of heads or neurons."""
    ranked = {"rank": pl.Int32} if kind == NEURON else {}
    return {"layer": pl.Int32, kind: pl.Int32, "mode": pl.String, **ranked, **ESTIMATE}


def best_columns_of(kind: str) -> dict[str, Any]:
    """The columns of the table of best and worst heads or neurons."""
    keys = {"mode": pl.String, "extreme": pl.String, "layer": pl.Int32, kind: pl.Int32}
    return {**keys, **ESTIMATE, "measured": pl.Int64}


HEAD_ABLATION_TABLE = columns_of(HEAD)
"""tables/head_ablation.parquet: every head ablated alone. Each interval is that of its head alone."""
NEURON_ABLATION_TABLE = columns_of(NEURON)
"""tables/neuron_ablation.parquet: every candidate ablated alone. Each interval is that of its neuron alone."""
HEAD_ABLATION_BEST_TABLE = best_columns_of(HEAD)
"""tables/head_ablation_best.parquet: the best and worst of each mode. Intervals cover all heads of the mode at once, so they
hold although one was picked."""
NEURON_ABLATION_BEST_TABLE = best_columns_of(NEURON)
"""tables/neuron_ablation_best.parquet: as head_ablation_best, of the candidates."""
ABLATION_LAYERS_TABLE = {"layer": pl.Int32, "mode": pl.String, **ESTIMATE}
"""tables/head_ablation_layers.parquet and tables/neuron_ablation_layers.parquet."""


def _check_modes(modes: Sequence[str]) -> None:
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown or not modes:
        named = ", ".join(map(shown, unknown)) or "(none given)"
        raise DepthscopeError(f"unknown ablation {named}: expected some of {', '.join(MODES)}")


MOST_TOP_NEURONS = 1024


def _check_top(top: int) -> None:
    if not 1 <= top <= MOST_TOP_NEURONS:
        raise DepthscopeError(f"{shown(top)} neurons of each layer: expected 1 to {MOST_TOP_NEURONS:,}")


ABLATION = Option(
    name="ablation",
    type=tuple,
    default=(ZERO, MEAN),
    help="What an ablated head or neuron gives instead, separated by commas: zero, mean (over a fixed reference text) or "
    "resample (what it gave at the same position of another document).",
    shown_default="zero,mean",
    check=_check_modes,
)
TOP_NEURONS = Option(
    name="top_neurons",
    type=int,
    default=8,
    help="How many neurons of each layer are ablated: those that write the most, by the size of the output weight times the "
    "root mean square of the activation on the reference text.",
    check=_check_top,
)


def _tables(name: str, part: Mapping[str, Any], best: Mapping[str, Any]) -> dict[str, Table]:
    return {
        name: Table(columns=part, metrics=METRICS),
        name + LAYERS: Table(columns=ABLATION_LAYERS_TABLE, metrics=LAYER_METRICS),
        name + BEST: Table(columns=best, metrics=METRICS),
    }


HEAD_ABLATION = Experiment(
    name=HEADS,
    title="Ablate every attention head of every layer, one at a time.",
    question="What does each attention head do for the predictions, and do the heads of a layer add up to what its attention "
    "does? Every head is ablated alone, and all heads of a layer together.",
    make="depthscope.experiments.ablation:make_heads",
    tables=_tables(HEADS, HEAD_ABLATION_TABLE, HEAD_ABLATION_BEST_TABLE),
    options=(ABLATION,),
    source="Michel et al. 2019 (zero), Wang et al. 2022 (mean), Chan et al. 2022 (resample)",
    in_study=False,
    deep=True,
)
NEURON_ABLATION = Experiment(
    name=NEURONS,
    title="Ablate the MLP neurons that write the most, one at a time.",
    question="What do the MLP neurons that write the most do for the predictions, and how much of what a layer’s MLP does "
    "comes from them? Each candidate is ablated alone, and all candidates of a layer together.",
    make="depthscope.experiments.ablation:make_neurons",
    tables=_tables(NEURONS, NEURON_ABLATION_TABLE, NEURON_ABLATION_BEST_TABLE),
    options=(ABLATION, TOP_NEURONS),
    source="Michel et al. 2019, for neurons",
    in_study=False,
    deep=True,
)

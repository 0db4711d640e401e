"""Entropy neurons, causally: candidates mean-ablated with the final norm live, and with its scale frozen."""

from dataclasses import dataclass

import polars as pl

from depthscope.errors import DepthscopeError
from depthscope.printable import shown
from depthscope.schema.declaration import Experiment, Option, Table
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.metric import Metric

NAME = "entropy_neurons"
GROUPS, BEST = f"{NAME}_groups", f"{NAME}_best"
"""Its other tables."""

CANDIDATE, CONTROL, DIFFERENCE = "candidate", "control", "difference"
NEURON_GROUPS = {
    CANDIDATE: "the neurons with the longest output weights that distinguish tokens the least: largest norm_z − effect_z",
    CONTROL: "as many neurons of the same layers, drawn at random with a fixed seed",
}
"""The neurons that are ablated."""


def _metric(name: str, title: str, definition: str, lowest: float | None = None) -> Metric:
    return Metric(name, "nats", title, definition, lowest)


LOSS_TOTAL = _metric(
    "loss_total", "Loss, total effect", "change of the loss with the neuron mean-ablated and the final norm live"
)
LOSS_DIRECT = _metric(
    "loss_direct",
    "Loss, direct effect",
    "the same with the final norm’s scale frozen at the unmodified model’s, position by position",
)
LOSS_MEDIATED = _metric("loss_mediated", "Loss, mediated by the norm", "total minus direct")
ENTROPY_TOTAL = _metric(
    "entropy_total",
    "Entropy, total effect",
    "change of the entropy of the next-token distribution with the neuron mean-ablated and the final norm live",
)
ENTROPY_DIRECT = _metric("entropy_direct", "Entropy, direct effect", "the same with the final norm’s scale frozen")
ENTROPY_MEDIATED = _metric("entropy_mediated", "Entropy, mediated by the norm", "total minus direct")
LOSS_TOTAL_SIZE = _metric(
    "loss_total_size", "Loss, size of the total effect", "mean over tokens of the magnitude of the total effect", 0.0
)
LOSS_DIRECT_SIZE = _metric(
    "loss_direct_size", "Loss, size of the direct effect", "mean over tokens of the magnitude of the direct effect", 0.0
)
ENTROPY_TOTAL_SIZE = _metric(
    "entropy_total_size",
    "Entropy, size of the total effect",
    "mean over tokens of the magnitude of the total effect on the entropy",
    0.0,
)
ENTROPY_DIRECT_SIZE = _metric(
    "entropy_direct_size",
    "Entropy, size of the direct effect",
    "mean over tokens of the magnitude of the direct effect on the entropy",
    0.0,
)
MEDIATED_SHARE = Metric(
    "mediated_share",
    "share",
    "Mediated share of the loss effect",
    "1 − size of the direct effect / size of the total effect on the loss: below 0 where the direct effect is the larger",
    None,
    1.0,
)
ENTROPY_MEDIATED_SHARE = Metric(
    "entropy_mediated_share",
    "share",
    "Mediated share of the entropy effect",
    "1 − size of the direct effect / size of the total effect on the entropy",
    None,
    1.0,
)

SUMMED = (
    LOSS_TOTAL,
    LOSS_DIRECT,
    ENTROPY_TOTAL,
    ENTROPY_DIRECT,
    LOSS_TOTAL_SIZE,
    LOSS_DIRECT_SIZE,
    ENTROPY_TOTAL_SIZE,
    ENTROPY_DIRECT_SIZE,
)
"""What shards have sums of."""
SHARES = (MEDIATED_SHARE, ENTROPY_MEDIATED_SHARE)
METRICS = (*SUMMED, LOSS_MEDIATED, ENTROPY_MEDIATED, *SHARES)

LOWEST, HIGHEST = "lowest", "highest"


@dataclass(frozen=True, slots=True)
class Extreme:
    """What is reported of the candidates: the one with the lowest or the highest mean of a metric."""

    metric: Metric
    extreme: str


EXTREMES = (
    Extreme(LOSS_TOTAL_SIZE, HIGHEST),
    Extreme(LOSS_TOTAL, HIGHEST),
    Extreme(ENTROPY_TOTAL, LOWEST),
    Extreme(ENTROPY_TOTAL, HIGHEST),
)

ENTROPY_NEURONS_TABLE = {
    "layer": pl.Int32,
    "neuron": pl.Int32,
    "group": pl.String,
    "rank": pl.Int32,
    "kind": pl.String,
    "norm_z": pl.Float64,
    "effect_z": pl.Float64,
    **ESTIMATE,
}
"""tables/entropy_neurons.parquet: each neuron ablated alone. Each interval is that of its neuron alone."""
ENTROPY_NEURONS_GROUPS_TABLE = {"group": pl.String, "neurons": pl.Int64, **ESTIMATE}
"""tables/entropy_neurons_groups.parquet: means over a group's neurons, shares of their sums, and the shares' difference."""
ENTROPY_NEURONS_BEST_TABLE = {
    "extreme": pl.String,
    "layer": pl.Int32,
    "neuron": pl.Int32,
    **ESTIMATE,
    "measured": pl.Int64,
}
"""tables/entropy_neurons_best.parquet: the candidates with the most extreme effects. Intervals cover all candidates at once."""

MOST_TOP, MOST_LAYERS = 256, 1024


def _check_top(top: int) -> None:
    if not 1 <= top <= MOST_TOP:
        raise DepthscopeError(f"{shown(top)} candidate entropy neurons: expected 1 to {MOST_TOP}")


def _check_layers(layers: int) -> None:
    if not 1 <= layers <= MOST_LAYERS:
        raise DepthscopeError(f"entropy neurons among the last {shown(layers)} layers: expected 1 to {MOST_LAYERS:,}")


ENTROPY_TOP = Option(
    name="entropy_top",
    type=int,
    default=12,
    help="How many candidate entropy neurons are ablated; as many random neurons of the same layers are the control.",
    check=_check_top,
)
ENTROPY_LAYERS = Option(
    name="entropy_layers",
    type=int,
    default=1,
    help="Among how many of the last layers candidates are looked for. The last layer’s neurons reach the unembedding only "
    "through the final norm.",
    check=_check_layers,
)

EXPERIMENT = Experiment(
    name=NAME,
    title="What entropy neurons do, directly and through the final norm.",
    question="Do neurons with long output weights that hardly distinguish tokens change the predictions by changing the "
    "scale of the final norm? Each is mean-ablated with the norm live and with its scale frozen, next to random neurons.",
    make="depthscope.experiments.entropy_neurons:make",
    tables={
        NAME: Table(columns=ENTROPY_NEURONS_TABLE, metrics=METRICS),
        GROUPS: Table(columns=ENTROPY_NEURONS_GROUPS_TABLE, metrics=METRICS),
        BEST: Table(columns=ENTROPY_NEURONS_BEST_TABLE, metrics=(LOSS_TOTAL_SIZE, LOSS_TOTAL, ENTROPY_TOTAL)),
    },
    options=(ENTROPY_TOP, ENTROPY_LAYERS),
    source="Stolfo et al. 2024 (arXiv 2406.16254), figure 2",
    in_study=False,
    deep=True,
)

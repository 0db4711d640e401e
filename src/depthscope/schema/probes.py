"""Probes (E11): which neurons predict that the next token ends in a suffix, and how well."""

from typing import Any

import polars as pl

from depthscope.schema.declaration import Experiment, Option, Table
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.metric import Metric

ACCURACY = Metric(
    "accuracy",
    "share",
    "Accuracy",
    "share of test examples, half of which have a next token that ends in the suffix, that are classified correctly",
    0.0,
    1.0,
)
OVER_SINGLE = Metric(
    "accuracy_over_single",
    "share",
    "Accuracy over the best neuron",
    "accuracy of the best k neurons together − accuracy of the best neuron of the same group, on the same examples",
    -1.0,
    1.0,
)
OVER_RANDOM = Metric(
    "accuracy_over_random",
    "share",
    "Accuracy over random neurons",
    "accuracy − mean accuracy over draws of as many random neurons of the same layers, processed identically, on the same "
    "examples",
    -1.0,
    1.0,
)
OVER_MODEL = Metric(
    "accuracy_over_model",
    "share",
    "Accuracy over the model’s top-1",
    "accuracy − accuracy of whether the model’s most likely token ends in the suffix, on the same examples",
    -1.0,
    1.0,
)
OVER_THRESHOLD = Metric(
    "accuracy_over_threshold",
    "share",
    "Accuracy over the model’s probability",
    "accuracy − accuracy of whether the model’s probability of the suffix is above the best threshold of the training "
    "examples, on the same examples",
    -1.0,
    1.0,
)
OVER_UNIGRAM = Metric(
    "accuracy_over_unigram",
    "share",
    "Accuracy over the last token",
    "accuracy − accuracy of the most frequent label that the context’s last token has among training examples, on the same "
    "examples",
    -1.0,
    1.0,
)
OVER_BIGRAM = Metric(
    "accuracy_over_bigram",
    "share",
    "Accuracy over the last two tokens",
    "accuracy − accuracy of the most frequent label that the context’s last two tokens have among training examples (the last "
    "token, where there is none), on the same examples",
    -1.0,
    1.0,
)
CONTROL_ACCURACY = Metric(
    "control_accuracy",
    "share",
    "Control accuracy",
    "accuracy of the same procedure on control tasks, where each last token of a context has a random label: mean over tasks",
    0.0,
    1.0,
)
SELECTIVITY = Metric(
    "selectivity",
    "share",
    "Selectivity",
    "accuracy − control accuracy, on the same examples (Hewitt and Liang 2019)",
    -1.0,
    1.0,
)
METRICS = {
    metric.name: metric
    for metric in (
        ACCURACY,
        OVER_SINGLE,
        OVER_RANDOM,
        OVER_MODEL,
        OVER_THRESHOLD,
        OVER_UNIGRAM,
        OVER_BIGRAM,
        CONTROL_ACCURACY,
        SELECTIVITY,
    )
}

PREDICTION, SUPPRESSION, BOTH = "prediction", "suppression", "both"
CHOSEN_GROUPS = (PREDICTION, SUPPRESSION, BOTH)
RANDOM = {group: f"random_{group}" for group in CHOSEN_GROUPS}
LAYER, MODEL_TOP1, MODEL_THRESHOLD, MAJORITY = "layer", "model_top1", "model_threshold", "majority"
UNIGRAM, BIGRAM = "unigram", "bigram"

GROUPS = {
    PREDICTION: "the neurons that write most towards the suffix",
    SUPPRESSION: "the neurons that write most away from it",
    BOTH: "both groups together",
    **{RANDOM[g]: f"random neurons, as many in each layer as “{g}” has" for g in CHOSEN_GROUPS},
    LAYER: "all MLP neurons of the layer with most of the selected neurons",
    MODEL_TOP1: "the unmodified model: whether its most likely token ends in the suffix",
    MODEL_THRESHOLD: "the unmodified model: whether its total probability of tokens with the suffix is above a threshold "
    "fitted on the training examples",
    MAJORITY: "always the class that is more frequent among the training examples",
    UNIGRAM: "no network: the label that most training examples with the same last context token have; the more frequent class "
    "for a token that is not among them, or has both equally often",
    BIGRAM: "the same with the last two context tokens, or else the last one",
}
"""What makes the prediction: the values of the column `group`, explained."""

BY_CLASS, BY_DIFFERENCE = "class", "difference"
SELECTED_BY = {
    BY_CLASS: "prediction or suppression neurons by kurtosis and skew, those that write most towards or away from the suffix",
    BY_DIFFERENCE: "of all neurons, those that write most towards or away from the suffix, because too few prediction or "
    "suppression neurons do",
}

PROBES_TABLE = {
    "suffix": pl.String,
    "group": pl.String,
    "layer": pl.Int32,
    "k": pl.Int32,
    "draw": pl.Int32,
    **ESTIMATE,
}
"""tables/probes.parquet. `k` neurons together, 0 where none are used; `layer` only where all are in one layer by definition;
`draw` numbers the draws of random neurons and is null for the mean over them and in all other groups. `tokens` counts test
examples. Control tasks are measured for k = 1, 2, 4, … and the largest."""

PROBE_NEURONS_TABLE = {
    "suffix": pl.String,
    "group": pl.String,
    "rank": pl.Int32,
    "layer": pl.Int32,
    "neuron": pl.Int32,
    "difference": pl.Float64,
    "kurtosis": pl.Float64,
    "skew": pl.Float64,
    "selected_by": pl.String,
    "training_accuracy": pl.Float64,
    **ESTIMATE,
}
"""tables/probe_neurons.parquet: the selected neurons, each with the accuracy of a probe on that neuron alone. `rank` counts
from 1, by training accuracy: the best k of a group are its ranks 1 … k. `difference`: mean of W_U · w_out over tokens with the
suffix − mean over the others. `kurtosis` (raw) and `skew` of the cosines of w_out with the rows of W_U."""


def probe_shard(neurons: int) -> dict[str, Any]:
    """shards/probes: one row per context. `log_probability` is the log of the model's probability, in nats, that the next
    token ends in the suffix; `activations` are those of the neurons, in the experiment's order, at the context's last token.
    """
    return {
        "document": pl.Int64,
        "training": pl.Boolean,
        "label": pl.Boolean,
        "top1": pl.Boolean,
        "log_probability": pl.Float64,
        "activations": pl.Array(pl.Float32, neurons),
    }


SUFFIX = Option(name="suffix", type=str, default="ing", help="Suffix of the next token that probes predict.")
EXPERIMENT = Experiment(
    name="probes",
    title="Which neurons predict that the next token ends in a suffix.",
    question="Which neurons predict, alone and together, that the next token ends in a suffix, compared with random neurons?",
    make="depthscope.experiments.probes:make",
    tables={
        "probes": Table(columns=PROBES_TABLE, metrics=tuple(METRICS.values())),
        "probe_neurons": Table(columns=PROBE_NEURONS_TABLE),
    },
    options=(SUFFIX,),
    source="Lad et al. 2024, figures 10 and 16",
)

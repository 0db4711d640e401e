"""Neurons: statistics of each MLP neuron's output weight, kinds of neurons, tables and shards.

Nothing here is an estimate from text: the numbers describe weights, are exact up to rounding, and have no intervals.
"""

from dataclasses import dataclass

import polars as pl

from depthscope.schema.declaration import Experiment, Table
from depthscope.schema.metric import Metric

NORM = Metric("norm", "residual stream", "Norm", "length of the output weight w_out", 0.0)
MEAN = Metric("mean", "cosine", "Mean", "mean of the cosines of w_out with every token's unembedding vector", -1.0, 1.0)
VARIANCE = Metric("variance", "cosine²", "Variance", "variance of the cosines over the vocabulary", 0.0, 1.0)
SKEW = Metric("skew", "none", "Skew", "third central moment of the cosines over their standard deviation cubed")
KURTOSIS = Metric(
    "kurtosis",
    "none",
    "Kurtosis",
    "fourth central moment of the cosines over their variance squared; raw, 3 for a normal distribution",
    1.0,
)
EFFECT_VARIANCE = Metric(
    "effect_variance",
    "logits² per squared activation",
    "Variance of the logit effect",
    "variance of W_U·w_out over the vocabulary, before the final norm's division",
    0.0,
)
VARIANCE_Z = Metric(
    "variance_z",
    "robust standard deviations",
    "Variance, z",
    "robust z-score of log variance among the model’s neurons",
)
NORM_Z = Metric(
    "norm_z", "robust standard deviations", "Norm, z", "robust z-score of log norm among the model’s neurons"
)
EFFECT_Z = Metric(
    "effect_z",
    "robust standard deviations",
    "Logit effect, z",
    "robust z-score of log (effect_variance / norm²) among the model’s neurons",
)
CLASS_SHARE = Metric(
    "class_share",
    "share",
    "Variance explained",
    "share of the variance of W_U·w_out that lies between the tokens of token_class and the rest (η²)",
    0.0,
    1.0,
)
CLASS_DIFFERENCE = Metric(
    "class_difference",
    "standard deviations",
    "Class difference",
    "mean of W_U·w_out over the tokens of token_class minus its mean over the rest, in standard deviations over the vocabulary",
)

FROM_A_BLOCK = (NORM, MEAN, VARIANCE, SKEW, KURTOSIS, EFFECT_VARIANCE, CLASS_SHARE, CLASS_DIFFERENCE)
"""Metrics that depend on the neuron and the unembedding alone."""
FROM_THE_MODEL = (VARIANCE_Z, NORM_Z, EFFECT_Z)
"""Metrics that depend on all of the model's neurons."""
METRICS = {m.name: m for m in (*FROM_A_BLOCK, *FROM_THE_MODEL)}


@dataclass(frozen=True, slots=True)
class NeuronKind:
    """A kind of neuron: its value in the column `kind`, its title, and the sentence that defines it."""

    name: str
    title: str
    definition: str
    strength: str | None
    """The column by which the strongest neurons of the kind are ranked, largest first; None: none are shown."""


PEAKED = 10.0
"""Raw kurtosis above which a neuron is a prediction or suppression neuron (Gurnee et al. 2024); 3 for a normal distribution."""
LONG_NORM_Z, BLIND_EFFECT_Z = 2.0, -2.0
"""An entropy neuron's norm_z is above the first and its effect_z below the second."""
WIDE_VARIANCE_Z = 3.5
"""A partition neuron's variance_z is above this."""

DEAD = NeuronKind(
    "dead", "Dead", "w_out is zero, or its cosines with all tokens are equal: no skew or kurtosis exists", None
)
PREDICTION = NeuronKind(
    "prediction", "Prediction", f"kurtosis above {PEAKED:g} and skew above 0 (Gurnee et al. 2024)", KURTOSIS.name
)
SUPPRESSION = NeuronKind(
    "suppression", "Suppression", f"kurtosis above {PEAKED:g} and skew below 0 (Gurnee et al. 2024)", KURTOSIS.name
)
ENTROPY = NeuronKind(
    "entropy",
    "Entropy",
    f"none of the above; norm_z above {LONG_NORM_Z:g} and effect_z below −{-BLIND_EFFECT_Z:g}: a long weight that hardly "
    "distinguishes tokens (after Gurnee et al. 2024 and Stolfo et al. 2024, who judge by eye; these thresholds are ours)",
    NORM.name,
)
PARTITION = NeuronKind(
    "partition",
    "Partition",
    f"none of the above; variance_z above {WIDE_VARIANCE_Z:g}: cosines spread far wider than other neurons’ (after Gurnee et "
    "al. 2024, who judge by eye; the threshold is ours)",
    VARIANCE.name,
)
OTHER = NeuronKind("other", "Other", "none of the above", KURTOSIS.name)

KINDS = {kind.name: kind for kind in (DEAD, PREDICTION, SUPPRESSION, ENTROPY, PARTITION, OTHER)}
"""In order of precedence: a neuron is of the first kind whose definition it meets. Thresholds are the defaults."""

NEURON_SHARD = {
    "layer": pl.Int32,
    "neuron": pl.Int32,
    "token_class": pl.String,
    **{m.name: pl.Float64 for m in FROM_A_BLOCK},
}
"""shards/neurons: one row per neuron of a block. Null where a number does not exist: skew and kurtosis of dead neurons; the
class columns also where there is no tokenizer."""

NEURONS_TABLE = {
    "layer": pl.Int32,
    "neuron": pl.Int32,
    "kind": pl.String,
    "token_class": pl.String,
    **{m.name: pl.Float64 for m in METRICS.values()},
}
"""tables/neurons.parquet: one row per neuron. In a mixture of experts, neurons are numbered consecutively, one routed expert
after the other, then the shared experts; `neurons` in run.json gives their numbers.
`token_class` is the class of tokens that explains most of the variance of the neuron's logit effect."""

NEURON_COUNTS_TABLE = {
    "layer": pl.Int32,
    "kind": pl.String,
    "count": pl.Int64,
    "share": pl.Float64,
    "neurons": pl.Int64,
    "largest_kurtosis": pl.Float64,
}
"""tables/neuron_counts.parquet: one row per layer and kind, including counts of 0. `share` is the share of the layer's
`neurons`; `largest_kurtosis` is the largest among the layer's neurons of any kind."""

NEURON_TOKENS_TABLE = {
    "layer": pl.Int32,
    "neuron": pl.Int32,
    "kind": pl.String,
    "strength": pl.Float64,
    "promoted": pl.List(pl.String),
    "promoted_ids": pl.List(pl.Int32),
    "promoted_cosines": pl.List(pl.Float64),
    "suppressed": pl.List(pl.String),
    "suppressed_ids": pl.List(pl.Int32),
    "suppressed_cosines": pl.List(pl.Float64),
    "token_class": pl.String,
    CLASS_SHARE.name: pl.Float64,
    CLASS_DIFFERENCE.name: pl.Float64,
}
"""tables/neuron_tokens.parquet: the strongest neurons of each kind, strongest first (`strength` is the kind's column of the
neurons table), each with the tokens whose cosines with it are largest and smallest. A space is shown as ␣, an incomplete
character as its bytes, <0xE2 0x80>."""

EXPERIMENT = Experiment(
    name="neurons",
    title="Prediction, suppression, entropy and partition neurons.",
    question="How many prediction, suppression, entropy and partition neurons does each layer have, classified by the effect "
    "of their output weights on the vocabulary?",
    make="depthscope.experiments.neurons:make",
    tables={
        "neuron_counts": Table(columns=NEURON_COUNTS_TABLE),
        "neurons": Table(columns=NEURONS_TABLE),
        "neuron_tokens": Table(columns=NEURON_TOKENS_TABLE),
    },
    source="Lad et al. 2024, figures 1, 6 and 16",
)

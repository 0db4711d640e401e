"""Neurons: what is said of each MLP neuron by its output weight, kinds of neurons, tables and shards.

Nothing here is an estimate from text: the numbers are about weights, exact up to rounding, and have no intervals.
"""

from dataclasses import dataclass

import polars as pl

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
    "mean of W_U·w_out over the tokens of token_class less its mean over the rest, in standard deviations over the vocabulary",
)

FROM_A_BLOCK = (NORM, MEAN, VARIANCE, SKEW, KURTOSIS, EFFECT_VARIANCE, CLASS_SHARE, CLASS_DIFFERENCE)
"""What follows from a neuron and the unembedding alone."""
FROM_THE_MODEL = (VARIANCE_Z, NORM_Z, EFFECT_Z)
"""What needs all of the model's neurons."""
METRICS = {m.name: m for m in (*FROM_A_BLOCK, *FROM_THE_MODEL)}


@dataclass(frozen=True, slots=True)
class NeuronKind:
    """A kind of neuron as it stands in the column `kind`, in words, and the sentence that defines it."""

    name: str
    title: str
    definition: str
    strength: str | None
    """The column by which the strongest neurons of the kind are chosen, largest first; None: none are shown."""


DEAD = NeuronKind(
    "dead", "Dead", "w_out is zero, or its cosines with all tokens are equal: no skew or kurtosis exists", None
)
PREDICTION = NeuronKind(
    "prediction", "Prediction", "kurtosis above 10 and skew above 0 (Gurnee et al. 2024)", KURTOSIS.name
)
SUPPRESSION = NeuronKind(
    "suppression", "Suppression", "kurtosis above 10 and skew below 0 (Gurnee et al. 2024)", KURTOSIS.name
)
ENTROPY = NeuronKind(
    "entropy",
    "Entropy",
    "none of the above; norm_z above 2 and effect_z below −2: a long weight that hardly tells tokens apart (after Gurnee et "
    "al. 2024 and Stolfo et al. 2024, who judge by eye; these thresholds are ours)",
    NORM.name,
)
PARTITION = NeuronKind(
    "partition",
    "Partition",
    "none of the above; variance_z above 3.5: cosines spread far wider than other neurons’ (after Gurnee et al. 2024, who "
    "judge by eye; the threshold is ours)",
    VARIANCE.name,
)
OTHER = NeuronKind("other", "Other", "none of the above", KURTOSIS.name)

KINDS = {kind.name: kind for kind in (DEAD, PREDICTION, SUPPRESSION, ENTROPY, PARTITION, OTHER)}
"""In the order of precedence: a neuron is of the first kind whose definition it meets. Thresholds as they are by default."""

NEURON_SHARD = {
    "layer": pl.Int32,
    "neuron": pl.Int32,
    "token_class": pl.String,
    **{m.name: pl.Float64 for m in FROM_A_BLOCK},
}
"""shards/neurons: a row per neuron of a block. Null where a number does not exist: skew and kurtosis of dead neurons; the
class columns also where there is no tokenizer."""

NEURONS_TABLE = {
    "layer": pl.Int32,
    "neuron": pl.Int32,
    "kind": pl.String,
    "token_class": pl.String,
    **{m.name: pl.Float64 for m in METRICS.values()},
}
"""tables/neurons.parquet: a row per neuron. Of experts the neurons are numbered through, one routed expert after the other,
then the shared ones; `neurons` in run.json says how many there are of each.
`token_class` is the class of tokens that explains most of the variance of the neuron's logit effect."""

NEURON_COUNTS_TABLE = {
    "layer": pl.Int32,
    "kind": pl.String,
    "count": pl.Int64,
    "share": pl.Float64,
    "neurons": pl.Int64,
    "largest_kurtosis": pl.Float64,
}
"""tables/neuron_counts.parquet: a row per layer and kind, also where the count is 0. `share` is of the layer's `neurons`;
`largest_kurtosis` that of the layer's neurons of any kind."""

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
neurons table), each with the tokens whose cosines with it are largest and smallest. A space is shown as ␣, bytes that are
only part of a character as <0xE2 0x80>."""

"""Kinds of neurons: the kind of each neuron, from statistics of its output weight, and how many there are per layer.

Prediction and suppression neurons follow the paper (and Gurnee et al. 2024, arXiv:2401.12181) exactly. For entropy
neurons (Gurnee et al. 2024; Stolfo et al. 2024, arXiv:2406.16254: a long weight that hardly moves the logits) and partition
neurons (Gurnee et al. 2024: cosines of high variance) those papers choose by eye. We measure how far a neuron is from the
model's others with a robust z-score of a logarithm (median and median absolute deviation), which does not depend on the
scale of the weights:

- entropy: z of log ‖w‖ above 2, z of log (var(W_U w) / ‖w‖²) below −2. Each holds for one in 44 normally distributed
  numbers, both for about one in 1,900 if they are independent;
- partition: z of log var(cosines) above 3.5 (the cut of Iglewicz and Hoaglin 1993 for outliers).
"""

from dataclasses import asdict, dataclass

import numpy as np
import polars as pl

from depthscope.errors import DataError
from depthscope.schema.neurons import (
    BLIND_EFFECT_Z,
    DEAD,
    EFFECT_VARIANCE,
    EFFECT_Z,
    ENTROPY,
    KINDS,
    KURTOSIS,
    LONG_NORM_Z,
    NEURON_COUNTS_TABLE,
    NORM,
    NORM_Z,
    OTHER,
    PARTITION,
    PEAKED,
    PREDICTION,
    SKEW,
    SUPPRESSION,
    VARIANCE,
    VARIANCE_Z,
    WIDE_VARIANCE_Z,
)
from depthscope.statistics.moments import CONSTANT, robust_z


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """The thresholds that define kinds of neurons. Raises DataError for values for which the definitions make no sense."""

    kurtosis: float = PEAKED
    """Above this: prediction or suppression, by the sign of the skew."""
    entropy_norm_z: float = LONG_NORM_Z
    """An entropy neuron's norm_z is above this."""
    entropy_effect_z: float = BLIND_EFFECT_Z
    """An entropy neuron's effect_z is below this."""
    partition_variance_z: float = WIDE_VARIANCE_Z
    """A partition neuron's variance_z is above this."""

    def __post_init__(self) -> None:
        if self.kurtosis < 1 or self.entropy_norm_z < 0 or self.entropy_effect_z > 0 or self.partition_variance_z < 0:
            raise DataError(
                f"thresholds {asdict(self)}: expected kurtosis of at least 1, entropy_norm_z and partition_variance_z of at "
                "least 0, entropy_effect_z of at most 0"
            )


def with_kinds(neurons: pl.DataFrame, thresholds: Thresholds) -> pl.DataFrame:
    """Rows of NEURON_SHARD for all of a model's neurons, with the robust z-scores and the kind of each."""
    column = {m.name: neurons[m.name].to_numpy() for m in (NORM, VARIANCE, SKEW, KURTOSIS, EFFECT_VARIANCE)}
    alive = column["variance"] > CONSTANT
    relative_effect = column["effect_variance"] / np.where(alive, column["norm"], 1.0) ** 2
    scores = {
        VARIANCE_Z.name: robust_z(_log(column["variance"], alive)),
        NORM_Z.name: robust_z(_log(column["norm"], alive)),
        EFFECT_Z.name: robust_z(_log(relative_effect, alive)),
    }
    sharp = column["kurtosis"] > thresholds.kurtosis
    long = scores[NORM_Z.name] > thresholds.entropy_norm_z
    meets = {
        DEAD.name: ~alive,
        PREDICTION.name: sharp & (column["skew"] > 0),
        SUPPRESSION.name: sharp & (column["skew"] < 0),
        ENTROPY.name: long & (scores[EFFECT_Z.name] < thresholds.entropy_effect_z),
        PARTITION.name: scores[VARIANCE_Z.name] > thresholds.partition_variance_z,
    }
    kind = np.select(list(meets.values()), list(meets), default=OTHER.name)
    return neurons.with_columns(
        kind=pl.Series(kind.tolist(), dtype=pl.String),
        **{name: pl.Series(score).fill_nan(None) for name, score in scores.items()},
    )


def _log(values: np.ndarray, alive: np.ndarray) -> np.ndarray:
    positive = alive & (values > 0)
    return np.where(positive, np.log(np.where(positive, values, 1.0)), np.nan)


def neuron_counts(neurons: pl.DataFrame) -> pl.DataFrame:
    """NEURON_COUNTS_TABLE from the neurons table."""
    rows = []
    for (layer,), frame in neurons.group_by("layer", maintain_order=True):
        for kind in KINDS:
            count = int((frame["kind"] == kind).sum())
            rows.append((layer, kind, count, count / len(frame), len(frame), frame["kurtosis"].max()))
    return pl.DataFrame(rows, schema=NEURON_COUNTS_TABLE, orient="row")

"""Intervals over documents for effects on a bounded scale: Student's t from a grouped jackknife, on a log or logit scale.

An effect is any function of means over tokens. With θ(g) the effect without the g-th of G groups of documents, transformed to
a scale without bounds (log where it cannot be below a bound, logit where it is between two), the standard error is

    se² = (G − 1) / G · Σ_g (θ(g) − mean of θ(·))²

(Efron and Tibshirani 1993, section 11.5), and the interval θ ± t · se, transformed back, so that it cannot leave the scale. The
degrees of freedom are those of the effective number of groups, (Σ n)² / Σ n² for n tokens per group (Kish 1965), less one:
a few long documents among many short ones count for what they are. Where the effect or some θ(g) is at a bound, which has no
logit, the interval is made of percentiles of bootstrap replicates, at the levels that Hesterberg (2015, section 5.3) gives for
small samples.

Of the intervals compared in benchmarks/intervals.py this one covers best; BCa (Efron 1987) has less than its level with few
documents of unequal length, as docs/stages.md shows.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy import special, stats

from depthscope.statistics.estimate import LEVEL

Values = Float64[np.ndarray, "*values"]


@dataclass(frozen=True, slots=True)
class Scale:
    """The bounds of an effect; infinite where there is none. An upper bound alone is not supported."""

    lowest: float
    highest: float

    def free(self, values: Values) -> Values:
        """Values on a scale without bounds; infinite at a bound."""
        with np.errstate(divide="ignore"):
            if np.isfinite(self.highest):
                return special.logit((values - self.lowest) / (self.highest - self.lowest))
            return np.log(values - self.lowest) if np.isfinite(self.lowest) else values

    def bounded(self, values: Values) -> Values:
        """The inverse of `free`."""
        if np.isfinite(self.highest):
            return self.lowest + (self.highest - self.lowest) * special.expit(values)
        with np.errstate(over="ignore"):  # of effects that differ by hundreds of orders of magnitude, to infinity
            return self.lowest + np.exp(values) if np.isfinite(self.lowest) else values


def effective_number(tokens: Float64[np.ndarray, " groups"]) -> float:
    """Of groups of these sizes: as many equal groups would give a mean of the same variance."""
    return float(tokens.sum() ** 2 / (tokens**2).sum())


def jackknife_interval(
    estimate: float,
    without: Float64[np.ndarray, " groups"],
    replicates: Float64[np.ndarray, " replicates"],
    number: float,
    scale: Scale,
    level: float = LEVEL,
) -> tuple[float, float]:
    """The interval of an effect.

    `without` has the effect without each group in turn, `replicates` that of bootstrap replicates, which are used where there
    are fewer than two groups or a value is at a bound; `number` is the effective number of groups.
    """
    number = max(number, 2.0)  # of two documents, one ten times as long as the other, the effective number is 1.2
    t = stats.t.ppf((1 + level) / 2, number - 1)
    free = scale.free(np.append(without, estimate))
    if len(without) > 1 and np.isfinite(free).all():
        deviations = free[:-1] - free[:-1].mean()
        error = np.sqrt((len(without) - 1) / len(without) * (deviations**2).sum())
        low, high = scale.bounded(free[-1] + np.array([-t, t]) * error)
    else:
        wide = np.sqrt(number / (number - 1)) * t
        low, high = np.nanquantile(replicates, stats.norm.cdf([-wide, wide]))
    return float(low), float(high)

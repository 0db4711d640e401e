"""The procedure repeated on other documents and other layer noise: how often a transition is found again, and where.

Each resample is the fitted curve with a step at every transition's place, plus the difference that resampling the documents
makes, plus new noise over layers with the autocorrelation and correlation of the old. Place, tests and order are found again;
the null signals that the evidence is compared with, and the verdict on the defining signature, are those of the original.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from depthscope.schema.stages import LEVEL, TRANSITIONS
from depthscope.stages.signals import Rows
from depthscope.stages.transitions import HYPOTHESES_AGAIN, Interior, Statistics, clean, holm, in_order, p_values

RESAMPLES = 200


@dataclass(frozen=True, slots=True)
class Resampled:
    """For each transition and resample: the first layer of the later stage, and whether the transition was found."""

    layers: Int64[np.ndarray, "transitions resamples"]
    found: Bool[np.ndarray, "transitions resamples"]

    def summary(self, transition: int, depth: int, allowed: bool) -> tuple[int | None, int | None, float, list[float]]:
        """(low, high, share absent, share before each layer). `allowed`: whether the resamples may be named at all.

        The interval is over all resamples: those in which the transition is found have clearer steps than the model may have.
        """
        layers, found = self.layers[transition], self.found[transition] & allowed
        places = np.bincount(layers[found], minlength=depth) / len(found)
        low, high = np.quantile(layers, (0.025, 0.975), method="closest_observation")
        return int(low), int(high), float(1 - found.mean()), places.tolist()


def resampled(
    interior: Interior,
    own: Float64[np.ndarray, "layers signals"],
    rows: Rows,
    layers: Int64[np.ndarray, " transitions"],
    nulls: Sequence[Statistics],
    testable: Sequence[int],
    generator: np.random.Generator,
    count: int,
) -> Resampled:
    """The tests on `count` resamples."""
    fitted = interior.with_steps(own, {place: int(layers[place]) for place in testable})
    documents = np.zeros((*own.shape, count))
    for column, name in enumerate(interior.names):
        if len(rows[name]) > 1:  # neurons are counted, not sampled
            chosen = generator.integers(1, len(rows[name]), count)
            inside = rows[name][:, 1 : 1 + interior.layers]
            documents[:, column] = (inside[chosen] - inside[0]).T
    sets = clean(fitted.curve[:, :, None] + np.nan_to_num(documents) + fitted.noise(count, generator))
    again = interior.statistics(sets)
    raw = np.ones((len(TRANSITIONS), count))
    others = np.ones_like(raw)
    for place in testable:
        raw[place] = p_values(again.confirmed[place], [null.confirmed[place] for null in nulls])
        others[place] = interior.hypotheses(sets, place, generator, HYPOTHESES_AGAIN)
    passed = np.zeros(raw.shape, dtype=bool)
    passed[testable] = (holm(raw[testable]) <= LEVEL) & (others[testable] <= LEVEL) & (again.found[testable] > 0)
    found = np.zeros_like(passed)
    for column in range(count):
        places = np.flatnonzero(passed[:, column]).tolist()
        kept = in_order(places, again.layer[:, column].tolist(), again.total[:, column].tolist())
        found[sorted(kept), column] = True
    return Resampled(again.layer, found)

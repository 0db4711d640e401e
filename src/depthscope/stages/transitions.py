"""Three questions about signals over layers, each answered against signals that have no stages.

Is there a step in any of them beyond smooth change with depth? Does a transition of the hypothesis show, in its directions, in
interventions *and*, where these place it, in readings? And do as many other hypotheses of the same shape fit as well?
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from depthscope.schema.stages import INTERVENTION, SIGNALS, TRANSITIONS
from depthscope.statistics.smooth_steps import Fitted, SmoothSteps, despiked, pieces, smooth_steps

NULLS = 999
HYPOTHESES, HYPOTHESES_AGAIN = 1000, 200
"""Random hypotheses for the signals, and for each resample of them."""
PARTICIPATION = 0.5
"""Prior probability that a signal takes part in a transition: a signal that does not costs little evidence."""
AT_ONCE = 250

Batch = Float64[np.ndarray, "layers signals sets"]


@dataclass(frozen=True, slots=True)
class Statistics:
    """What the tests compare, for each of several sets of signals; rows of transition arrays are places in TRANSITIONS.

    `any_step`: the evidence for a step of any signals in any direction, at its best place. `confirmed`: the evidence of a
    transition's readings at the place where its interventions put it. `layer`: the first layer of the later stage by all
    the transition's signals, and `total` their evidence there.
    """

    any_step: Float64[np.ndarray, " sets"]
    any_layer: Int64[np.ndarray, " sets"]
    confirmed: Float64[np.ndarray, "transitions sets"]
    found: Float64[np.ndarray, "transitions sets"]
    layer: Int64[np.ndarray, "transitions sets"]
    total: Float64[np.ndarray, "transitions sets"]


class Interior:
    """The layers between the first and the last: those two are tested by themselves (`edges`), since one layer is no run.

    `names` are the signals that are compared; `columns(transition, half)` those that are evidence for a transition.
    """

    def __init__(self, depth: int, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.layers = depth - 2
        self.model: SmoothSteps = smooth_steps(self.layers, max(2, round(self.layers / 8)))
        self.near = max(1, self.layers // 12)
        """How many layers from where the interventions put a transition its readings may show it."""
        self.directions = np.array([[SIGNALS[n].directions.get(t, 0) for n in names] for t in range(len(TRANSITIONS))])
        self.interventions = np.array([SIGNALS[name].half == INTERVENTION for name in names])

    def testable(self, transition: int) -> bool:
        """Whether interventions and readings were measured that are evidence for the transition."""
        mine = self.directions[transition] != 0
        return bool((mine & self.interventions).any() and (mine & ~self.interventions).any())

    def matrix(self, rows: Mapping[str, Float64[np.ndarray, " _"]]) -> Float64[np.ndarray, "layers signals"]:
        """The signals over the interior layers, without spikes."""
        return despiked(np.stack([rows[name][1 : 1 + self.layers] for name in self.names], 1))

    def statistics(self, sets: Batch) -> Statistics:
        """The statistics of several sets of signals."""
        parts = [self._statistics(np.ascontiguousarray(sets[..., part])) for part in pieces(sets.shape[2], AT_ONCE)]
        names = Statistics.__dataclass_fields__
        return Statistics(*(np.concatenate([getattr(part, name) for part in parts], axis=-1) for name in names))

    def _statistics(self, sets: Batch) -> Statistics:
        layers, signals, count = sets.shape
        evidence = self.model.evidence(sets.reshape(layers, -1))
        shape = (len(self.model.places), signals, count)
        undirected = _mixed(evidence.log_bayes).reshape(shape).sum(1)
        first = self.model.places + 1  # a place counts from the first interior layer
        results = []
        for directions in self.directions:
            directed = _mixed(evidence.directed(np.repeat(directions, count).astype(float))).reshape(shape)
            mine = directions != 0
            found = directed[:, mine & self.interventions].sum(1)
            read = directed[:, mine & ~self.interventions].sum(1)
            place = found.argmax(0)
            near = np.abs(np.arange(len(first))[:, None] - place) <= self.near
            total = found + read
            best = total.argmax(0)
            results.append(
                (
                    np.where(near, read, -np.inf).max(0),
                    found.max(0),
                    first[best],
                    np.take_along_axis(total, best[None], 0)[0],
                )
            )
        confirmed, by_interventions, layer, total = (np.stack(part) for part in zip(*results, strict=True))
        return Statistics(undirected.max(0), first[undirected.argmax(0)], confirmed, by_interventions, layer, total)

    def hypotheses(
        self, sets: Batch, transition: int, generator: np.random.Generator, count: int = HYPOTHESES
    ) -> Float64[np.ndarray, " sets"]:
        """Share of random hypotheses (as many signals, any of them, in any directions) that fit at least as well."""
        layers, signals, several = sets.shape
        evidence = self.model.evidence(sets.reshape(layers, -1))
        shape = (len(self.model.places), signals, several)
        ways = np.stack(
            [_mixed(evidence.directed(np.full(signals * several, sign))).reshape(shape) for sign in (1.0, -1.0)]
        )
        directions = self.directions[transition]
        mine = np.flatnonzero(directions)
        own = np.sum([ways[int(directions[k] < 0), :, k] for k in mine], axis=0).max(0)
        as_good = np.zeros(several)
        for _ in range(count):
            chosen = generator.permutation(signals)[: len(mine)]
            signs = generator.integers(0, 2, len(mine))
            as_good += ways[signs, :, chosen].sum(0).max(0) >= own - 1e-9
        return (1 + as_good) / (1 + count)

    def without_each(self, signals: Float64[np.ndarray, "layers signals"], transition: int) -> list[int]:
        """The transition's first layer when one of its signals is left out, for each of them."""
        directed = _mixed(self.model.evidence(signals).directed(self.directions[transition].astype(float)))
        mine = np.flatnonzero(self.directions[transition])
        total = directed[:, mine].sum(1)
        return [int(self.model.places[(total - directed[:, column]).argmax()]) + 1 for column in mine]

    def alone(self, signals: Float64[np.ndarray, "layers signals"], transition: int) -> dict[str, int | None]:
        """Where each of the transition's signals alone would put it; None where it is no evidence for it anywhere."""
        directed = self.model.evidence(signals).directed(self.directions[transition].astype(float))
        return {
            self.names[column]: int(self.model.places[directed[:, column].argmax()]) + 1
            if directed[:, column].max() > 0
            else None
            for column in np.flatnonzero(self.directions[transition])
        }

    def with_steps(self, signals: Float64[np.ndarray, "layers signals"], layers: Mapping[int, int]) -> Fitted:
        """A smooth curve with a step in a transition's signals before each transition's layer."""
        steps = [(layer - 1, self.directions[transition] != 0) for transition, layer in layers.items()]
        return self.model.with_steps(signals, self.model.evidence(signals), steps)

    def nulls(
        self, signals: Float64[np.ndarray, "layers signals"], generator: np.random.Generator, count: int = NULLS
    ) -> list[Batch]:
        """Two kinds of null sets: autocorrelated noise, and the signals' own distances from a smooth curve in another order.

        The first holds where neighbouring layers are alike, the second whatever the noise's distribution is.
        """
        evidence = self.model.evidence(signals)
        drawn = self.model.nulls(signals, evidence, count, generator)
        curve = self.model.smooth(signals, evidence)
        orders = np.stack([generator.permutation(self.layers) for _ in range(count)], 1)
        shuffled = curve[:, :, None] + (signals - curve)[orders].transpose(0, 2, 1)
        return [clean(drawn), clean(shuffled)]


def p_values(
    own: Float64[np.ndarray, " sets"], nulls: Sequence[Float64[np.ndarray, " nulls"]]
) -> Float64[np.ndarray, " sets"]:
    """For each set, the largest of the p-values against each kind of null."""
    return np.max([(1 + (null[:, None] >= own).sum(0)) / (1 + len(null)) for null in nulls], axis=0)


def holm(p: Float64[np.ndarray, "tests sets"]) -> Float64[np.ndarray, "tests sets"]:
    """p-values corrected for the number of tests, in each set (Holm 1979)."""
    order = p.argsort(0)
    remaining = len(p) - np.arange(len(p))[:, None]
    stepped = np.maximum.accumulate(np.minimum(np.take_along_axis(p, order, 0) * remaining, 1.0), 0)
    corrected = np.empty_like(p)
    np.put_along_axis(corrected, order, stepped, 0)
    return corrected


def in_order(places: Sequence[int], layers: Sequence[int], total: Sequence[float]) -> set[int]:
    """Transitions in the order of the hypothesis: of two in the wrong order the one with more evidence stays."""
    kept: set[int] = set()
    for place in sorted(places, key=lambda one: -total[one]):
        if all((layers[place] - layers[one]) * (place - one) > 0 for one in kept):
            kept.add(place)
    return kept


def _mixed(log_bayes: Float64[np.ndarray, "*cells"]) -> Float64[np.ndarray, "*cells"]:
    return np.logaddexp(np.log(1 - PARTICIPATION), np.log(PARTICIPATION) + log_bayes)


def clean(sets: Batch) -> Batch:
    """Sets of signals without spikes."""
    return despiked(sets.reshape(len(sets), -1)).reshape(sets.shape)

"""The hypothesis's transitions against signals without stages: which are named, where, and why the others are not.

A transition is named where readings confirm, near where interventions put it, a step beyond smooth change; where few other
hypotheses fit as well; and where the defining signature of the stage that it begins or ends is supported.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from depthscope.schema.found_stages import Structure, Transition
from depthscope.schema.stages import (
    DETOKENIZATION,
    FEWEST_LAYERS,
    LEVEL,
    PREDICTION_ENSEMBLING,
    RESIDUAL_CALIBRATION,
    STAGES,
    SUPPORTED,
    TRANSITIONS,
)
from depthscope.stages.resampled import RESAMPLES, Resampled, resampled
from depthscope.stages.signals import Rows
from depthscope.stages.signatures import FEWEST_DOCUMENTS
from depthscope.stages.transitions import NULLS, Interior, holm, in_order, p_values

OMNIBUS_LEVEL = 0.02
"""At a nominal 2 % the test of any step rejects about 5 % of the worst nulls of benchmarks/stages: strong
autocorrelation cannot be estimated well from so few layers."""
SEED = 0
NEEDED = {0: DETOKENIZATION, 1: PREDICTION_ENSEMBLING, 2: RESIDUAL_CALIBRATION}
"""The stage whose defining signature a transition needs: of the two that meet there, the one that is rarer to find (the paper
defines feature engineering by little happening)."""


@dataclass(frozen=True, slots=True)
class Compared:
    """The two results, and what they were computed from: the layers compared and their signals without spikes."""

    structure: Structure
    transitions: list[Transition]
    interior: Interior
    own: Float64[np.ndarray, "layers signals"]


def compare(
    rows: Rows,
    depth: int,
    documents: int,
    holds: Mapping[str, str],
    nulls: int = NULLS,
    resamples: int = RESAMPLES,
) -> Compared:
    """Compare signals, of which none is flat, with `nulls` sets of signals of each kind that have no stages.

    `rows` are the original and replicates over documents of each signal, `holds` the verdict on each stage's defining
    signature. Resamples need FEWEST_DOCUMENTS documents; 0 leaves them out.
    """
    generator = np.random.default_rng(SEED)
    interior = Interior(depth, list(rows))
    own = interior.matrix({name: values[0] for name, values in rows.items()})
    without = [interior.statistics(sets) for sets in interior.nulls(own, generator, nulls)]
    mine = interior.statistics(own[:, :, None])
    p = p_values(mine.any_step, [null.any_step for null in without]).item()
    structure = Structure(p=p, level=OMNIBUS_LEVEL, layer=int(mine.any_layer[0]), beyond_smooth=p <= OMNIBUS_LEVEL)
    testable = [place for place in range(len(TRANSITIONS)) if interior.testable(place)]
    raw = [p_values(mine.confirmed[place], [null.confirmed[place] for null in without]) for place in testable]
    confirmed = dict(zip(testable, holm(np.array(raw).reshape(-1, 1))[:, 0].tolist(), strict=True))
    others = {place: interior.hypotheses(own[:, :, None], place, generator)[0].item() for place in testable}
    failing = {
        place: _failing(place, confirmed, others, float(mine.found[place, 0]), holds, depth)
        for place in range(len(TRANSITIONS))
    }
    named = in_order(
        [place for place in testable if not failing[place]], mine.layer[:, 0].tolist(), mine.total[:, 0].tolist()
    )
    again = None
    if documents >= FEWEST_DOCUMENTS and resamples and testable:
        again = resampled(interior, own, rows, mine.layer[:, 0], without, testable, generator, resamples)
    transitions = [
        _transition(
            place,
            int(mine.layer[place, 0]) if place in testable else None,
            place in named,
            failing[place]
            or ("" if place in named else "another transition is stronger where this one would have to be"),
            (confirmed.get(place), others.get(place)),
            holds.get(NEEDED[place], ""),
            again,
            depth,
        )
        for place in range(len(TRANSITIONS))
    ]
    return Compared(structure, transitions, interior, own)


def _failing(
    place: int,
    confirmed: Mapping[int, float],
    others: Mapping[int, float],
    found: float,
    holds: Mapping[str, str],
    depth: int,
) -> str:
    """The first condition of a name that is not met, in words; empty if all are."""
    stage = STAGES[NEEDED[place]].lower()
    if place not in confirmed:
        return "interventions and readings were not both measured"
    if depth < FEWEST_LAYERS:
        return f"{depth} layers are too few to tell a step from smooth change: expected at least {FEWEST_LAYERS}"
    if found <= 0:
        return "the interventions show no step in its direction"
    if confirmed[place] > LEVEL:
        return f"the readings do not confirm a step beyond smooth change (p = {confirmed[place]:.2g})"
    if others[place] > LEVEL:
        return f"{100 * others[place]:.0f} % of random hypotheses fit as well"
    if holds.get(NEEDED[place]) != SUPPORTED:
        return f"the defining signature of {stage} is not supported"
    return ""


def _transition(
    place: int,
    layer: int | None,
    named: bool,
    reason: str,
    p: tuple[float | None, float | None],
    defining: str,
    again: Resampled | None,
    depth: int,
) -> Transition:
    low = high = absent = None
    places: list[float] = []
    if again is not None and layer is not None:
        low, high, absent, places = again.summary(place, depth, defining == SUPPORTED and depth >= FEWEST_LAYERS)
        if not named:  # the interval of a place that may not exist covers too rarely (benchmarks/stages)
            low = high = None
    before, after = TRANSITIONS[place]
    return Transition(
        before=before,
        after=after,
        named=named,
        reason=reason,
        layer=layer,
        low=low,
        high=high,
        absent=absent,
        places=places,
        p_readings=p[0],
        p_hypotheses=p[1],
        defining=defining,
    )

"""Stages of inference (E12): found from the measured signals, and named only where the signals support it.

Described in docs/stages.md. A transition of the hypothesis is named where readings confirm, against signals that only change
smoothly, what interventions found; where few other hypotheses fit as well; and where the stage's defining signature holds.
Everything else is reported as what it is: a step without a name, drift, or too few layers to tell.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from depthscope.schema.found_stages import (
    Boundary,
    DepthShape,
    SignatureVerdict,
    Stage,
    Stages,
    StageSignal,
    Structure,
    Transition,
)
from depthscope.schema.stages import (
    FEWEST_LAYERS,
    FURTHEST,
    LEVEL,
    NOT_NAMED,
    SIGNALS,
    STAGES,
    SUPPORTED,
    TRANSITIONS,
)
from depthscope.stages.compare import OMNIBUS_LEVEL, SEED, compare
from depthscope.stages.edges import edges
from depthscope.stages.signals import ResampledLayers, signals
from depthscope.stages.signatures import verdicts
from depthscope.stages.transitions import NULLS, Interior
from depthscope.statistics.held_out_layers import shapes
from depthscope.statistics.smooth_steps import TO_SPREAD, despiked

NAME = "stages"
FEWEST_COMPARED = 8
"""With fewer layers the smooth curve alone explains the signals."""
FEWEST_SIGNALS = 3


def find_stages(measured: ResampledLayers) -> Stages:
    """Stages, boundaries, transitions, signals, signatures, method: the content of RUN/stages.json."""
    rows = signals(measured)
    tested = verdicts(measured)
    compared = [name for name, values in rows.items() if not _flat(name, values[0])]
    reason = _too_little(measured, compared)
    structure, transitions, boundaries, unnamed = None, [], [], []
    curves: list[DepthShape] = []
    if reason is None:
        holds = {one.stage: one.verdict for one in tested if one.defining}
        found = compare({name: rows[name] for name in compared}, measured.depth, measured.documents, holds)
        structure, transitions = found.structure, found.transitions
        boundaries = [_boundary(one, found.interior, found.own) for one in transitions if one.named]
        if structure.beyond_smooth and all(abs(one.layer - structure.layer) > 1 for one in boundaries):
            unnamed = [_unnamed(structure)]
        curves = _shapes(found.own)
    stages = _stages(boundaries, measured.depth, tested)
    return Stages(
        found=bool(boundaries),
        summary=_summary(structure, transitions, stages, reason, measured.depth),
        layers=measured.depth,
        structure=structure,
        shapes=curves,
        transitions=transitions,
        edges=edges(rows, measured.values),
        stages=stages,
        boundaries=boundaries,
        unnamed_changes=unnamed,
        signals=[_signal(name, values[0], reason is None) for name, values in rows.items()],
        signatures=tested,
        method={
            "documents": measured.documents,
            "level": LEVEL,
            "level_of_structure": OMNIBUS_LEVEL,
            "fewest_layers": FEWEST_LAYERS,
            "null_signals": NULLS,
            "seed": SEED,
        },
    )


def _too_little(measured: ResampledLayers, compared: Sequence[str]) -> str | None:
    """Why the signals are not compared, if they are not."""
    if measured.depth < FEWEST_COMPARED:
        return (
            f"{measured.depth} layers are too few to compare with a smooth curve: expected at least {FEWEST_COMPARED}"
        )
    if "lens.loss" in measured.values:
        loss = float(measured.values["lens.loss"][0, -1])
        if loss >= measured.token_entropy:
            return (
                f"the model predicts this text no better than token frequencies do (loss {loss:.2f} nats, frequencies "
                f"{measured.token_entropy:.2f}), so there is no inference to divide"
            )
    if len(compared) < FEWEST_SIGNALS:
        return (
            f"only {len(compared)} signals were measured that are not flat ({', '.join(compared) or 'none'}): expected at "
            f"least {FEWEST_SIGNALS}"
        )
    if "lens.loss" not in measured.values:
        return "the lens was not measured, so it is unknown whether the model predicts anything"
    return None


def _boundary(one: Transition, interior: Interior, own: Float64[np.ndarray, "layers signals"]) -> Boundary:
    assert one.layer is not None, "a named transition has a place"
    place = TRANSITIONS.index((one.before, one.after))
    less = interior.without_each(own, place)
    return Boundary(
        layer=one.layer,
        low=one.low,
        high=one.high,
        support=one.places[one.layer] if one.places else None,
        without_one=[min(one.layer, *less), max(one.layer, *less)],
        votes=interior.alone(own, place),
        before=one.before,
        after=one.after,
    )


def _unnamed(structure: Structure) -> Boundary:
    return Boundary(
        layer=structure.layer, low=None, high=None, support=None, without_one=None, votes={}, before=None, after=None
    )


def _stages(boundaries: Sequence[Boundary], depth: int, tested: Sequence[SignatureVerdict]) -> list[Stage]:
    """Contiguous layers between named transitions; where one was not found, several stages share an entry."""
    if not boundaries:
        return []
    names = list(STAGES)
    defined = {one.stage for one in tested if one.defining and one.verdict == SUPPORTED}
    found, first, stage = [], 0, 0
    for stop, last in [(one.layer, names.index(str(one.before))) for one in boundaries] + [(depth, len(names) - 1)]:
        members = names[stage : last + 1]
        known = len(members) > 1 or members[0] in defined
        signatures = [verdict for verdict in tested if verdict.stage in members]
        found.append(
            Stage(
                name="+".join(members) if known else NOT_NAMED,
                title=" + ".join(STAGES[name].lower() if i else STAGES[name] for i, name in enumerate(members))
                if known
                else "Not named",
                first=first,
                last=stop - 1,
                signatures=len(signatures),
                supported=sum(verdict.verdict == SUPPORTED for verdict in signatures),
            )
        )
        first, stage = stop, last + 1
    return found


def _shapes(own: Float64[np.ndarray, "layers signals"]) -> list[DepthShape]:
    found = shapes(own)
    best = min(found, key=lambda shape: shape.error)
    count = np.sqrt(len(own))
    return [
        DepthShape(
            title=shape.title,
            smooth=shape.smooth,
            error=shape.error,
            worse=shape.error - best.error,
            standard_error=float((shape.errors - best.errors).std(ddof=1) / count),
        )
        for shape in found
    ]


def _flat(name: str, values: Float64[np.ndarray, " layers"]) -> bool:
    """Whether it hardly varies between the ends, single catastrophic layers aside."""
    inner = values[1:-1, None]
    return len(inner) > 1 and bool(despiked(inner).std() < SIGNALS[name].smallest)


def _signal(name: str, values: Float64[np.ndarray, " layers"], compared: bool) -> StageSignal:
    """As measured, and for display in robust spreads from its median over layers, clipped."""
    signal = SIGNALS[name]
    away = values - np.median(values)
    spread = max(TO_SPREAD * float(np.median(np.abs(away))), signal.smallest)
    return StageSignal(
        name=name,
        title=signal.title,
        unit=signal.unit,
        sentence=signal.sentence,
        flat=_flat(name, values),
        values=values.tolist(),
        standardised=np.clip(away / spread, -FURTHEST, FURTHEST).tolist() if compared else None,
    )


def _summary(
    structure: Structure | None,
    transitions: Sequence[Transition],
    stages: Sequence[Stage],
    reason: str | None,
    depth: int,
) -> str:
    if structure is None:
        return f"No stages found: {reason}."
    if not stages:
        if depth < FEWEST_LAYERS:
            return (
                f"No stages found: {depth} layers are too few to tell stages from smooth change with depth; "
                f"expected at least {FEWEST_LAYERS}."
            )
        if structure.beyond_smooth:
            return (
                f"No stages found: the signals step before layer {structure.layer} (p = {structure.p:.2g}), which matches no "
                "transition of the hypothesis."
            )
        return f"No stages found: the signals show no step beyond smooth change with depth (p = {structure.p:.2g})."
    named = [one for one in transitions if one.named]
    missing = [f"{STAGES[one.before]} to {STAGES[one.after].lower()}" for one in transitions if not one.named]
    count = f"{len(named)} of the hypothesis's three transitions {'is' if len(named) == 1 else 'are'} found"
    return f"{count}: {_listed(stages)}." + (f" Not found: {'; '.join(missing)}." if missing else "")


def _listed(stages: Sequence[Stage]) -> str:
    return ", ".join(
        f"{stage.title.lower()} in layer"
        + (f" {stage.first}" if stage.first == stage.last else f"s {stage.first} to {stage.last}")
        for stage in stages
    )

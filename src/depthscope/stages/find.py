"""Stages of inference (E12): found from the measured signals, and named only where the signals support it.

Four steps, described in docs/stages.md: the signals, each standardised over layers; where they change together, and how many
such changes exceed chance; which of the hypothesis's transitions each change is, by the direction in which its signals move;
and each signature of the paper's table 1 as a test. A change that is not a transition gets no name, and where a transition is
not found the stages on both sides are not distinguished.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float64
from scipy import stats

from depthscope.schema.found_stages import Boundary, SignatureVerdict, Stage, Stages, StageSignal
from depthscope.schema.stages import FURTHEST, SIGNALS, STAGES, SUPPORTED, TRANSITIONS
from depthscope.stages.signals import Layers, ResampledLayers, signals
from depthscope.stages.signatures import FEWEST_DOCUMENTS, verdicts
from depthscope.statistics.change_points import choose, segment

NAME = "stages"
FEWEST_LAYERS = 6
FEWEST_SIGNALS = 3

Matrix = Float64[np.ndarray, "rows layers signals"]


@dataclass(frozen=True, slots=True)
class Change:
    """Signals change between layers `layer − 1` and `layer`; `transition` is its place in TRANSITIONS, if it is one."""

    layer: int
    low: int | None
    high: int | None
    support: float | None
    without_one: tuple[int, int]
    transition: int | None
    votes: dict[str, int | None]


def find_stages(measured: ResampledLayers) -> Stages:
    """Stages, boundaries with intervals and votes, signals, signatures, method: the content of RUN/stages.json."""
    rows = signals(measured)
    tested = verdicts(measured)
    reason = _too_little(measured, rows)
    if reason is None:
        matrix = _standardised(rows)
        choice = choose(matrix[0], len(TRANSITIONS))
        changes = _changes(measured, rows, matrix, choice.changes)
        gaps, deviations = choice.gaps, choice.deviations
    else:
        matrix, changes, gaps, deviations = None, [], (), ()
    named = [change for change in changes if change.transition is not None]
    stages = _stages(named, measured.depth, tested)
    return Stages(
        found=bool(named),
        summary=_summary(named, changes, stages, reason),
        layers=measured.depth,
        stages=stages,
        boundaries=[_boundary(change) for change in named],
        unnamed_changes=[_boundary(change) for change in changes if change.transition is None],
        signals=[_signal(name, rows, matrix, place) for place, name in enumerate(rows)],
        signatures=tested,
        method={"gaps": list(gaps), "gap_deviations": list(deviations), "documents": measured.documents},
    )


def _too_little(measured: ResampledLayers, rows: dict[str, Layers]) -> str | None:
    if measured.depth < FEWEST_LAYERS:
        return f"{measured.depth} layers are too few to distinguish four stages: expected at least {FEWEST_LAYERS}"
    if len(rows) < FEWEST_SIGNALS:
        return (
            f"only {len(rows)} signals were measured ({', '.join(rows) or 'none'}): expected at least {FEWEST_SIGNALS}"
        )
    if "lens.loss" not in measured.values:
        return "the lens was not measured, so it is unknown whether the model predicts anything"
    loss = float(measured.values["lens.loss"][0, -1])
    if loss >= measured.token_entropy:
        return (
            f"the model predicts this text no better than token frequencies do (loss {loss:.2f} nats, frequencies "
            f"{measured.token_entropy:.2f}), so there is no inference to divide"
        )
    return None


def _standardised(rows: dict[str, Layers]) -> Matrix:
    """Each signal minus its median over layers, in robust spreads, clipped at ±FURTHEST.

    The spread is the median absolute deviation, scaled to a standard deviation, or the signal's `smallest` if that is larger.
    Clipped because one catastrophic layer is one change: it must not drown out the others.
    """
    columns = []
    count = max(len(values) for values in rows.values())
    for name, values in rows.items():
        scale = max(_spread(values[0]), SIGNALS[name].smallest)
        away = (values - np.median(values, axis=1, keepdims=True)) / scale
        columns.append(np.broadcast_to(np.clip(away, -FURTHEST, FURTHEST), (count, values.shape[1])))
    return np.stack(columns, 2)


def _spread(values: Float64[np.ndarray, " layers"]) -> float:
    """Median absolute deviation divided by that of a standard normal distribution."""
    return float(stats.median_abs_deviation(values) / stats.norm.ppf(0.75))


def _changes(measured: ResampledLayers, rows: dict[str, Layers], matrix: Matrix, count: int) -> list[Change]:
    bounds = segment(matrix[0], count)
    kept = [np.delete(matrix[0], i, axis=1) for i in range(matrix.shape[2])]
    without_one = np.array([segment(less, count) for less in kept])
    resampled = None
    if measured.documents >= FEWEST_DOCUMENTS:
        resampled = np.array([segment(replicate, count) for replicate in matrix[1:] if np.isfinite(replicate).all()])
    own = {name: values[0] for name, values in rows.items()}
    named = _transitions(own, bounds)
    changes = []
    for place, layer in enumerate(bounds):
        low = high = support = None
        if resampled is not None:
            low, high = (int(q) for q in np.quantile(resampled[:, place], (0.025, 0.975), method="closest_observation"))
            support = float((resampled[:, place] == layer).mean())
        around = ((0, *bounds)[place], (*bounds, measured.depth)[place + 1])
        votes = _votes(own, around, named[place])
        spread = (int(without_one[:, place].min()), int(without_one[:, place].max()))
        changes.append(Change(layer, low, high, support, spread, named[place], votes))
    return changes


def _transitions(own: dict[str, Any], bounds: Sequence[int]) -> list[int | None]:
    """Which transition each change is: of all ways to name changes in order, the one with the most evidence in total."""
    best: tuple[float, list[int | None]] = (0.0, [None] * len(bounds))
    for count in range(1, min(len(bounds), len(TRANSITIONS)) + 1):
        for places in combinations(range(len(bounds)), count):
            for transitions in combinations(range(len(TRANSITIONS)), count):
                evidence = [_evidence(own, bounds, p, t) for p, t in zip(places, transitions, strict=True)]
                if min(evidence) > 0 and sum(evidence) > best[0]:
                    names: list[int | None] = [None] * len(bounds)
                    for place, transition in zip(places, transitions, strict=True):
                        names[place] = transition
                    best = (sum(evidence), names)
    return best[1]


def _evidence(own: dict[str, Any], bounds: Sequence[int], place: int, transition: int) -> float:
    """Mean step of the transition's signals in its direction at a change, in spreads; 0 unless more than half of them step.

    A step is the difference between the means of the segments on both sides. It counts if it is at least `smallest`.
    """
    start, layer, stop = (0, *bounds)[place], bounds[place], (*bounds, len(next(iter(own.values()))))[place + 1]
    steps, counted = [], 0
    for name, values in own.items():
        direction = SIGNALS[name].directions.get(transition)
        if direction is not None:
            step = direction * (values[layer:stop].mean() - values[start:layer].mean())
            counted += step >= SIGNALS[name].smallest
            steps.append(step / max(values.std(), SIGNALS[name].smallest))
    return float(np.mean(steps)) if steps and 2 * counted > len(steps) and np.mean(steps) > 0 else 0.0


def _votes(own: dict[str, Any], around: tuple[int, int], transition: int | None) -> dict[str, int | None]:
    """Where each of the transition's signals, alone, changes between the neighbouring changes; None if not in its direction."""
    start, stop = around
    votes: dict[str, int | None] = {}
    for name, values in own.items():
        direction = SIGNALS[name].directions.get(-1 if transition is None else transition)
        if direction is None:
            continue
        (place,) = segment(values[start:stop, None], 1)
        step = direction * (values[start + place : stop].mean() - values[start : start + place].mean())
        votes[name] = start + place if step >= SIGNALS[name].smallest else None
    return votes


def _stages(named: Sequence[Change], depth: int, tested: Sequence[SignatureVerdict]) -> list[Stage]:
    """Contiguous layers between named changes; where a transition was not found, several stages share an entry."""
    if not named:
        return []
    ends = [(change.layer, change.transition) for change in named] + [(depth, len(TRANSITIONS))]
    names = list(STAGES)
    found, first, stage = [], 0, 0
    for stop, transition in ends:
        assert transition is not None, "a named change is a transition"
        members = names[stage : transition + 1]
        signatures = [verdict for verdict in tested if verdict.stage in members]
        found.append(
            Stage(
                name="+".join(members),
                title=" + ".join(STAGES[name].lower() if i else STAGES[name] for i, name in enumerate(members)),
                first=first,
                last=stop - 1,
                signatures=len(signatures),
                supported=sum(verdict.verdict == SUPPORTED for verdict in signatures),
            )
        )
        first, stage = stop, transition + 1
    return found


def _boundary(change: Change) -> Boundary:
    before, after = TRANSITIONS[change.transition] if change.transition is not None else (None, None)
    return Boundary(
        layer=change.layer,
        low=change.low,
        high=change.high,
        support=change.support,
        without_one=list(change.without_one),
        votes=change.votes,
        before=before,
        after=after,
    )


def _signal(name: str, rows: dict[str, Layers], matrix: Matrix | None, place: int) -> StageSignal:
    signal = SIGNALS[name]
    return StageSignal(
        name=name,
        title=signal.title,
        unit=signal.unit,
        sentence=signal.sentence,
        flat=bool(rows[name][0].std() < signal.smallest),
        values=rows[name][0].tolist(),
        standardised=None if matrix is None else matrix[0, :, place].tolist(),
    )


def _summary(named: Sequence[Change], changes: Sequence[Change], stages: Sequence[Stage], reason: str | None) -> str:
    if reason is not None:
        return f"No stages found: {reason}."
    if not named:
        what = f"{len(changes)} changes that are not transitions of the hypothesis" if changes else "no change"
        return f"No stages found: the signals over layers show {what} beyond what chance would give."
    missing = [
        f"{STAGES[a]} to {STAGES[b].lower()}"
        for i, (a, b) in enumerate(TRANSITIONS)
        if i not in {c.transition for c in named}
    ]
    count = len(named)
    found = f"{count} of the hypothesis's three transitions {'is' if count == 1 else 'are'} found: {_listed(stages)}."
    return found + (f" Not found: {'; '.join(missing)}." if missing else "")


def _listed(stages: Sequence[Stage]) -> str:
    return ", ".join(
        f"{stage.title.lower()} in layer"
        + (f" {stage.first}" if stage.first == stage.last else f"s {stage.first} to {stage.last}")
        for stage in stages
    )

"""Each transition of the hypothesis over several models: its relative depth, and in how many models it is established."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from depthscope.report.section import TextTable
from depthscope.report.sections.stage_map import stage_title
from depthscope.schema.found_stages import Stages, Transition
from depthscope.schema.stages import LEVEL, TRANSITIONS
from depthscope.statistics.partial_conjunction import most

FEWEST_MODELS = 3
"""Fewer give no interval of the mean over models."""


@dataclass(frozen=True, slots=True)
class Spread:
    """A transition's relative depth in the models tested for it, and in at least how many of them it is established."""

    depths: tuple[float, ...]
    established: int

    @property
    def mean(self) -> float:
        """Mean over models."""
        return float(np.mean(self.depths))

    @property
    def deviation(self) -> float | None:
        """Standard deviation between models; None for one model."""
        return float(np.std(self.depths, ddof=1)) if len(self.depths) > 1 else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """95% interval of the mean over models, the unit of replication: Student's t. None for fewer than FEWEST_MODELS."""
        count = len(self.depths)
        if self.deviation is None or count < FEWEST_MODELS:
            return None
        half = self.deviation / np.sqrt(count) * stats.t.ppf(0.975, count - 1)
        return float(self.mean - half), float(self.mean + half)


def spread(found: Sequence[Stages], before: str, after: str) -> Spread | None:
    """The transition over models; None if no model was tested for it.

    A model's p-value is the larger of its two, so that a model counts only where both tests agree.
    """
    tested = [
        (one.layer / model.layers, max(one.p_readings, one.p_hypotheses))
        for model in found
        for one in model.transitions
        if (one.before, one.after) == (before, after) and one.layer is not None
        if one.p_readings is not None and one.p_hypotheses is not None
    ]
    if not tested:
        return None
    depths, p_values = zip(*tested, strict=True)
    return Spread(depths, most(p_values, LEVEL))


def transition_table(found: Sequence[tuple[str, Stages]]) -> TextTable:
    """A row per transition, a column per model, then the spread between models."""
    rows = []
    for before, after in TRANSITIONS:
        over = spread([stages for _, stages in found], before, after)
        cells = [_cell(stages, before, after) for _, stages in found]
        rows.append((f"{stage_title(before)} → {stage_title(after).lower()}", *cells, *_over(over)))
    head = ("Transition", *(title for title, _ in found), "Relative depth of the best place", "Established in")
    return TextTable(title="The transitions, model by model", head=head, rows=rows, words=True)


def transitions_said(found: Sequence[Stages]) -> list[str]:
    """In how many models each transition is established, in a sentence each."""
    said = []
    for before, after in TRANSITIONS:
        over = spread(found, before, after)
        if over is None or len(over.depths) < 2:
            continue
        count = f"at least {over.established} of {len(over.depths)} models" if over.established else "no model"
        said.append(
            f"{stage_title(before)} to {stage_title(after).lower()}: established in {count} "
            f"(partial conjunction, level {100 * LEVEL:g} %)."
        )
    return said


def _cell(stages: Stages, before: str, after: str) -> tuple[str, str]:
    one = next((one for one in stages.transitions if (one.before, one.after) == (before, after)), None)
    if one is None:
        return "–", "not tested"
    place = "–" if one.layer is None else f"layer {one.layer} of {stages.layers}"
    return ("named" if one.named else "not named", f"{place}{_absent(one)}")


def _absent(one: Transition) -> str:
    return "" if one.absent is None else f", absent in {100 * one.absent:.0f} %"


def _over(over: Spread | None) -> tuple[str | tuple[str, str], str]:
    if over is None:
        return "–", "–"
    around = "" if over.interval is None else "95% interval {:.2f} to {:.2f}".format(*over.interval)
    scatter = "" if over.deviation is None else f" ± {over.deviation:.2f} between models"
    return (f"{over.mean:.2f}{scatter}", around), f"at least {over.established} of {len(over.depths)}"

"""Precision as the goal of a sweep: the text is read until every mean KL is known well enough.

Documents are read whole and in a random order that belongs to the run's settings. After each work unit that ends a document
the confidence sequence of every row of the sweep (an edit at a layer) is looked at, from the shards in order. The run stops
when each lies within the goal, a share of its mean, or wholly under the noise floor of the run's dtype: a KL that rounding
alone would give is not worth more text. Such a run is resumed like any other, and one that stopped goes on for a finer goal.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float64

from depthscope.data.corpus import Corpus
from depthscope.data.windows import Windows
from depthscope.errors import RunError
from depthscope.experiments.sweep import Sweep, summed
from depthscope.measure.confidence_sequence import FEWEST, TIGHTEST, ConfidenceSequence
from depthscope.measure.estimate import Estimate
from depthscope.run.store import RunDirectory
from depthscope.schema.precision import PRECISION_TABLE
from depthscope.schema.sweep import BASELINE_EDIT, KL, MEASURED

NAME = "precision"
PAPER_TOKENS = 1_000_000
"""What the paper measured every model on; without `--tokens` no more is read."""
ORDER_SEED = 0
"""Of the order in which documents are read."""


def longest_text(corpus: Corpus) -> Corpus:
    """The corpus with the most that is read of it."""
    return replace(corpus, tokens=_most(corpus))


def _most(corpus: Corpus) -> int:
    return PAPER_TOKENS if corpus.tokens is None else corpus.tokens


def aims(precision: float, windows: Windows) -> dict[str, Any]:
    """What stands in a run's settings in place of the number of tokens, which is a result then."""
    return {NAME: precision, "most_tokens": windows.tokens, "document_order_seed": ORDER_SEED}


class PrecisionGoal:
    """How precise a sweep is, from its shards one after the other, and whether that is enough. Constant size.

    `precision` is the largest half-width as a share of the mean, `windows` are all there are, in the order they are read,
    `noise_floor` is in nats (None where it is not known).
    """

    def __init__(self, precision: float, sweep: Sweep, windows: Windows, noise_floor: float | None) -> None:
        self.precision, self.noise_floor = precision, noise_floor
        self.windows, self.rows = windows, sweep.rows
        self.places = [place for place, (edit, _) in enumerate(sweep.rows.names) if edit != BASELINE_EDIT]
        self.sequence = ConfidenceSequence(len(self.places))
        self._lengths = {document: count * windows.length for document, count in windows.per_document()}
        self._begun = 0
        self._sums = np.zeros(len(self.places))

    def met_with(self, shard: pl.DataFrame) -> bool:
        """Whether to stop after this, the next shard of the sweep."""
        self.add(shard)
        return self.met

    def add(self, shard: pl.DataFrame) -> None:
        """Count the next shard of the sweep. A document counts when it is there to its end."""
        kl = MEASURED.index(KL)
        for part in self.rows.documents(summed([shard], self.windows.length)):
            self._begun += part.tokens
            self._sums = self._sums + part.sums[kl, self.places]
            if self._begun == self._lengths[part.document]:
                self.sequence.add(self._begun, self._sums)
                self._begun, self._sums = 0, np.zeros(len(self.places))

    @property
    def met(self) -> bool:
        """Whether to stop here: all rows are precise enough, and no document has only begun."""
        if self._begun or self.sequence.moments.documents < FEWEST:
            return False
        return bool(self._enough(self.sequence.estimate()).all())

    def table(self) -> pl.DataFrame:
        """PRECISION_TABLE as it stands."""
        found = self.sequence.estimate()
        low = np.maximum(found.low, 0)  # NaN stays NaN
        edits, layers = zip(*(self.rows.names[place] for place in self.places), strict=True)
        columns = {
            "edit": edits,
            "layer": layers,
            "mean": found.mean,
            "ci_low": low,
            "ci_high": found.high,
            "half_width_relative": _relative(found),
            "under_noise_floor": self._under_floor(found),
            "documents": [found.documents] * len(edits),
            "tokens": [found.tokens] * len(edits),
        }
        numbers = ("ci_low", "ci_high", "half_width_relative")
        return pl.DataFrame(columns, schema=PRECISION_TABLE).with_columns(pl.col(numbers).fill_nan(None))

    def outcome(self, corpus: Corpus) -> dict[str, Any]:
        """What run.json says of the goal: whether it was reached, with how much, and how far each row is that missed it.

        `corpus` says the most that was to be read; it may have ended before.
        """
        found = self.sequence.estimate()
        enough, relative, under = self._enough(found), _relative(found), self._under_floor(found)
        known = np.where(np.isnan(relative) | under, -np.inf, relative)
        widest_first = [int(place) for place in np.argsort(-known, kind="stable")]
        rows = [(*self.rows.names[self.places[i]], float(known[i])) for i in widest_first if np.isfinite(known[i])]
        widest = rows[0][2] if rows else None
        return {
            "goal": self.precision,
            "reached": self.met,
            "tokens": found.tokens,
            "documents": found.documents,
            "text_ended": self.windows.tokens < _most(corpus),
            "rows": len(self.places),
            "rows_reached": int(enough.sum()),
            "rows_under_noise_floor": int(under.sum()),
            "widest": _row(rows[0]) if rows else None,
            "missed": [_row(row) for row in rows if row[2] > self.precision],
            "paper_tokens": PAPER_TOKENS,
            "projected_at_paper_tokens": widest and widest * (found.tokens / PAPER_TOKENS) ** 0.5,
            "fewest_documents": FEWEST,
            "tightest_documents": TIGHTEST,
        }

    def _enough(self, found: Estimate) -> np.ndarray:
        return self._under_floor(found) | (found.high - found.mean <= self.precision * found.mean)

    def _under_floor(self, found: Estimate) -> np.ndarray:
        return found.high <= (-np.inf if self.noise_floor is None else self.noise_floor)


def _relative(found: Estimate) -> Float64[np.ndarray, " columns"]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(found.high == found.mean, 0.0, (found.high - found.mean) / found.mean)


def _row(row: tuple[str, int, float]) -> dict[str, Any]:
    return dict(zip(("edit", "layer", "half_width_relative"), row, strict=True))


def comparable(settings: dict[str, Any], out: str | Path, asked: Iterable[str]) -> dict[str, Any]:
    """The settings as they can be compared with those of the run that may be at `out`.

    Its number of tokens is a result, so it is taken over; and so is its goal where it is coarser, because the run can go on
    to a finer one. Then all it has must be asked for again (`asked` are the names), or its tables would be of different
    texts: raises RunError saying what is missing.
    """
    try:
        run = RunDirectory.reading(out)
    except RunError:  # none there, or none that can be resumed, which opening it says
        return settings
    goal = run.settings.get(NAME)
    if goal is None:
        return settings
    taken = {"tokens": run.settings["tokens"]} if "tokens" in run.settings else {}
    if goal > settings[NAME]:
        has = [*run.settings.get("experiments", {}), *(["stages"] if run.read_json("stages") else [])]
        if missing := sorted(set(has) - set(asked)):
            raise RunError(
                f"{out} holds a run with the precision {goal}, which can go on to {settings[NAME]} if all it has is asked for "
                f"again, so that all of it is of the same text: add {', '.join(missing)}, or give another --out"
            )
        taken[NAME] = goal
    return {**settings, **taken}


def take_up(run: RunDirectory, goal: float) -> None:
    """Let a run that has a coarser goal go on to this one: nothing of it is finished, and its shards stay."""
    if run.settings[NAME] != goal:
        run.settings[NAME] = goal
        run.settings.pop("tokens", None)
        run.manifest.pop(NAME, None)
        run.update(finished=[])


def record(run: RunDirectory, goal: PrecisionGoal, corpus: Corpus, text: Mapping[str, Any]) -> None:
    """Note in the run where it stopped: `text` are the facts about the text as far as it was read."""
    run.settings["tokens"] = goal.sequence.moments.tokens
    run.update(text=text, precision=goal.outcome(corpus))
    run.write_table(NAME, goal.table())

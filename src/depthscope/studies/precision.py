"""Precision as the goal of a sweep or a map: text is read until every mean KL is known precisely enough.

Documents are read whole and in a random order that is part of the run's settings. After each work unit that ends a document,
the confidence sequence of every row (an edit at a layer, a cell of a map) is checked, from the shards in order. The run stops
when each interval lies within the goal, a share of its mean, or entirely below the noise floor of the run's dtype: a KL that
rounding alone would produce is not worth more text. Such a run is resumed like any other, and can be refined to a finer goal
after it has stopped.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Float64

from depthscope.data.corpus import Corpus
from depthscope.data.windows import Windows
from depthscope.errors import RunError
from depthscope.experiments.experiment import Aimed
from depthscope.run.store import STAGES, RunDirectory
from depthscope.schema.manifest import PrecisionOutcome, Settings, TextEntry, Width
from depthscope.schema.precision import PRECISION_TABLE
from depthscope.schema.sweep import EXPERIMENT as SWEEP
from depthscope.schema.sweep import KL
from depthscope.statistics.confidence_sequence import FEWEST, TIGHTEST, ConfidenceSequence
from depthscope.statistics.estimate import Estimate

NAME = "precision"
PAPER_TOKENS = 1_000_000
"""The number of tokens the paper measured every model on; without `--tokens`, reading stops there."""
ORDER_SEED = 0
"""Seed of the order in which documents are read."""


def longest_text(corpus: Corpus) -> Corpus:
    """The corpus, limited to the largest amount that is read."""
    return replace(corpus, tokens=_most(corpus))


def _most(corpus: Corpus) -> int:
    return PAPER_TOKENS if corpus.tokens is None else corpus.tokens


def with_goal(settings: Settings, precision: float, aimed: str) -> Settings:
    """The settings of a run with a goal for the experiment `aimed`.

    They limit the number of tokens, and the number actually read is a result.
    """
    of = None if aimed == SWEEP.name else aimed
    most = settings.tokens
    return replace(
        settings, tokens=None, precision=precision, precision_of=of, most_tokens=most, document_order_seed=ORDER_SEED
    )


def aim_of(readings: Iterable[Any]) -> Aimed | None:
    """The reading that a goal is about: the sweep, or else the first other that can be aimed at."""
    aimed = [reading for reading in readings if isinstance(reading, Aimed)]
    return next((one for one in aimed if one.name == SWEEP.name), aimed[0] if aimed else None)


class PrecisionGoal:
    """How precise the KL of a reading is, from its shards in sequence, and whether that is enough. Constant size.

    `precision` is the largest half-width as a share of the mean, `windows` are all windows in reading order, `noise_floor` is
    in nats (None if unknown).
    """

    def __init__(self, precision: float, aimed: Aimed, windows: Windows, noise_floor: float | None) -> None:
        self.precision, self.noise_floor = precision, noise_floor
        self.windows, self.aimed = windows, aimed
        self.places, self.names = list(aimed.aims), list(aimed.aims.values())
        self.sequence = ConfidenceSequence(len(self.places))
        self._lengths = {document: count * windows.length for document, count in windows.per_document()}
        self._begun = 0
        self._sums = np.zeros(len(self.places))

    def met_with(self, shard: pl.DataFrame) -> bool:
        """Whether to stop after the next shard of the reading, which is given."""
        self.add(shard)
        return self.met

    def add(self, shard: pl.DataFrame) -> None:
        """Add the next shard of the reading. A document counts once it is complete."""
        kl = [metric.name for metric in self.aimed.metrics].index(KL.name)
        for part in self.aimed.documents([shard]):
            self._begun += int(part.tokens[0])  # all rows are measured on all tokens
            self._sums = self._sums + part.sums[kl, self.places]
            if self._begun == self._lengths[part.document]:
                self.sequence.add(self._begun, self._sums)
                self._begun, self._sums = 0, np.zeros(len(self.places))

    @property
    def met(self) -> bool:
        """Whether to stop here: all rows are precise enough, and no document is incomplete."""
        if self._begun or self.sequence.moments.documents < FEWEST:
            return False
        return bool(self._enough(self.sequence.estimate()).all())

    def table(self) -> pl.DataFrame:
        """The current PRECISION_TABLE."""
        found = self.sequence.estimate()
        low = np.maximum(found.low, 0)  # NaN stays NaN
        edits, layers, others = zip(*self.names, strict=True)
        columns = {
            "edit": edits,
            "layer": layers,
            "other": others,
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

    def outcome(self, corpus: Corpus) -> PrecisionOutcome:
        """What run.json records about the goal: whether it was reached, with how much text, and how wide the other rows are.

        `corpus` has the largest amount that should be read; the text may have ended before.
        """
        found = self.sequence.estimate()
        tokens, documents = int(found.tokens), int(found.documents)
        enough, relative, under = self._enough(found), _relative(found), self._under_floor(found)
        known = np.where(np.isnan(relative) | under, -np.inf, relative)
        widest_first = [int(place) for place in np.argsort(-known, kind="stable")]
        rows = [self._width(i, float(known[i])) for i in widest_first if np.isfinite(known[i])]
        widest = rows[0].half_width_relative if rows else None
        return PrecisionOutcome(
            goal=self.precision,
            reached=self.met,
            tokens=tokens,
            documents=documents,
            text_ended=self.windows.tokens < _most(corpus),
            rows=len(self.places),
            rows_reached=int(enough.sum()),
            rows_under_noise_floor=int(under.sum()),
            widest=rows[0] if rows else None,
            missed=[row for row in rows if row.half_width_relative > self.precision],
            paper_tokens=PAPER_TOKENS,
            projected_at_paper_tokens=widest and widest * (tokens / PAPER_TOKENS) ** 0.5,
            fewest_documents=FEWEST,
            tightest_documents=TIGHTEST,
        )

    def _width(self, row: int, share: float) -> Width:
        edit, layer, other = self.names[row]
        return Width(edit=edit, layer=layer, other=None if other == layer else other, half_width_relative=share)

    def _enough(self, found: Estimate) -> np.ndarray:
        return self._under_floor(found) | (found.high - found.mean <= self.precision * found.mean)

    def _under_floor(self, found: Estimate) -> np.ndarray:
        return found.high <= (-np.inf if self.noise_floor is None else self.noise_floor)


def _relative(found: Estimate) -> Float64[np.ndarray, " columns"]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(found.high == found.mean, 0.0, (found.high - found.mean) / found.mean)


def comparable(settings: Settings, out: str | Path, asked: Iterable[str]) -> Settings:
    """The settings in a form that can be compared with those of a run at `out`, if there is one.

    That run's number of tokens is a result, so it is copied; so is its goal if it is coarser, because the run can be refined
    to a finer one. Then all its experiments must be requested again (`asked` are the names), or its tables would cover
    different texts: raises RunError that lists what is missing.
    """
    try:
        run = RunDirectory.reading(out)
    except RunError:  # there is none, or it cannot be resumed, which opening it reports
        return settings
    goal, asked_for = run.settings.precision, settings.precision
    assert asked_for is not None
    if goal is None:
        return settings
    taken = replace(settings, tokens=run.settings.tokens)
    if goal > asked_for:
        has = [*run.settings.experiments, *(["stages"] if (run.path / STAGES).exists() else [])]
        if missing := sorted(set(has) - set(asked)):
            raise RunError(
                f"{out} holds a run with the precision {goal}, which can be refined to {asked_for} if all its experiments are "
                f"requested again, so that all tables cover the same text: add {', '.join(missing)}, or give another --out"
            )
        taken = replace(taken, precision=goal)
    return taken


def take_up(run: RunDirectory, goal: float) -> None:
    """Let a run with a coarser goal continue to this one: its experiments become unfinished, and its shards stay."""
    if run.settings.precision != goal:
        run.update(settings=replace(run.settings, precision=goal, tokens=None), precision=None, finished=[])


def record(run: RunDirectory, goal: PrecisionGoal, corpus: Corpus, text: TextEntry) -> None:
    """Record in the run where it stopped: `text` describes the text that was read."""
    settings = replace(run.settings, tokens=goal.sequence.moments.tokens)
    run.update(settings=settings, text=text, precision=goal.outcome(corpus))
    run.write_table(NAME, goal.table())

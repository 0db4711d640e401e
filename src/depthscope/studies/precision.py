"""Precision as the goal of a sweep or a map: text is read until every mean KL is known precisely enough.

Windows are read in a random order that is part of the run's settings. At planned numbers of windows (the looks of
statistics/repeated_intervals.py) the interval of every row (an edit at a layer, a cell of a map) is checked, from the shards in
order. A row is known well enough when its interval lies within the goal, a share of its mean, or entirely below the noise floor
of the run's dtype: a KL that rounding alone would produce is not worth more text. An edit of a sweep that is known well enough
is not measured on later text, and the run stops when all are. Such a run is resumed like any other, and can be refined to a
finer goal after it has stopped: units without a row that the finer goal needs are then measured again.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float64

from depthscope.data.corpus import Corpus
from depthscope.data.windows import Windows
from depthscope.errors import RunError
from depthscope.experiments.experiment import Aimed, Reading
from depthscope.run.store import STAGES, RunDirectory
from depthscope.schema.manifest import PrecisionOutcome, Settings, TextEntry, Width
from depthscope.schema.precision import PRECISION_TABLE
from depthscope.schema.sweep import EXPERIMENT as SWEEP
from depthscope.schema.sweep import KL
from depthscope.statistics.estimate import Estimate
from depthscope.statistics.repeated_intervals import FEWEST, GROWTH, RepeatedIntervals, critical_value, look_schedule

NAME = "precision"
PAPER_TOKENS = 1_000_000
"""The number of tokens the paper measured every model on; without `--tokens`, reading stops there."""
ORDER_SEED = 0
"""Seed of the order in which windows are read."""


def longest_text(corpus: Corpus) -> Corpus:
    """The corpus, limited to the largest amount that is read."""
    return replace(corpus, tokens=_most(corpus))


def _most(corpus: Corpus) -> int:
    return PAPER_TOKENS if corpus.tokens is None else corpus.tokens


def with_goal(settings: Settings, precision: float, aimed: str) -> Settings:
    """The settings of a run with a goal for the experiment `aimed`.

    They limit the number of tokens, and the number actually read is a result. They name the order of reading and the looks, so
    that a run of another version that read and looked in another way is not continued.
    """
    of = None if aimed == SWEEP.name else aimed
    most = settings.tokens
    return replace(
        settings,
        tokens=None,
        precision=precision,
        precision_of=of,
        most_tokens=most,
        window_order_seed=ORDER_SEED,
        look_growth=GROWTH,
    )


def aim_of(readings: Iterable[Any]) -> Aimed | None:
    """The reading that a goal is about: the sweep, or else the first other that can be aimed at."""
    aimed = [reading for reading in readings if isinstance(reading, Aimed)]
    return next((one for one in aimed if one.name == SWEEP.name), aimed[0] if aimed else None)


@dataclass(frozen=True, slots=True)
class ReadingOrder:
    """The text in the order in which it is read, and after how many windows there are looks at the intervals."""

    windows: Windows
    looks: list[int]

    @classmethod
    def of(cls, windows: Windows) -> "ReadingOrder":
        """All windows in random order; between two looks, where order does not matter, those of a document are together."""
        drawn = windows.in_random_order(ORDER_SEED)
        looks = look_schedule(drawn.document)
        return cls(drawn.ordered_between(looks), looks)


class PrecisionGoal:
    """How precise the KL of a reading is, from its shards in order, and whether that is enough.

    `precision` is the largest half-width as a share of the mean, `noise_floor` is in nats (None if unknown). Memory: documents
    × rows.
    """

    def __init__(self, precision: float, aimed: Aimed, order: ReadingOrder, noise_floor: float | None) -> None:
        self.precision, self.noise_floor = precision, noise_floor
        self.order, self.aimed = order, aimed
        self.places, self.names = np.array(list(aimed.aims)), list(aimed.aims.values())
        self.intervals = RepeatedIntervals(len(self.places), critical_value(order.looks))
        self.windows_read = 0
        self._going = np.ones(len(self.places), dtype=bool)
        """Rows that later windows are measured on."""
        self._found: Estimate | None = None
        """At the last look; of a row that is not measured any more, at the look at which it was known well enough."""

    @property
    def reading(self) -> Reading:
        """What measures the next windows: only rows that are not known well enough."""
        return self.aimed if self._going.all() else self.aimed.limited(self.places[self._going].tolist())

    def measures(self, shard: pl.DataFrame) -> bool:
        """Whether the next shard has exactly the rows that `reading` measures: one of a coarser goal may have fewer."""
        part = next(iter(self.aimed.documents([shard])))
        return bool(((part.tokens[self.places] > 0) == self._going).all())

    def met_with(self, shard: pl.DataFrame, windows: int) -> bool:
        """Whether to stop after the next shard of the reading, which is of so many windows."""
        kl = [metric.name for metric in self.aimed.metrics].index(KL.name)
        for part in self.aimed.documents([shard]):
            self.intervals.add(part.document, part.tokens[self.places], part.sums[kl, self.places])
        self.windows_read += windows
        if self.windows_read not in self.order.looks:
            return False
        now = self.intervals.estimate()
        self._found = now if self._found is None else _chosen(self._going, now, self._found)
        enough = self._enough(self._found)
        if self.aimed.separate:
            self._going = self._going & ~enough
        return bool(enough.all())

    @property
    def found(self) -> Estimate:
        """The means and intervals that decided. There is a look at the end of the text."""
        assert self._found is not None, "a run stops at a look"
        return self._found

    def table(self) -> pl.DataFrame:
        """The current PRECISION_TABLE."""
        found = self.found
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
            "documents": np.broadcast_to(found.documents, len(edits)),
            "tokens": np.broadcast_to(found.tokens, len(edits)),
        }
        numbers = ("ci_low", "ci_high", "half_width_relative")
        return pl.DataFrame(columns, schema=PRECISION_TABLE).with_columns(pl.col(numbers).fill_nan(None))

    def outcome(self, corpus: Corpus) -> PrecisionOutcome:
        """What run.json records about the goal: whether it was reached, with how much text, and how wide the other rows are.

        `corpus` has the largest amount that should be read; the text may have ended before.
        """
        found, read = self.found, self.order.windows.part(0, self.windows_read)
        enough, relative, under = self._enough(found), _relative(found), self._under_floor(found)
        known = np.where(np.isnan(relative) | under, -np.inf, relative)
        widest_first = [int(place) for place in np.argsort(-known, kind="stable")]
        rows = [self._width(i, float(known[i])) for i in widest_first if np.isfinite(known[i])]
        widest = rows[0].half_width_relative if rows else None
        tokens = np.broadcast_to(found.tokens, len(self.places))
        return PrecisionOutcome(
            goal=self.precision,
            reached=bool(enough.all()),
            tokens=read.tokens,
            documents=read.documents,
            text_ended=self.order.windows.tokens < _most(corpus),
            rows=len(self.places),
            rows_reached=int(enough.sum()),
            rows_under_noise_floor=int(under.sum()),
            widest=rows[0] if rows else None,
            missed=[row for row in rows if row.half_width_relative > self.precision],
            paper_tokens=PAPER_TOKENS,
            projected_at_paper_tokens=widest and widest * float(tokens[widest_first[0]] / PAPER_TOKENS) ** 0.5,
            fewest_documents=FEWEST,
            measured_share=float(tokens.mean() / read.tokens),
            looks=self.order.looks,
            critical_value=self.intervals.critical,
        )

    def _width(self, row: int, share: float) -> Width:
        edit, layer, other = self.names[row]
        return Width(edit=edit, layer=layer, other=None if other == layer else other, half_width_relative=share)

    def _enough(self, found: Estimate) -> np.ndarray:
        return self._under_floor(found) | (found.high - found.mean <= self.precision * found.mean)

    def _under_floor(self, found: Estimate) -> np.ndarray:
        return found.high <= (-np.inf if self.noise_floor is None else self.noise_floor)


def _chosen(first: Bool[np.ndarray, " rows"], one: Estimate, other: Estimate) -> Estimate:
    """Rows of the first estimate where `first` is true, else of the other."""
    parts = ((own.mean, own.low, own.high, own.tokens, own.documents) for own in (one, other))
    return Estimate(*(np.where(first, a, b) for a, b in zip(*parts, strict=True)))


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
    if run.settings.document_order_seed is not None:
        raise RunError(
            f"{out} holds a run of an earlier version, which read whole documents and looked after each of them: expected "
            "windows in random order and planned looks, so it cannot be continued. Its tables are complete; measure again with "
            "another --out"
        )
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
    settings = replace(run.settings, tokens=goal.windows_read * goal.order.windows.length)
    run.update(settings=settings, text=text, precision=goal.outcome(corpus))
    run.write_table(NAME, goal.table())

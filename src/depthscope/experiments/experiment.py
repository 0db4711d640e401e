"""What an experiment is: something that computes shards from work units, and tables from shards.

There are two kinds. A *reading* uses the shared pass over the text: the model runs once on every piece of it, and all readings
take what they need from that run. An *own-unit* experiment defines separate work, such as prompts it builds or weights it
reads.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import polars as pl

from depthscope.data.corpus import Corpus
from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline, Keep
from depthscope.experiments.document_sums import DocumentSums
from depthscope.models.model import Model
from depthscope.schema.metric import Metric

Tables = dict[str, pl.DataFrame]


@dataclass(frozen=True, slots=True)
class Subject:
    """What an experiment is created for."""

    model: Model
    corpus: Corpus
    windows: Windows
    """All windows of the text that the shared pass reads."""
    bos: str
    options: Mapping[str, Any]
    """The settings that experiments declare, by name."""
    shared: dict[str, Any] = field(default_factory=dict, kw_only=True, compare=False, repr=False)
    """What experiments on this subject have in common, such as a trained lens, by what it is."""


@runtime_checkable
class Running(Protocol):
    """Both kinds: `name` is the experiment's directory of shards."""

    name: str

    @property
    def settings(self) -> Mapping[str, Any]:
        """What determines its numbers, as JSON values."""
        ...

    def tables(self, shards: Iterable[pl.DataFrame]) -> Tables:
        """The tables of the experiment by name, from its shards in order, in one pass and constant memory."""
        ...


@runtime_checkable
class Reading(Running, Protocol):
    """An experiment on the shared pass.

    `keep`: what it uses besides the residual streams. `readouts`: how many next-token distributions it computes
    per token, from which the amount of work is estimated.
    """

    keep: Keep
    readouts: int

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a work unit; `baseline` is the baseline run on `windows`."""
        ...


@runtime_checkable
class Aimed(Reading, Protocol):
    """A reading whose mean KLs can be known to a precision that is the goal of a run.

    `separate`: whether a row may be left out of later work once it is known well enough. If not, rows are compared with each
    other on the same text, and all of them are measured until the last one is known.
    """

    separate: bool

    @property
    def aims(self) -> Mapping[int, tuple[str, int, int]]:
        """The rows of `documents` whose KL counts: their edit, its first layer and its last."""
        ...

    def documents(self, shards: Iterable[pl.DataFrame]) -> Iterator[DocumentSums]:
        """One document after the other, with sums of `metrics`; a row that was not measured has no tokens and sums of 0."""
        ...

    @property
    def metrics(self) -> Sequence[Metric]:
        """What `documents` has sums of."""
        ...

    def limited(self, rows: Collection[int]) -> Reading:
        """The reading that measures only these of the rows in `aims`."""
        ...

    def summed(self, shards: Iterable[pl.DataFrame]) -> Iterable[pl.DataFrame]:
        """The shards with sums over documents, whatever they hold."""
        ...


@runtime_checkable
class OwnUnits(Running, Protocol):
    """An experiment with separate work units, numbered from 0."""

    units: int

    def work(self, unit: int) -> pl.DataFrame:
        """The shard of a unit."""
        ...


@runtime_checkable
class Sequential(OwnUnits, Protocol):
    """An own-unit experiment whose units depend on the shards of those before, such as a search."""

    def take_up(self, shard: pl.DataFrame) -> None:
        """The next unit's shard, computed now or by an earlier command; called before the unit after it is computed."""


@runtime_checkable
class Partial(Running, Protocol):
    """An experiment that may be unable to do part of what was requested: `not_done` states what, and why."""

    not_done: Mapping[str, str]


@runtime_checkable
class Prepared(Running, Protocol):
    """An experiment with something to do in the run directory before its first unit, such as training a lens."""

    def prepare(self, directory: Path, tell: Callable[[str, int, int], None]) -> None:
        """Do it, resume it, or find it done. `tell` reports (what, done, of how many)."""
        ...


@runtime_checkable
class Explained(Running, Protocol):
    """An experiment whose tables need a word in run.json."""

    def facts(self, tables: Mapping[str, pl.DataFrame]) -> Mapping[str, Any]:
        """Entries of the manifest, given its tables."""
        ...


@runtime_checkable
class Joining(Running, Protocol):
    """A reading whose shard of several parts of a unit is not one after the other."""

    def joined(self, shards: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """The shard of a unit from the shards of its parts, in order."""
        ...


@runtime_checkable
class Halving(Running, Protocol):
    """An experiment that splits work that does not fit into memory in halves."""

    @property
    def halved(self) -> int:
        """How often it split work."""
        ...

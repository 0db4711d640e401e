"""What an experiment is: something that makes shards from work units, and tables from shards.

Two kinds. A *reading* looks at the shared pass over the text: for every piece of it the model runs once, and all readings
take what they need from that one run. An *own-unit* experiment brings its own work: prompts it builds, weights it reads.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import polars as pl

from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline, Keep

Tables = dict[str, pl.DataFrame]


@runtime_checkable
class Experiment(Protocol):
    """Both kinds: `name` is the experiment's directory of shards."""

    name: str

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides its numbers, as JSON can hold it."""
        ...

    def tables(self, shards: Iterable[pl.DataFrame]) -> Tables:
        """The tables of the experiment by name, from its shards in order, in one pass and constant memory."""
        ...


@runtime_checkable
class Reading(Experiment, Protocol):
    """An experiment on the shared pass.

    `keep`: what it looks at besides the residual streams. `readouts`: how many next-token distributions it reads
    per token, which tells how much work is to come.
    """

    keep: Keep
    readouts: int

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a work unit: `baseline` is the model's own run on `windows`."""
        ...


@runtime_checkable
class OwnUnits(Experiment, Protocol):
    """An experiment with work units of its own, numbered from 0."""

    units: int

    def work(self, unit: int) -> pl.DataFrame:
        """The shard of a unit."""
        ...

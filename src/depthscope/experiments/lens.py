"""The logit lens (E7), or another lens, and the tuned lens: the residual stream at every depth decoded with the unembedding.

`lenses` and `tuned_lens` compute what a lens decodes from a residual stream, `read_lenses` compares it with the final
distribution; here that becomes tables.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float

from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline, Keep
from depthscope.experiments.document_sums import Rows, window_sums
from depthscope.experiments.experiment import Subject
from depthscope.experiments.lens_text import LensText
from depthscope.experiments.lenses import LOGIT
from depthscope.experiments.read_lenses import ReadLenses
from depthscope.experiments.tuned_lens import TunedLens
from depthscope.models.model import Model
from depthscope.schema.lens import METRICS, TABLE_OF_TUNED, TUNED, TUNED_METRICS
from depthscope.schema.protocol import TEXT

NAME = "lens"


class LensReading:
    """A lens on x_0 … x_L: KL to the final distribution, agreement, entropy, loss. A reading of the shared pass.

    `tuned` is a tuned lens that is measured too, or the text to train one on, which `prepare` does. Raises UnsupportedError
    if the model does not support the lens.
    """

    name = NAME
    keep = Keep.NOTHING

    def __init__(
        self,
        model: Model,
        protocol: str = TEXT,
        lens: str = LOGIT,
        tuned: TunedLens | LensText | None = None,
        *,
        lenses: ReadLenses | None = None,
    ) -> None:
        self.lenses = lenses or ReadLenses(model, protocol, lens, tuned)
        self.settings, self.readouts = self.lenses.settings, self.lenses.readouts
        self.metrics = METRICS if TUNED not in self.lenses.names else (*METRICS, *TUNED_METRICS)
        self.rows = Rows({"layer": pl.Int32}, [(depth,) for depth in range(model.depth + 1)], self.metrics)

    def prepare(self, directory: Path, tell: Callable[[str, int, int], None]) -> None:
        """Have the tuned lens in the run directory."""
        self.lenses.prepare(directory, tell)

    def values(self, baseline: Baseline) -> Float[np.ndarray, "metrics depths tokens"]:
        """METRICS of the lens without training at every depth and token."""
        return self.lenses.decoded(baseline)[self.lenses.name].values

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a unit."""
        values = np.concatenate([found.values for found in self.lenses.decoded(baseline).values()])
        return self.rows.shard(window_sums(values, len(windows)), windows.length, windows.document)

    def joined(self, shards: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """The shard of a unit that was read in parts."""
        return self.rows.joined(shards)

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """LENS_TABLE, of the tuned lens too if it was measured."""
        table = self.rows.table(shards)
        if self.metrics is METRICS:
            return {NAME: table}
        tuned = pl.col("metric").is_in([metric.name for metric in TUNED_METRICS])
        renamed = pl.col("metric").str.strip_prefix(f"{TUNED}_")
        return {NAME: table.filter(~tuned), TABLE_OF_TUNED: table.filter(tuned).with_columns(renamed)}


def make(subject: Subject) -> LensReading:
    """The requested lenses. Raises DataError if there is too little text to train the tuned lens on."""
    return LensReading(subject.model, lenses=ReadLenses.of(subject))

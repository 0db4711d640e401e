"""The logit lens (E7), or another lens, and fitted lenses: the residual stream at every depth decoded with the unembedding.

`lenses`, `tuned_lens` and `jacobian_lens` compute what a lens decodes from a residual stream, `read_lenses` compares it with
the final distribution; here that becomes tables.
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
from depthscope.experiments.tuned_lens import FittedLens
from depthscope.models.model import Model
from depthscope.schema.lens import BIT, FITTED_METRICS, KL, METRICS, TABLE_OF, columns_of
from depthscope.schema.protocol import TEXT

NAME = "lens"
KEYS = {"layer": pl.Int32}


class LensReading:
    """A lens on x_0 … x_L: KL to the final distribution, agreement, entropy, loss. A reading of the shared pass.

    `tuned` and `jacobian` are fitted lenses that are measured too, or the text to fit one on, which `prepare` does. Raises
    UnsupportedError if the model does not support the lens.
    """

    name = NAME
    keep = Keep.NOTHING

    def __init__(
        self,
        model: Model,
        protocol: str = TEXT,
        lens: str = LOGIT,
        tuned: FittedLens | LensText | None = None,
        *,
        jacobian: FittedLens | LensText | None = None,
        lenses: ReadLenses | None = None,
    ) -> None:
        self.lenses = lenses or ReadLenses(model, protocol, lens, tuned, jacobian)
        self.settings, self.readouts = self.lenses.settings, self.lenses.readouts
        self.fitted = self.lenses.names[1:]
        self.depths = [(depth,) for depth in range(model.depth + 1)]
        columns = {name: columns_of(name) for name in self.fitted}
        undefined = [one.name for name in self._incomplete() for one in columns[name]]
        self.rows = Rows(KEYS, self.depths, [*METRICS, *(one for of in columns.values() for one in of)], undefined)

    def prepare(self, directory: Path, tell: Callable[[str, int, int], None]) -> None:
        """Have the fitted lenses in the run directory."""
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
        """LENS_TABLE, of each fitted lens too. Its gain is of the same tokens, so its interval is that of the difference."""
        count = len(METRICS)
        tables = {NAME: Rows(KEYS, self.depths, METRICS)}
        tables |= {TABLE_OF[name]: Rows(KEYS, self.depths, FITTED_METRICS) for name in self.fitted}
        moments = {name: rows.moments() for name, rows in tables.items()}
        for one in self.rows.documents(shards):
            plain, *others = (one.sums[start : start + count] for start in range(0, len(one.sums), count))
            moments[NAME].add(one.tokens, plain)
            for name, sums in zip(self.fitted, others, strict=True):
                gain = (plain[METRICS.index(KL)] - sums[METRICS.index(KL)]) / BIT
                moments[TABLE_OF[name]].add(one.tokens, np.concatenate([sums, gain[None]]))
        found = {name: rows.filled(moments[name].estimate()) for name, rows in tables.items()}
        for name, missing in self._incomplete().items():
            table = TABLE_OF[name]
            found[table] = found[table].filter(~pl.col("layer").is_in(missing))
        return found

    def _incomplete(self) -> dict[str, tuple[int, ...]]:
        """The depths without a map of the fitted lenses that lack some: they have no row in the lens's table."""
        given = self.lenses.fitted.items()
        return {name: one.missing for name, one in given if isinstance(one, FittedLens) and one.missing}


def make(subject: Subject) -> LensReading:
    """The requested lenses. Raises DataError if there is too little text to fit a lens on."""
    return LensReading(subject.model, lenses=ReadLenses.of(subject))

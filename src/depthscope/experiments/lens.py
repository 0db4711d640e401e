"""The logit lens (E7), or another lens, and the tuned lens: the residual stream at every depth decoded with the unembedding.

`lenses` and `tuned_lens` compute what a lens decodes from a residual stream; here it is compared with the final distribution.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float32

from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline, Keep
from depthscope.engine.divergence import compare
from depthscope.errors import DamageWarning, NumericError
from depthscope.experiments.document_sums import Rows, window_sums
from depthscope.experiments.experiment import Subject
from depthscope.experiments.lens_text import LensText, lens_text
from depthscope.experiments.lenses import FROZEN_SCALE, LOGIT, Lens, make_lens, stored_lens
from depthscope.experiments.tune_lens import tune_lens
from depthscope.experiments.tuned_lens import CONFIG, TunedLens
from depthscope.models.model import Model
from depthscope.schema.lens import METRICS, TABLE_OF_TUNED, TUNED, TUNED_METRICS, lens_names
from depthscope.schema.protocol import LAD2024, TEXT

NAME = "lens"
WHERE = Path("lenses") / TUNED
"""The tuned lens in a run directory."""


class LensReading:
    """A lens on x_0 … x_L: KL to the final distribution, agreement, entropy, loss. A reading of the shared pass.

    `tuned` is a tuned lens that is measured too, or the text to train one on, which `prepare` does. Raises UnsupportedError
    if the model does not support the lens.
    """

    name = NAME
    keep = Keep.NOTHING

    def __init__(
        self, model: Model, protocol: str = TEXT, lens: str = LOGIT, tuned: TunedLens | LensText | None = None
    ) -> None:
        self.settings: dict[str, Any] = {"protocol": protocol} | ({} if lens == LOGIT else {"lens": lens})
        if tuned is not None:
            given = {"params_sha256": tuned.sha256} if isinstance(tuned, TunedLens) else tuned.record()
            self.settings |= {"lens": f"{lens},{TUNED}", "tuned_lens": given}
        self.model, self.tuned = model, tuned
        # The protocol lad2024 determines which logit lens is used.
        self._kind = FROZEN_SCALE if (protocol, lens) == (LAD2024, LOGIT) else lens
        self.lens = make_lens(self._kind, model)
        metrics = METRICS if tuned is None else (*METRICS, *TUNED_METRICS)
        self.rows = Rows({"layer": pl.Int32}, [(depth,) for depth in range(model.depth + 1)], metrics)
        self.readouts = (model.depth + 1) * len(metrics) // len(METRICS)

    def prepare(self, directory: Path, tell: Callable[[str, int, int], None]) -> None:
        """Have the tuned lens in the run directory: trained there, or a copy of the given one."""
        if isinstance(self.tuned, LensText):
            self.tuned = tune_lens(self.model, self.tuned, directory / WHERE, tell=tell)
        elif self.tuned is not None and not self.tuned.is_stored(directory / WHERE):
            if (directory / WHERE / CONFIG).exists():
                message = f"the lens in {directory / WHERE} is damaged. It is copied again"
                warnings.warn(message, DamageWarning, stacklevel=2)
            self.tuned.save(directory / WHERE)

    def values(self, baseline: Baseline) -> Float32[np.ndarray, "metrics depths tokens"]:
        """METRICS of the lens without training at every depth and token."""
        return baseline.shared((NAME, self._kind), lambda: _values(self.lens, baseline))

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a unit."""
        assert not isinstance(self.tuned, LensText), "prepare trains the lens"
        values = self.values(baseline)
        if self.tuned is not None:
            values = np.concatenate([values, _values(self.tuned, baseline)])
        return self.rows.shard(window_sums(values, len(windows)), windows.length, windows.document)

    def joined(self, shards: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """The shard of a unit that was read in parts."""
        return self.rows.joined(shards)

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """LENS_TABLE, of the tuned lens too if it was measured."""
        table = self.rows.table(shards)
        if self.tuned is None:
            return {NAME: table}
        tuned = pl.col("metric").is_in([metric.name for metric in TUNED_METRICS])
        renamed = pl.col("metric").str.strip_prefix(f"{TUNED}_")
        return {NAME: table.filter(~tuned), TABLE_OF_TUNED: table.filter(tuned).with_columns(renamed)}


def _values(lens: Lens, baseline: Baseline) -> np.ndarray:
    """METRICS × depths × tokens."""
    head, last = baseline.model.unembedding, baseline.residuals[-1]
    columns = []
    for depth, residual in enumerate(baseline.residuals):
        hidden = lens.decode(residual, depth, last)
        measured = compare(head, baseline.reference, hidden, baseline.flat_targets)
        columns.append([measured[metric.name].float() for metric in METRICS])
    values = np.stack([torch.stack(column).cpu().numpy() for column in zip(*columns, strict=True)])
    if not np.isfinite(values).all():
        depth, token = np.argwhere(~np.isfinite(values).all(0))[0]
        raise NumericError(
            f"the lens gives NaN or infinity at depth {depth} of {baseline.model.name}, in "
            f"{baseline.named(token // baseline.ids.shape[1])}, although the residual streams are finite: expected another "
            "--lens, another --dtype, or a text without that document"
        )
    return values


def make(subject: Subject) -> LensReading:
    """The requested lenses. Raises DataError if there is too little text to train the tuned lens on."""
    asked = subject.options
    lens, *trained = lens_names(asked["lens"])
    if not trained:
        return LensReading(subject.model, asked["protocol"], lens)
    if asked["tuned_lens"] is not None:
        tuned: TunedLens | LensText = stored_lens(subject.model, asked["tuned_lens"])
    else:
        windows = subject.windows
        text = {"length": windows.length, "bos": subject.bos, "lens_data": asked["lens_data"]}
        tuned = lens_text(subject.corpus, subject.model, measured=windows, **text)
    return LensReading(subject.model, asked["protocol"], lens, tuned)

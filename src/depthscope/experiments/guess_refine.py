"""Guess, then refine (Gupta et al. 2025): the frequency of what a lens predicts at each depth, and whether it stays.

Shards count, per document, lens, depth and band, the positions where the lens's most likely token is in the band, and those of
them where the model's own most likely token is another one. What the lens decodes is shared with its own tables
(`read_lenses`).
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
from jaxtyping import Float64, Int64

from depthscope.data.frequency_bands import FrequencyBands, counted_text, frequency_bands
from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline, Keep
from depthscope.experiments.document_sums import Rows
from depthscope.experiments.experiment import Subject
from depthscope.experiments.read_lenses import ReadLenses, own_top_tokens, require_every_depth
from depthscope.models.model import Model
from depthscope.schema.guess_refine import ALL, BANDS, NAME, OVERTURNED, SHARE
from depthscope.schema.metric import Metric
from depthscope.statistics.estimate import ClusterMoments

KEYS = {"lens": pl.String, "layer": pl.Int32, "band": pl.String}
COUNTS = (
    Metric("predicted", "positions", "Predicted", "positions where the lens’s most likely token is in the band", 0.0),
    Metric(
        "replaced", "positions", "Replaced", "those of them where the model’s most likely token is another one", 0.0
    ),
)


class GuessRefine:
    """Shares and overturn rates by depth and band, for each of the lenses. A reading of the shared pass."""

    name = NAME
    keep = Keep.TOP_TOKENS

    def __init__(self, model: Model, lenses: ReadLenses, bands: FrequencyBands) -> None:
        self.lenses, self.bands = lenses, bands
        self.settings = {**lenses.settings, **bands.record()}
        self.readouts = lenses.readouts
        self.places = list(product(lenses.names, range(model.depth + 1)))
        self.rows = Rows(KEYS, [(*place, band) for place in self.places for band in BANDS], COUNTS)

    def prepare(self, directory: Path, tell: Callable[[str, int, int], None]) -> None:
        """Have the fitted lenses in the run directory."""
        self.lenses.prepare(directory, tell)

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a unit."""
        decoded = self.lenses.decoded(baseline)
        own = own_top_tokens(baseline)[:, 0].cpu().numpy()
        counts = []
        for found in decoded.values():
            assert found.top is not None, "kept, as `keep` says"
            counts += [self._counts(top, own, len(windows)) for top in found.top[..., 0].cpu().numpy()]
        sums = np.concatenate(counts, axis=1)
        return self.rows.shard(sums, windows.length, windows.document)

    def joined(self, shards: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """The shard of a unit that was read in parts."""
        return self.rows.joined(shards)

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """GUESS_REFINE_TABLE."""
        shape = len(self.places), len(BANDS)
        shares, overturned, of_all = (ClusterMoments((1, rows)) for rows in (shape[0] * shape[1],) * 2 + shape[:1])
        for one in self.rows.documents(shards):
            predicted, replaced = one.sums
            shares.add(one.tokens, predicted[None])
            overturned.add(predicted.astype(np.int64), replaced[None])
            of_all.add(one.tokens[:: shape[1]], replaced.reshape(shape).sum(1)[None])
        names = self.rows.names
        parts = (
            Rows(KEYS, names, [SHARE]).filled(shares.estimate()),
            Rows(KEYS, names, [OVERTURNED]).filled(overturned.estimate()),
            Rows(KEYS, [(*place, ALL) for place in self.places], [OVERTURNED]).filled(of_all.estimate()),
        )
        return {NAME: pl.concat(parts)}

    def _counts(
        self, top: Int64[np.ndarray, " tokens"], own: Int64[np.ndarray, " tokens"], windows: int
    ) -> Float64[np.ndarray, "2 bands windows"]:
        """Of one lens at one depth: positions per window with a token of each band, and those where it is replaced."""
        bands = len(BANDS)
        place = np.repeat(np.arange(windows), len(top) // windows) * bands + self.bands.of[top]
        counted = [
            np.bincount(place, weights=weights, minlength=windows * bands).reshape(windows, bands).T
            for weights in (None, (top != own).astype(np.float64))
        ]
        return np.stack(counted).astype(np.float64)


def make(subject: Subject) -> GuessRefine:
    """By the requested lenses, with bands by the frequencies in the measured source.

    Raises DataError if there is too little text for bands, or to fit a lens on, and UnsupportedError if a lens has no map at
    some depth.
    """
    model, lenses = subject.model, ReadLenses.of(subject)
    require_every_depth(lenses, "guess, then refine,")
    counted = counted_text(subject.corpus, model, subject.windows, subject.bos)
    bands = frequency_bands(counted, model.unembedding.vocabulary)
    return GuessRefine(model, lenses, bands)

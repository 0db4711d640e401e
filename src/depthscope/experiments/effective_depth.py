"""Effective depth (Hu et al. 2025): three curves over depth, and the depth read off each, with intervals over documents.

The cosine of every block's write with the stream it is added to, the lens's KL to the final distribution, and the overlap of
their most likely tokens. What the lens decodes is shared with the lens's own tables (`read_lenses`).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Float64

from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline, Keep
from depthscope.errors import UnsupportedError
from depthscope.experiments.document_sums import Rows, estimate_columns, window_sums
from depthscope.experiments.experiment import Subject
from depthscope.experiments.read_lenses import ReadLenses, own_top_tokens, require_every_depth
from depthscope.models.model import Model
from depthscope.schema import lens as lens_schema
from depthscope.schema.effective_depth import (
    ATTENTION_COSINE,
    COMPONENT_COSINE,
    CURVES,
    EFFECTIVE_DEPTH_CURVES_TABLE,
    EFFECTIVE_DEPTH_TABLE,
    KL_SHARE,
    MLP_COSINE,
    NAME,
    OVERLAP,
    READINGS,
    WRITE_COSINE,
    DepthReading,
)
from depthscope.schema.lens import KL
from depthscope.schema.metric import Metric
from depthscope.shapes import Residual
from depthscope.statistics.bootstrap import PoissonBootstrap
from depthscope.statistics.crossings import Crossing, crossing, first_above, first_below, last_turn
from depthscope.statistics.estimate import Estimate


@dataclass(frozen=True, slots=True)
class Curve:
    """A curve over depth: its means with intervals, and the means of the documents and of replicates of them."""

    lens: str | None
    metric: Metric
    estimate: Estimate
    resampled: Float64[np.ndarray, "rows depths"]
    """Row 0 is of the documents; NaN in replicates that drew none."""


class EffectiveDepth:
    """The three readings, for each of the lenses. A reading of the shared pass.

    In a model without separate attention and MLP the cosines are those of whole blocks.
    """

    name = NAME

    def __init__(self, model: Model, lenses: ReadLenses) -> None:
        self.lenses, self.depth = lenses, model.depth
        self.settings, self.readouts = lenses.settings, lenses.readouts
        try:
            model.require_pairs()
            self.parallel = model.require_components().parallel
            self.cosines = (WRITE_COSINE, ATTENTION_COSINE, MLP_COSINE)
            self.without_components = ""
        except UnsupportedError as error:
            self.cosines = (WRITE_COSINE,)
            self.without_components = str(error)
        self.keep = Keep.TOP_TOKENS | (Keep.NOTHING if self.without_components else Keep.WRITES)
        of_lenses = [replace(one, name=_column(name, one)) for name in lenses.names for one in (KL, OVERLAP)]
        depths = [(depth,) for depth in range(model.depth + 1)]
        # No block follows x_L, so its cosines do not exist.
        undefined = [one.name for one in self.cosines]
        self.rows = Rows({"layer": pl.Int32}, depths, [*self.cosines, *of_lenses], undefined)

    def prepare(self, directory: Path, tell: Callable[[str, int, int], None]) -> None:
        """Have the fitted lenses in the run directory."""
        self.lenses.prepare(directory, tell)

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a unit."""
        values = [*self._cosines(baseline)]
        decoded = self.lenses.decoded(baseline)
        own = own_top_tokens(baseline)
        for found in decoded.values():
            assert found.top is not None, "kept, as `keep` says"
            values.append(found.values[lens_schema.METRICS.index(KL)])
            shared = (found.top[..., :, None] == own[:, None, :]).sum((-2, -1)) / own.shape[1]
            values.append(shared.cpu().numpy())
        return self.rows.shard(window_sums(np.stack(values), len(windows)), windows.length, windows.document)

    def joined(self, shards: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """The shard of a unit that was read in parts."""
        return self.rows.joined(shards)

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """EFFECTIVE_DEPTH_TABLE and the curves."""
        moments = self.rows.moments()
        bootstrap = PoissonBootstrap(moments.sums.size)
        components = None if self.without_components else self.rows.moments()
        for one in self.rows.documents(shards):
            moments.add(one.tokens, one.sums)
            bootstrap.add(one.document, int(one.tokens[0]), one.sums.ravel())
            if components is not None:
                components.add(one.tokens, np.broadcast_to(one.sums[: len(self.cosines)].mean(0), one.sums.shape))
        resampled = bootstrap.means().reshape(-1, *moments.sums.shape)
        curves = list(self._curves(moments.estimate(), resampled))
        if components is not None:
            mean = resampled[:, : len(self.cosines)].mean(1)
            curves.insert(len(self.cosines), self._curve(None, COMPONENT_COSINE, components.estimate(), 0, mean))
        rows = [row for one in READINGS.values() for row in self._readings(one, curves)]
        return {
            NAME: pl.DataFrame(rows, schema=EFFECTIVE_DEPTH_TABLE, orient="row"),
            CURVES: pl.concat([_table(curve) for curve in curves]).filter(pl.col("mean").is_not_null()),
        }

    def _cosines(self, baseline: Baseline) -> Iterator[Float[np.ndarray, "depths tokens"]]:
        """Of every layer, NaN at x_L."""
        columns = []
        for layer in range(self.depth):
            stream = _wide(baseline.residuals[layer])
            column = [_cosine(_wide(baseline.residuals[layer + 1]) - stream, stream)]
            if not self.without_components:
                written = baseline.writes[layer]
                attention = _wide(written.attention)
                column.append(_cosine(attention, stream))
                column.append(_cosine(_wide(written.mlp), stream if self.parallel else stream + attention))
            columns.append(column)
        for curve in zip(*columns, strict=True):
            values = torch.stack(curve).cpu().numpy()
            yield np.concatenate([values, np.full((1, values.shape[1]), np.nan)])

    def _curves(self, found: Estimate, resampled: Float64[np.ndarray, "rows metrics depths"]) -> Iterator[Curve]:
        for place, metric in enumerate(self.cosines):
            yield self._curve(None, metric, found, place, resampled[:, place])
        for number, lens in enumerate(self.lenses.names):
            place = len(self.cosines) + 2 * number
            yield self._curve(lens, KL, found, place, resampled[:, place])
            yield _of_maximum(self._curve(lens, KL, found, place, resampled[:, place]))
            yield self._curve(lens, OVERLAP, found, place + 1, resampled[:, place + 1])

    def _curve(
        self,
        lens: str | None,
        metric: Metric,
        found: Estimate,
        place: int,
        resampled: Float64[np.ndarray, "rows depths"],
    ) -> Curve:
        depths = self.depth if lens is None else self.depth + 1
        columns = np.arange(found.mean.size).reshape(found.mean.shape)[place, :depths]
        return Curve(lens, metric, found.columns(columns), resampled[:, :depths])

    def _readings(self, reading: DepthReading, curves: Sequence[Curve]) -> Iterator[tuple]:
        """A row for each lens, or one row."""
        of_metric = [curve for curve in curves if curve.metric is reading.curve]
        if not of_metric:
            about = curves[0].estimate
            counts = int(np.max(about.tokens)), int(np.max(about.documents))
            nothing = (None, None, None, None, None, None, None)
            yield (None, reading.name, reading.threshold, *nothing, self.without_components, *counts)
        for curve in of_metric:
            # At x_L the lens is the model, so a crossing there would say nothing.
            before = curve.resampled[:, : self.depth]
            found = crossing(_found(reading, before), ~np.isnan(before[:, 0]), int(np.max(curve.estimate.documents)))
            reason = None if found.depth is not None else _reason(reading, before[0])
            counts = int(np.max(curve.estimate.tokens)), int(np.max(curve.estimate.documents))
            yield curve.lens, reading.name, reading.threshold, *_placed(found, self.depth), reason, *counts


def _placed(found: Crossing, layers: int) -> tuple[int | float | None, ...]:
    """Depth with interval, the same as a share of the layers, and the share of replicates that have one."""
    depths = (found.depth, found.low, found.high)
    exists = None if np.isnan(found.exists) else found.exists
    return *depths, *(None if depth is None else (depth + 1) / layers for depth in depths), exists


def _column(lens: str, metric: Metric) -> str:
    return f"{lens}_{metric.name}"


def _wide(stream: Residual) -> Residual:
    """In float32 at least."""
    return stream.to(torch.promote_types(stream.dtype, torch.float32))


def _cosine(written: Residual, stream: Residual) -> Float[torch.Tensor, " tokens"]:
    return torch.cosine_similarity(written, stream, dim=-1).flatten()


def _found(reading: DepthReading, curves: Float64[np.ndarray, "rows depths"]) -> np.ndarray:
    if reading.curve is KL_SHARE:
        return first_below(curves, reading.threshold)
    return first_above(curves, reading.threshold) if reading.curve is OVERLAP else last_turn(curves)


def _of_maximum(kl: Curve) -> Curve:
    """KL as a share of its maximum before x_L, with percentile intervals: a ratio to a maximum is not a mean."""
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = kl.resampled / kl.resampled[:, :-1].max(1, keepdims=True)
    drawn = shares[1:][~np.isnan(shares[1:, 0])]
    nothing = np.full(shares.shape[1], np.nan)
    low, high = nothing, nothing
    if len(drawn) and np.max(kl.estimate.documents) > 1:
        low, high = np.quantile(drawn, (0.025, 0.975), axis=0)
    estimate = Estimate(shares[0], low, high, kl.estimate.tokens, kl.estimate.documents)
    return Curve(kl.lens, KL_SHARE, estimate, shares)


def _reason(reading: DepthReading, curve: Float64[np.ndarray, " depths"]) -> str:
    """Why a curve has no depth."""
    if reading.curve is KL_SHARE:
        share = f"{curve.min():.3g} at the lowest" if not np.isnan(curve).any() else "0 at every depth"
        return f"KL before x_{len(curve)} is never below {reading.threshold:g} of its maximum: {share}"
    if reading.curve is OVERLAP:
        return f"the overlap before x_{len(curve)} is never above {reading.threshold:.0%}: {curve.max():.1%} at the highest"
    signs = (
        "negative at every layer" if (curve < 0).all() else "at least 0 at every layer" if (curve >= 0).all() else ""
    )
    return f"the mean cosine never turns from negative to at least 0{signs and ': it is '}{signs}"


def _table(curve: Curve) -> pl.DataFrame:
    places = len(curve.estimate.mean)
    keys = {"lens": [curve.lens] * places, "layer": range(places)}
    schema = {name: EFFECTIVE_DEPTH_CURVES_TABLE[name] for name in keys}
    return pl.DataFrame(keys, schema=schema).hstack(estimate_columns(curve.estimate, [curve.metric] * places))


def make(subject: Subject) -> EffectiveDepth:
    """Effective depth by the requested lenses.

    Raises DataError if there is too little text to fit a lens on, and UnsupportedError if one has no map at some depth.
    """
    lenses = ReadLenses.of(subject)
    require_every_depth(lenses, "effective depth")
    return EffectiveDepth(subject.model, lenses)

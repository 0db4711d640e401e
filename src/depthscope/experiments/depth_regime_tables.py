"""The tables of the depth regime from sums over documents: curves, readings of the middle layers, and the verdict.

A regime is named only if the 95 % intervals of all its readings are on its side. Such a conjunction needs no correction for
their number (Berger 1982, intersection-union tests): it is wrong at most as often as its weakest part.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import polars as pl
from jaxtyping import Float64

from depthscope.experiments.document_sums import DocumentSums, Rows
from depthscope.schema.depth_regime import (
    ALIGNED,
    CONCENTRATED,
    CURVES,
    DEPTH_REGIME_READINGS_TABLE,
    DEPTH_REGIME_TABLE,
    DEPTH_REGIME_VERDICT_TABLE,
    EARLY,
    EVEN_UPDATES,
    FEWEST_MIDDLE,
    HALF,
    INDEPENDENT,
    LATE,
    LOSS_BELOW_LINE,
    LOSS_FALL,
    METRICS,
    MIDDLE_WRITE_ANGLE,
    NAME,
    OPPOSED,
    OPPOSED_ANGLE,
    PARTICIPATION,
    PROGRESS,
    PROGRESS_ABOVE_LINE,
    READINGS,
    REGIMES,
    SMOOTH_ANGLE,
    SPREAD,
    STRAIGHT_LOSS,
    UNRESOLVED,
    VERDICT,
    WRITE_ANGLE,
)
from depthscope.schema.linearity import POSITIONS
from depthscope.schema.metric import Metric
from depthscope.statistics.estimate import ClusterMoments

DECIDING = (EVEN_UPDATES, MIDDLE_WRITE_ANGLE, LOSS_BELOW_LINE)
Interval = tuple[float | None, float | None]
"""The ends of a 95 % interval; None where there is none."""


class DepthRegimeTables:
    """Sums over documents, of a size that does not depend on their number; then the tables."""

    def __init__(self, names: Sequence[tuple], depth: int, vocabulary: int) -> None:
        self.names, self.depth, self.uniform = names, depth, float(np.log(vocabulary))
        self.curves = ClusterMoments((len(CURVES), len(names)))
        self.readings = ClusterMoments((len(METRICS), len(POSITIONS)))

    def add(self, document: DocumentSums) -> None:
        """Add a document."""
        curves = document.sums[: len(CURVES)]
        self.curves.add(document.tokens, curves)
        by_layer = document.sums.reshape(len(document.sums), self.depth, -1)
        of_metric = dict(zip(CURVES, by_layer, strict=False))
        taking_part, even = by_layer[len(CURVES) :, 0]
        losses = of_metric[STRAIGHT_LOSS]
        values = {
            EVEN_UPDATES: even,
            MIDDLE_WRITE_ANGLE: of_metric[WRITE_ANGLE][1 : self.depth - 2].mean(0),
            LOSS_BELOW_LINE: -above_line(losses),
            LOSS_FALL: losses[1] - losses[-1],
            PROGRESS_ABOVE_LINE: above_line(of_metric[PROGRESS]),
            PARTICIPATION: taking_part,
        }
        self.readings.add(document.tokens[: len(POSITIONS)], np.stack([values[metric] for metric in METRICS]))

    def tables(self) -> dict[str, pl.DataFrame]:
        """DEPTH_REGIME_TABLE, DEPTH_REGIME_READINGS_TABLE and DEPTH_REGIME_VERDICT_TABLE."""
        keys = {"layer": pl.Int32, "positions": pl.String}
        curves = Rows(keys, self.names, CURVES).filled(self.curves.estimate()).cast(pl.Schema(DEPTH_REGIME_TABLE))
        names = [(positions,) for positions in POSITIONS]
        readings = Rows({"positions": pl.String}, names, METRICS).filled(self.readings.estimate())
        found, verdicts = [], []
        for positions in POSITIONS:
            rows, readable = readings.filter(positions=positions), self._readable(curves.filter(positions=positions))
            sides = sides_of(intervals(rows), readable)
            side = [sides.get(metric) for metric in rows["metric"]]
            found.append(rows.with_columns(side=pl.Series(side, dtype=pl.String)))
            verdict = verdict_of([sides.get(metric.name) for metric in DECIDING], self.depth - 2, readable)
            verdicts.append((positions, *verdict, rows["tokens"].max(), rows["documents"].max()))
        return {
            NAME: curves.filter(pl.col("mean").is_not_null()),
            READINGS: pl.concat(found).cast(pl.Schema(DEPTH_REGIME_READINGS_TABLE)),
            VERDICT: pl.DataFrame(verdicts, schema=DEPTH_REGIME_VERDICT_TABLE, orient="row"),
        }

    def _readable(self, curves: pl.DataFrame) -> bool:
        """Whether the last block reads x_1 … x_{L−1} at all: each loss is below that of a uniform guess, by its interval."""
        losses = curves.filter(pl.col("layer") > 0, metric=STRAIGHT_LOSS.name)["ci_high"]
        return losses.null_count() == 0 and bool((losses < self.uniform).all())


def above_line(curve: Float64[np.ndarray, "layers positions"]) -> Float64[np.ndarray, " positions"]:
    """How far the values at depths 2 … L − 2 are on average above the straight line from that at 1 to that at L − 1."""
    ends, middle = curve[[1, -1]], curve[2:-1]
    along = np.arange(1, len(middle) + 1)[:, None] / (len(middle) + 1)
    return (middle - (1 - along) * ends[0] - along * ends[1]).mean(0)


def intervals(readings: pl.DataFrame) -> dict[str, Interval]:
    """Interval by metric."""
    return {name: (low, high) for name, low, high in readings.select("metric", "ci_low", "ci_high").iter_rows()}


def sides_of(known: Mapping[str, Interval], readable: bool = True) -> dict[str, str]:
    """The side on which the whole interval of each deciding reading is; without those that have none.

    The loss has none unless it falls, from streams that the last block is able to read.
    """

    def side(metric: Metric, places: Sequence[tuple[str, float, float]]) -> Iterator[tuple[str, str]]:
        low, high = known[metric.name]
        if low is None or high is None:
            return
        yield from ((metric.name, name) for name, above, below in places if above < low and high < below)

    infinite = float("inf")
    found = [
        *side(EVEN_UPDATES, [(CONCENTRATED, -infinite, HALF), (SPREAD, HALF, infinite)]),
        *side(
            MIDDLE_WRITE_ANGLE,
            [
                (ALIGNED, -infinite, SMOOTH_ANGLE),
                (INDEPENDENT, SMOOTH_ANGLE, OPPOSED_ANGLE),
                (OPPOSED, OPPOSED_ANGLE, infinite),
            ],
        ),
    ]
    falls, _ = known[LOSS_FALL.name]
    if readable and falls is not None and falls > 0:
        found += side(LOSS_BELOW_LINE, [(LATE, -infinite, 0.0), (EARLY, 0.0, infinite)])
    return dict(found)


def verdict_of(sides: Sequence[str | None], middle: int, readable: bool = True) -> tuple[str, str | None]:
    """The regime whose readings are all on its side, from the sides of DECIDING; UNRESOLVED with a reason if there is none."""
    if middle < FEWEST_MIDDLE:
        return UNRESOLVED, f"the model has {middle} middle layers: expected at least {FEWEST_MIDDLE}"
    for regime, needed in REGIMES.items():
        if all(want in (None, side) for want, side in zip(needed, sides, strict=True)):
            return regime, None
    even, writes, loss = sides
    if even is None or (even == SPREAD and writes is None):
        unclear = EVEN_UPDATES if even is None else MIDDLE_WRITE_ANGLE
        return UNRESOLVED, f"the 95% interval is not on one side of the threshold for “{unclear.title.lower()}”"
    if even == SPREAD and writes == OPPOSED:
        return UNRESOLVED, "consecutive writes oppose each other, which none of the regimes predicts"
    shape = (
        "updates are even and independent, as in an ensemble"
        if even == SPREAD
        else "few layers make most of a token’s rotation, as in a composition"
    )
    if loss is not None:
        falls = "late, as in a composition" if loss == LATE else "early, as in an ensemble"
        return UNRESOLVED, f"{shape}, but the loss falls {falls}"
    unknown = (
        "is on neither side" if readable else "says nothing, because some streams predict worse than a uniform guess"
    )
    return UNRESOLVED, f"{shape}, but the loss through the last layer {unknown}"

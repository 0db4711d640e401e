"""Massive activations (Sun et al. 2024, arXiv 2402.17762): the few values of the residual stream that dwarf all others.

The state of a window at depth l is x_l, positions × dimensions. A value of it is massive if its magnitude is above 100 and at
least 1,000 times the median magnitude of the state; the median is the lower of the two middle values, as in the published code.
Block l writes a massive activation if the value at a position and dimension is massive in x_{l+1} and not in x_l, and removes
one in the opposite case. The model's numbers are taken as they are: nothing is centred or normalised.

A shard has sums over the windows of each document (schema/massive.py). Of dimensions, blocks and tokens it has only those with
massive activations: a document adds at most a few rows per depth and dimension, however long it is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline, Keep
from depthscope.experiments.experiment import Subject
from depthscope.experiments.massive_tables import CARRIER, EXTREME, KEYS, NOWHERE, summed, tables_of
from depthscope.models.model import Model
from depthscope.schema.massive import (
    BLOCK_METRICS,
    FIRST,
    LARGEST,
    LATER,
    MAGNITUDE,
    MASSIVE_SHARD,
    MEDIAN,
    METRICS,
    POSITIONS,
    RATIO,
    SHARE,
    VALUE,
)
from depthscope.shapes import Residual
from depthscope.statistics.estimate import runs

NAME = "massive"
Mask = Bool[Tensor, "batch seq d_model"]


@dataclass(frozen=True, slots=True)
class StateMeasures:
    """What is measured of x_l in each window."""

    metrics: Float64[np.ndarray, "metrics windows"]
    """In the order of METRICS."""
    massive: Mask | None
    """Which values are massive; None if none is."""
    value: Float64[np.ndarray, " windows"]
    """The value with the largest magnitude, with its sign."""
    place: Int64[np.ndarray, " windows"]
    """Where it is: position · d_model + dimension."""


class Massive:
    """Massive activations at every depth. A reading of the shared pass; `length` is that of the windows."""

    name = NAME
    keep = Keep.NOTHING
    readouts = 0

    def __init__(self, model: Model, length: int) -> None:
        self.model, self.length = model, length
        self.settings: dict[str, Any] = {"magnitude": MAGNITUDE, "ratio": RATIO}

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a unit."""
        unit = _Unit(windows)
        measured: list[StateMeasures] = []
        before: Mask | None = None
        for depth, residual in enumerate(baseline.residuals):
            values = residual.float()
            state = state_measures(values)
            if depth:
                unit.add_block(depth - 1, before, state.massive)
            if state.massive is not None:
                unit.add_dimensions(depth, values, state.massive)
            before = state.massive
            measured.append(state)
        unit.add_depths(measured, baseline.residuals[0].shape[-1])
        return unit.shard()

    def joined(self, shards: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """The shard of a unit that was read in parts."""
        rows = pl.concat(shards)
        return ordered(summed(rows), rows)

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """The five tables of schema/massive.py."""
        return tables_of(shards, self.model, self.length)


def make(subject: Subject) -> Massive:
    """Massive activations on windows of the text's length."""
    return Massive(subject.model, subject.windows.length)


def state_measures(values: Residual) -> StateMeasures:
    """METRICS and massive activations of each window's x_l, in float32."""
    magnitudes = values.abs().flatten(1)
    top, places = magnitudes.topk(3)
    median = lower_median(magnitudes)
    largest, limit = top[:, 0], RATIO * median
    massive = mask = None
    relative = torch.zeros_like(largest)
    if bool((largest >= limit).any()):
        at_least = (magnitudes >= limit[:, None]) & (magnitudes > 0)  # of a median of 0
        relative = at_least.sum(1)
        if bool((largest > MAGNITUDE).any()):
            mask = (at_least & (magnitudes > MAGNITUDE)).view_as(values)
            massive = mask if bool(mask.any()) else None
    nothing = torch.zeros_like(largest)
    first = nothing if massive is None else massive[:, 0].sum(1)
    later = nothing if massive is None else massive[:, 1:].sum((1, 2))
    ratio = torch.where(median > 0, largest.double() / median.double(), torch.nan)
    columns = {
        "largest": largest,
        "second": top[:, 1],
        "third": top[:, 2],
        "median": median,
        "largest_ratio": ratio,
        "largest_first": places[:, 0] < values.shape[-1],
        "massive_windows": first + later > 0,
        "massive_first": first,
        "massive_later": later,
        "relative": relative,
    }
    metrics = torch.stack([columns[metric.name].double() for metric in METRICS]).cpu().numpy()
    value = values.flatten(1).gather(1, places[:, :1])[:, 0].double().cpu().numpy()
    return StateMeasures(metrics, massive, value, places[:, 0].cpu().numpy())


def lower_median(rows: Float[Tensor, "rows values"]) -> Float[Tensor, " rows"]:
    """The median of each row; of an even number of values the lower of the two in the middle, as torch has it."""
    if rows.device.type != "cpu":
        return rows.median(1).values
    middle = (rows.shape[1] - 1) // 2  # on a CPU numpy's selection is eight times as fast as torch's
    return torch.from_numpy(np.partition(rows.numpy(), middle, axis=1)[:, middle])


class _Unit:
    """Rows of a shard, collected depth by depth."""

    def __init__(self, windows: Windows) -> None:
        self.ids = windows.ids
        self.starts, self.counts = runs(windows.document)
        self.documents = windows.document[self.starts]
        self.carriers: Bool[np.ndarray, "windows length"] = np.zeros((len(windows), windows.length), dtype=bool)
        """Positions with a massive activation at some depth."""
        self.frames: list[pl.DataFrame] = []

    def shard(self) -> pl.DataFrame:
        """All rows."""
        for start, count, document in zip(self.starts, self.counts, self.documents, strict=True):
            if not self.carriers[start : start + count].any():
                continue
            ids, carries = (of[start : start + count] for of in (self.ids[:, :-1], self.carriers))
            for position, part in ((FIRST, slice(0, 1)), (LATER, slice(1, None))):
                tokens, times = np.unique(ids[:, part][carries[:, part]], return_counts=True)
                self._rows(CARRIER, position, document=document, token=tokens, count=times)
        return ordered(pl.concat(self.frames), pl.DataFrame({"document": self.documents}))

    def add_depths(self, measured: Sequence[StateMeasures], width: int) -> None:
        """METRICS at every depth, and each document's largest magnitude."""
        values = np.stack([state.metrics for state in measured], 1)
        sums = np.add.reduceat(np.ascontiguousarray(values), self.starts, axis=2)
        depths = np.arange(len(measured))[:, None]
        for metric, of_metric in zip(METRICS, sums, strict=True):
            self._rows(metric.name, layer=depths, document=self.documents, count=self.counts, sum=of_metric)
        largest, places = values[METRICS.index(LARGEST)], np.stack([state.place for state in measured])
        of_documents = zip(self.starts, self.counts, strict=True)
        best = np.stack([start + largest[:, start : start + count].argmax(1) for start, count in of_documents], 1)
        here = (depths, best)  # depths × documents: the window with the document's largest magnitude
        self._rows(
            EXTREME,
            layer=depths,
            document=self.documents,
            dimension=places[here] % width,
            place=places[here] // width,
            token=self.ids[best, places[here] // width],
            sum=np.stack([state.value for state in measured])[here],
            median=values[METRICS.index(MEDIAN)][here],
        )

    def add_block(self, block: int, before: Mask | None, after: Mask | None) -> None:
        """What block `block` writes and removes."""
        gained = _without(after, before)
        lost = _without(before, after)
        if gained is None and lost is None:
            return
        for position in POSITIONS:
            numbers = [_at(mask, position, len(self.ids)) for mask in (gained, lost)]
            values = np.stack([*numbers, *(number > 0 for number in numbers)])
            sums = np.add.reduceat(values.astype(np.float64), self.starts, axis=1)
            for metric, of_metric in zip(BLOCK_METRICS, sums, strict=True):
                there = of_metric > 0
                self._rows(
                    metric.name,
                    position,
                    layer=block,
                    document=self.documents[there],
                    count=self.counts[there],
                    sum=of_metric[there],
                )

    def add_dimensions(self, depth: int, values: Residual, massive: Mask) -> None:
        """The dimensions with massive activations at a depth, and the positions that have them."""
        self.carriers |= massive.any(-1).cpu().numpy()
        for position, part in ((FIRST, slice(0, 1)), (LATER, slice(1, None))):
            inside = massive[:, part]
            per_window = (
                inside.any(1).double(),
                inside.sum(1).double(),
                torch.where(inside, values[:, part], 0.0).sum(1, dtype=torch.float64),
            )
            windows, numbers, sums = (np.add.reduceat(of.cpu().numpy(), self.starts, axis=0) for of in per_window)
            row, dimension = np.nonzero(windows)
            place = {"layer": depth, "document": self.documents[row], "dimension": dimension}
            self._rows(SHARE.name, position, **place, count=self.counts[row], sum=windows[row, dimension])
            self._rows(VALUE.name, position, **place, count=numbers[row, dimension], sum=sums[row, dimension])

    def _rows(self, quantity: str, position: str = "", **columns: Any) -> None:
        filled = {"layer": NOWHERE, "dimension": NOWHERE, "token": NOWHERE, "count": 0, "sum": 0.0}
        filled |= {"place": NOWHERE, "median": 0.0} | columns
        arrays = dict(zip(filled, map(np.ravel, np.broadcast_arrays(*filled.values())), strict=True))
        frame = pl.DataFrame(arrays).with_columns(
            pl.lit(quantity).alias("quantity"), pl.lit(position).alias("position")
        )
        self.frames.append(frame.select(*MASSIVE_SHARD).cast(pl.Schema(MASSIVE_SHARD)))


def _without(these: Mask | None, those: Mask | None) -> Mask | None:
    return these if these is None or those is None else these & ~those


def _at(mask: Mask | None, position: str, windows: int) -> Int64[np.ndarray, " windows"]:
    """How many values of a mask are true at a position of each window."""
    if mask is None:
        return np.zeros(windows, dtype=np.int64)
    return (mask[:, :1] if position == FIRST else mask[:, 1:]).sum((1, 2)).cpu().numpy()


def ordered(rows: pl.DataFrame, read: pl.DataFrame) -> pl.DataFrame:
    """The rows of a shard by document, in the order in which the documents were `read`, and within each by key."""
    turn = read.select("document").unique(maintain_order=True).with_row_index("turn")
    return rows.join(turn, on="document", how="left").sort("turn", *KEYS).select(*MASSIVE_SHARD)

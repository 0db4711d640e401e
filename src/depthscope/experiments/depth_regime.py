"""Depth regime (Liu et al. 2026): angles between streams and writes, progress, and the loss through the last block alone.

The streams of the unmodified run give the angles and the progress of every token. For the loss each x_l goes straight to the
last block: routes `0 … l−1, L−1`, which start from streams that the run has, so that each costs one block and one read-out.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise, product

import numpy as np
import polars as pl
import torch
from jaxtyping import Float64
from torch import Tensor

from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline
from depthscope.engine.measure_routes import RouteMeter
from depthscope.errors import RouteError, UnsupportedError
from depthscope.experiments.depth_regime_tables import DepthRegimeTables
from depthscope.experiments.document_sums import Rows
from depthscope.experiments.experiment import Subject
from depthscope.models.model import Model
from depthscope.routes import Route
from depthscope.schema.depth_regime import (
    CURVES,
    EVEN_UPDATES,
    FEWEST_BLOCKS,
    HALF,
    NAME,
    PARTICIPATION,
    STRAIGHT_LOSS,
    WRITE_ANGLE,
)
from depthscope.schema.linearity import NOT_FIRST, POSITIONS
from depthscope.schema.measures import LOSS
from depthscope.shapes import Residual

SUMMED = (*CURVES, PARTICIPATION, EVEN_UPDATES)
"""Columns of shards. The last two are about a token, not a layer: each of its rows has them."""


class DepthRegime:
    """Angles, progress and straight losses of every depth. A reading of the shared pass.

    A depth whose x_l cannot go straight to the last block (which reads what a block in between stores) has no loss. Raises
    UnsupportedError for a model of fewer than FEWEST_BLOCKS blocks.
    """

    name = NAME

    def __init__(self, model: Model) -> None:
        if model.depth < FEWEST_BLOCKS:
            raise UnsupportedError(
                f"{model.name} has {model.depth} block{'s' if model.depth > 1 else ''}: expected at least {FEWEST_BLOCKS}, so "
                "that two follow each other between the first and the last"
            )
        self.depth = model.depth
        self.vocabulary = model.unembedding.weight.shape[0]
        self.settings = {}
        routes, self.not_done = _straight_routes(model)
        self.starts = list(routes)
        """The depths whose stream can go straight to the last block, besides L − 1."""
        self.meter = RouteMeter(model, list(routes.values()), measures=(LOSS,))
        self.keep, self.readouts = self.meter.keep, len(routes) + 1
        # No write follows the last block's.
        missing = (WRITE_ANGLE.name, *((STRAIGHT_LOSS.name,) if self.not_done else ()))
        names = list(product(range(model.depth), POSITIONS))
        self.rows = Rows({"layer": pl.Int32, "positions": pl.String}, names, SUMMED, undefined=missing)

    @property
    def halved(self) -> int:
        """How often a piece of work did not fit into memory and was done in two halves."""
        return self.meter.halved

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a unit."""
        shape = len(windows), windows.length
        values = np.empty((len(SUMMED), self.depth, len(POSITIONS), *shape))
        geometry = path_geometry(baseline.residuals)
        values[: len(geometry)] = geometry[:, :, None]
        values[len(geometry)] = self._losses(baseline)[:, None]
        share = participation(geometry[0, 1:-1])
        values[-2:] = np.stack([share, share > HALF])[:, None, None]
        later = list(POSITIONS).index(NOT_FIRST)
        values[:, :, later, :, 0] = 0
        counts = np.full((self.depth, len(POSITIONS), len(windows)), windows.length)
        counts[:, later] -= 1
        sums = values.sum(-1).reshape(len(SUMMED), -1, len(windows))
        return self.rows.shard(sums, counts.reshape(-1, len(windows)), windows.document)

    def joined(self, shards: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """The shard of a unit that was read in parts."""
        return self.rows.joined(shards)

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """DEPTH_REGIME_TABLE, the readings and the verdict."""
        found = DepthRegimeTables(self.rows.names, self.depth, self.vocabulary)
        for document in self.rows.documents(shards):
            found.add(document)
        return found.tables()

    def _losses(self, baseline: Baseline) -> Float64[np.ndarray, "layers windows length"]:
        """Of x_0 … x_{L−1} through the last block alone; NaN where that is impossible."""
        measured = self.meter.against(baseline)[LOSS.name].double().numpy()
        losses = np.full((self.depth, *measured.shape[1:]), np.nan)
        losses[self.starts] = measured[1:]
        losses[-1] = measured[0]
        return losses


def _straight_routes(model: Model) -> tuple[dict[int, Route], dict[str, str]]:
    """For each depth before L − 1 the route that leaves out all blocks from there to the last, and why others cannot be run."""
    own = Route.own(model.depth).visits
    possible, refused = {}, {}
    for layer in range(model.depth - 1):
        route = Route(model.depth, (*own[:layer], own[-1]))
        try:
            model.check_route(route)
        except RouteError as error:
            refused[f"{NAME}({layer})"] = str(error)
        else:
            possible[layer] = route
    return possible, refused


def path_geometry(residuals: Sequence[Residual]) -> Float64[np.ndarray, "4 layers windows length"]:
    """Of x_0 … x_L, for l < L: the angle of the step from x_l, between the writes of blocks l and l + 1 (NaN for the last), of
    x_l to x_L, in degrees; and the progress to x_L."""
    streams = [stream.to(torch.promote_types(torch.float32, stream.dtype)) for stream in residuals]
    first, last = streams[0], streams[-1]
    whole = last - first
    length = whole.square().sum(-1)
    rows: list[list[Tensor]] = []
    written: Tensor | None = None
    for stream, after in pairwise(streams):
        write = after - stream
        if written is not None:
            rows[-1][1] = angle(written, write)
        done = ((stream - first) * whole).sum(-1)
        progress = torch.where(length > 0, done / length, 0.0)
        rows.append([angle(stream, after), torch.full_like(progress, torch.nan), angle(stream, last), progress])
        written = write
    return torch.stack([torch.stack(row) for row in rows], 1).double().cpu().numpy()


def angle(one: Tensor, other: Tensor) -> Tensor:
    """Angles between vectors of the last dimension, in degrees; 90 with a zero vector, as in the published code.

    From the lengths of sum and difference of the unit vectors (Kahan 2006, How Futile are Mindless Assessments of Roundoff,
    section 12), because the arc cosine of a cosine near 1 has half of the digits.
    """
    a, b = _unit(one), _unit(other)
    found = torch.rad2deg(2 * torch.atan2((a - b).norm(dim=-1), (a + b).norm(dim=-1)))
    return torch.where((a != 0).any(-1) & (b != 0).any(-1), found, 90.0)


def _unit(vector: Tensor) -> Tensor:
    """Of length 1; zero vectors stay zero. Scaled first, so that no square overflows."""
    largest = vector.abs().amax(-1, keepdim=True)
    scaled = vector / torch.where(largest > 0, largest, 1.0)
    return scaled / scaled.norm(dim=-1, keepdim=True).clamp(min=1.0)


def participation(
    angles: Float64[np.ndarray, "blocks windows length"],
) -> Float64[np.ndarray, "windows length"]:
    """The share of blocks that take part in a token's rotation: (Σ θ)² / (M Σ θ²); 0 if none rotates it."""
    squares = len(angles) * np.square(angles).sum(0)
    return np.divide(np.square(angles.sum(0)), squares, out=np.zeros_like(squares), where=squares > 0)


def make(subject: Subject) -> DepthRegime:
    """The depth regime of a model."""
    return DepthRegime(subject.model)

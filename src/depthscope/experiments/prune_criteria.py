"""Criteria that choose blocks without measuring their removal: block influence, angular distance, a random choice."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

import numpy as np
import polars as pl
import torch

from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline
from depthscope.experiments.document_sums import Rows, window_sums
from depthscope.experiments.prune_search import Path
from depthscope.experiments.removals import Removals
from depthscope.models.model import Model
from depthscope.routes import Step
from depthscope.schema.prune import SEARCH
from depthscope.schema.similarity import ANGULAR_DISTANCE, BLOCK_INFLUENCE
from depthscope.statistics.alignment import angular_distances

KEYS = {"text": pl.String, "blocks": pl.String}


@dataclass(slots=True)
class Readings:
    """What both criteria read from the unmodified model's residual streams, as means over the search's documents."""

    influence: list[float] = field(default_factory=list)
    """1 − cos(x_l, x_{l+1}) of each block l, over all positions."""
    angular: dict[range, float] = field(default_factory=dict)
    """arccos(cos(x_l, x_{l+n})) / π of blocks l … l+n−1, on windows' last tokens."""

    @staticmethod
    def measured(model: Model, pieces: Sequence[Windows], longest: int) -> pl.DataFrame:
        """Sums over documents, for ranges of at most `longest` blocks without the last block."""
        ranges = [
            range(first, first + length)
            for length in range(1, longest + 1)
            for first in range(model.depth - length)  # so that the last block is in none
        ]
        blocks = Rows(KEYS, [(SEARCH, str(layer)) for layer in range(model.depth)], [BLOCK_INFLUENCE])
        turned = Rows(KEYS, [(SEARCH, _name(one)) for one in ranges], [ANGULAR_DISTANCE])
        found: tuple[list[pl.DataFrame], list[pl.DataFrame]] = ([], [])
        for part in pieces:
            streams = Baseline(model, *part.batch(), named=part.called).residuals
            cosines = [torch.cosine_similarity(x.double(), y.double(), dim=-1).flatten() for x, y in pairwise(streams)]
            influence = 1 - torch.stack(cosines)[None].cpu().numpy()
            found[0].append(blocks.shard(window_sums(influence, len(part)), part.length, part.document))
            last = torch.stack([stream[:, -1].float() for stream in streams], 1).cpu().numpy()
            apart = angular_distances(last)
            angles = np.array([apart[:, one.start, one.stop] for one in ranges]).reshape(1, len(ranges), len(part))
            found[1].append(turned.shard(angles, 1, part.document))
        kinds = [rows.joined(shards) for rows, shards in zip((blocks, turned), found, strict=True)]
        return pl.concat(kinds, how="diagonal")

    def read(self, shard: pl.DataFrame) -> None:
        """Take the means from the sums over documents."""
        means = {
            metric.name: shard.filter(pl.col(metric.name).is_not_null())
            .group_by("blocks", maintain_order=True)
            .agg((pl.col(metric.name).sum() / pl.col("tokens").sum()).alias("mean"))
            .rows()
            for metric in (BLOCK_INFLUENCE, ANGULAR_DISTANCE)
        }
        self.influence = [mean for _, mean in means[BLOCK_INFLUENCE.name]]
        self.angular = {_range(name): mean for name, mean in means[ANGULAR_DISTANCE.name]}


def influence_path(removals: Removals, readings: Readings, remove: int) -> Path:
    """The blocks with the lowest block influence (Men et al. 2024)."""
    ranked = sorted(range(len(readings.influence)), key=lambda layer: readings.influence[layer])
    return removals.first_possible(map(Step, ranked), remove)


def angular_path(removals: Removals, readings: Readings, remove: int) -> Path:
    """For each number of blocks the contiguous ones with the lowest angular distance (Gromov et al. 2024)."""
    path: Path = {}
    for blocks, _ in sorted(readings.angular.items(), key=lambda one: (one[1], one[0].start)):
        removed = frozenset(map(Step, blocks))
        if len(blocks) <= remove and len(blocks) not in path and removals.possible(removed):
            path[len(blocks)] = removed
    return path


def random_paths(removals: Removals, remove: int, draws: int, seed: int) -> list[Path]:
    """Independent random choices; the smaller sets of a draw are what it drew first."""
    paths = []
    for number in range(draws):
        items = removals.drawn(Random(f"draw {seed} {number}"), remove)
        if items is not None:
            sets = {size: frozenset(items[:size]) for size in range(1, remove + 1)}
            paths.append({size: one for size, one in sets.items() if removals.possible(one)})
    return paths


def _name(blocks: range) -> str:
    return f"{blocks.start}-{blocks.stop - 1}"


def _range(name: str) -> range:
    first, last = map(int, name.split("-"))
    return range(first, last + 1)

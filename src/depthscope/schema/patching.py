"""Residual patching between a text and the same text with one word exchanged: where in depth the word's effect moves."""

from typing import Any

import polars as pl

from depthscope.errors import DepthscopeError
from depthscope.printable import shown
from depthscope.schema.declaration import Experiment, Option, Table
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.metric import Metric

KL = Metric(
    "kl",
    "nats",
    "KL of the patched run",
    "KL(p‖q) at the last position: p of the clean run, q of the patched one (of group `none` of the corrupted one)",
    0.0,
)
RECOVERED = Metric(
    "recovered",
    "share",
    "Recovered",
    "1 − Σ KL(clean‖patched) / Σ KL(clean‖corrupted), sums over pairs: 1 where the patch restores the clean prediction, 0 "
    "where it changes nothing, below 0 where it leads further away",
    None,
    1.0,
)
METRICS = (RECOVERED, KL)

WORD, BETWEEN, LAST, NOTHING = "word", "between", "last", "none"
GROUPS = {
    WORD: "the position of the exchanged word",
    BETWEEN: "all positions between the word and the last one",
    LAST: "the last position, whose next-token distribution is measured",
}
"""The groups of positions whose residual stream is taken from the clean run."""

HALF_DEPTH = Metric(
    "half_depth",
    "depth",
    "Half of the effect",
    "depth at which the recovery first crosses one half (falls below it for `word`, rises above it for `last`), linearly "
    "interpolated between depths; 95 % interval by a bootstrap over documents",
    0.0,
)
LARGEST = Metric(
    "largest_recovery",
    "share",
    "Largest recovery",
    "the recovery at the depth where it is largest; its 95 % interval covers all depths at once, so it holds although the "
    "depth was picked",
    None,
    1.0,
)

PATCHING_TABLE = {"group": pl.String, "layer": pl.Int32, **ESTIMATE}
"""tables/patching.parquet: what a patch of the positions `group` at the depth `layer` recovers. The group `none` is the
corrupted run itself, whose KL is at layer 0."""

PATCHING_DEPTHS_TABLE = {"group": pl.String, "layer": pl.Int32, **ESTIMATE}
"""tables/patching_depths.parquet: where the recovery from the word's position falls below one half, where that from the last
position rises above it, and where that from the positions between is largest."""

SHARD_METRICS = (KL,)
PATCHING_SHARD = {
    "document": pl.Int64,
    "group": pl.String,
    "layer": pl.Int32,
    "tokens": pl.Int64,
    "kl": pl.Float64,
}
"""shards/patching: per document the sums over its pairs in the work unit."""

SHORTEST_DISTANCE, LONGEST_DISTANCE = 2, 64


def _check_distance(distance: Any) -> None:
    if not SHORTEST_DISTANCE <= distance <= LONGEST_DISTANCE:
        raise DepthscopeError(
            f"a distance of {shown(distance)} tokens from the exchanged word to the measured position: expected "
            f"{SHORTEST_DISTANCE} to {LONGEST_DISTANCE}"
        )


PATCH_DISTANCE = Option(
    name="patch_distance",
    type=int,
    default=4,
    help="How many tokens after the exchanged word predictions are measured in the patching experiment.",
    check=_check_distance,
)
EXPERIMENT = Experiment(
    name="patching",
    title="At which depth a word's effect moves to later positions.",
    question="At which depth does a word's effect on a later prediction move from the word's position to the later one? One "
    "word of a text is exchanged, then the clean run's residual stream is put back at some positions and one depth.",
    make="depthscope.experiments.patching:make",
    tables={
        "patching": Table(columns=PATCHING_TABLE, metrics=METRICS),
        "patching_depths": Table(columns=PATCHING_DEPTHS_TABLE, metrics=(HALF_DEPTH, LARGEST)),
    },
    options=(PATCH_DISTANCE,),
    source="Lad et al. 2024, table 1; Meng et al. 2022 (arXiv 2202.05262); Zhang and Nanda 2023 (arXiv 2309.16042)",
    in_study=False,
    deep=True,
)

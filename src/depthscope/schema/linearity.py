"""Linearity (Razzhigaev et al. 2024, arXiv 2405.12250): how well each block is predicted by an affine map of its input."""

from typing import Any

import polars as pl

from depthscope.errors import DepthscopeError
from depthscope.printable import shown
from depthscope.schema.declaration import Experiment, Option, Table
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.metric import Metric

STREAM = Metric(
    "stream_linearity",
    "score",
    "Linearity of the stream",
    "1 − Σ‖y − ŷ‖² / Σ‖y − ȳ‖² over the measured text, with y the stream after the block, ŷ what the affine map gives for the "
    "stream before it, and ȳ the mean, both fitted on other documents: 1 if the block is affine, 0 if its input says no more "
    "than the mean",
    None,
    1.0,
)
WRITE = Metric(
    "write_linearity",
    "score",
    "Linearity of the write",
    "the same for what the block writes, the stream after it minus that before it",
    None,
    1.0,
)
STREAM_IN_SAMPLE = Metric(
    "stream_linearity_in_sample",
    "score",
    "Linearity of the stream, in sample",
    "the same on the text that the map was fitted on, about its own mean: the score of Razzhigaev et al., which is too high "
    "where tokens are few; no interval",
    0.0,
    1.0,
)
WRITE_IN_SAMPLE = Metric(
    "write_linearity_in_sample",
    "score",
    "Linearity of the write, in sample",
    "the same for what the block writes",
    0.0,
    1.0,
)
LINEAR_KL = Metric(
    "linear_kl",
    "nats",
    "KL, replaced",
    "KL(p‖q) from the unmodified model's next-token distribution p to that of the model with the block replaced by its affine "
    "fit",
    0.0,
)
DROP_KL = Metric("drop_kl", "nats", "KL, dropped", "the same with the block dropped", 0.0)
KL_DIFFERENCE = Metric(
    "kl_difference",
    "nats",
    "KL saved by the fit",
    "KL of dropping the block minus that of replacing it by its affine fit",
)
LINEAR_AGREEMENT = Metric(
    "linear_agreement",
    "share",
    "Agreement, replaced",
    "share of positions where the model with the block replaced by its affine fit has the same most likely token",
    0.0,
    1.0,
)
LINEAR_LOSS_CHANGE = Metric(
    "linear_loss_change",
    "nats",
    "Loss change, replaced",
    "loss with the block replaced by its affine fit minus the unmodified model's",
)
SCORES, IN_SAMPLE = (STREAM, WRITE), (STREAM_IN_SAMPLE, WRITE_IN_SAMPLE)
MEASURED = (LINEAR_KL, DROP_KL, KL_DIFFERENCE, LINEAR_AGREEMENT, LINEAR_LOSS_CHANGE)
METRICS = (*SCORES, *IN_SAMPLE, *MEASURED)

ALL, NOT_FIRST = "all", "not_first"
POSITIONS = {
    ALL: "all positions",
    NOT_FIRST: "without the first position of each window, where many models have massive activations",
}
LOWEST, HIGHEST = "lowest", "highest"
EXTREMES = (
    (STREAM, LOWEST),
    (WRITE, LOWEST),
    (LINEAR_KL, LOWEST),
    (KL_DIFFERENCE, LOWEST),
    (KL_DIFFERENCE, HIGHEST),
)
"""What is picked among the blocks."""

LINEARITY_TABLE = {"layer": pl.Int32, "positions": pl.String, **ESTIMATE}
"""tables/linearity.parquet. `positions` are those that scores are fitted and measured on, and that KL is averaged over. The
block is always replaced by the map fitted on all positions, at all positions."""
LINEARITY_MEAN_TABLE = {"positions": pl.String, **ESTIMATE}
"""tables/linearity_mean.parquet: scores averaged over the blocks that have one."""
LINEARITY_EXTREMES_TABLE = {
    "positions": pl.String,
    "extreme": pl.String,
    "layer": pl.Int32,
    **ESTIMATE,
    "blocks": pl.Int64,
}
"""tables/linearity_extremes.parquet. Intervals have the level 1 − 0.05 / `blocks` (Bonferroni), so they hold although the block
was picked."""

TOKENS_PER_COORDINATE = 64
"""Tokens to fit on by default, for each coordinate of the residual stream, each of which has a coefficient in every map."""
ENOUGH_PER_COORDINATE, FEWEST_PER_COORDINATE = 16, 2
"""With fewer than the first the maps are noisy, and the page says so; with fewer than the second nothing is fitted."""
MOST_TOKENS = 1 << 40


def _check_tokens(tokens: Any) -> None:
    if not 0 < tokens <= MOST_TOKENS:
        raise DepthscopeError(f"{shown(tokens)} tokens to fit on: expected a whole number from 1 to {MOST_TOKENS:,}")


FIT_TOKENS = Option(
    name="fit_tokens",
    type=int,
    default=None,
    help="Tokens of the text that each block's affine map is fitted on.",
    shown_default=f"{TOKENS_PER_COORDINATE} for each coordinate of the residual stream",
    check=_check_tokens,
)
FIT_DATA = Option(
    name="fit_data",
    type=str,
    default=None,
    help="The text that the affine maps are fitted on, named as for --data.",
    shown_default="the documents of --data after the last measured one",
)

EXPERIMENT = Experiment(
    name="linearity",
    title="How close each block is to an affine map, and what it costs to replace it by one.",
    question="How well is the residual stream after each block predicted by an affine map of the one before it, and what the "
    "block writes? What does it cost to replace the block by that map, next to dropping it? The map is fitted on documents "
    "that are not measured.",
    make="depthscope.experiments.linearity:make",
    tables={
        "linearity": Table(columns=LINEARITY_TABLE, metrics=METRICS),
        "linearity_mean": Table(columns=LINEARITY_MEAN_TABLE, metrics=(*SCORES, *IN_SAMPLE)),
        "linearity_extremes": Table(
            columns=LINEARITY_EXTREMES_TABLE, metrics=tuple(dict.fromkeys(metric for metric, _ in EXTREMES))
        ),
    },
    options=(FIT_TOKENS, FIT_DATA),
    source="Razzhigaev et al. 2024",
    in_study=False,
    deep=True,
)

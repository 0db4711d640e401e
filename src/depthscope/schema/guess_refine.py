"""Guess, then refine: how frequent the tokens are that a lens predicts at each depth, and how often the guess is overturned.

From Gupta, Yeung, Anumanchipalli and Ivanova 2025 (arXiv 2510.18871) and the code they published.
"""

import polars as pl

from depthscope.schema.declaration import Experiment, Table
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.lens import LENS_OPTIONS
from depthscope.schema.metric import Metric
from depthscope.schema.protocol import PROTOCOL

NAME = "guess_refine"
RANKS = (10, 100, 1000)
"""The last rank of each band but the last."""
BANDS = ("1-10", "11-100", "101-1000", "rest")
"""Bands of tokens by rank of frequency, those of the source; the rest has tokens that do not occur too."""
ALL = "all"
"""As a band: tokens of every band."""

SHARE = Metric(
    "share",
    "share",
    "Most likely tokens by frequency",
    "share of positions where the lens’s most likely token at x_l is in the band",
    0.0,
    1.0,
)
OVERTURNED = Metric(
    "overturned",
    "share",
    "Overturned later",
    "of the positions where the lens’s most likely token at x_l is in the band, the share where the model’s most likely token "
    "is another one",
    0.0,
    1.0,
)
METRICS = (SHARE, OVERTURNED)

GUESS_REFINE_TABLE = {"lens": pl.String, "layer": pl.Int32, "band": pl.String, **ESTIMATE}
"""tables/guess_refine.parquet: `share` of each band and `overturned` of each and of all, by depth. `layer` l is x_l, the
residual stream before block l; L, the number of blocks, is after the last one."""

EXPERIMENT = Experiment(
    name=NAME,
    title="Frequent tokens as first guesses, and how often they are overturned.",
    question="Are the tokens that a lens predicts early the frequent ones, and are these guesses replaced later? Shares of the "
    "lens’s most likely tokens by frequency band and depth, and how often the model’s own prediction is another one.",
    make="depthscope.experiments.guess_refine:make",
    tables={NAME: Table(columns=GUESS_REFINE_TABLE, metrics=METRICS)},
    options=(PROTOCOL, *LENS_OPTIONS),
    source="Gupta et al. 2025 (arXiv 2510.18871)",
)

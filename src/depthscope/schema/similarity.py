"""How alike what layers write is, under swaps; how alike the residual streams of two depths are."""

import polars as pl

from depthscope.schema.metric import ESTIMATE, Metric

SELF = Metric(
    "self",
    "cosine",
    "Moved and in place",
    "cosine of a component's output when its block is moved with its output in place",
    -1.0,
    1.0,
)
INDEX = Metric(
    "index",
    "cosine",
    "Moved and displaced",
    "cosine of a component's output when its block is moved with the output of the one whose place it took",
    -1.0,
    1.0,
)
ADJACENT = Metric(
    "adjacent", "cosine", "Neighbours", "cosine of the outputs of both blocks' components in place", -1.0, 1.0
)
SWAP_METRICS = (SELF, INDEX, ADJACENT)
COMPONENTS = ("attention", "mlp")
LATER, EARLIER = "later", "earlier"
"""Which way a block moves in a swap of layers l and l + 1: block l runs later, block l + 1 earlier."""

SIMILARITY_TABLE = {"layer": pl.Int32, "component": pl.String, "moved": pl.String, **ESTIMATE}
"""tables/similarity.parquet. `layer` is the first of the two that change places; `adjacent` is the same for both moves."""

BLOCK_INFLUENCE = Metric(
    "block_influence", "1 − cosine", "Block influence", "1 − cos(x_l, x_{l+1}) (ShortGPT, Men et al. 2024)", 0.0, 2.0
)
INFLUENCE_TABLE = {"layer": pl.Int32, **ESTIMATE}
"""tables/influence.parquet."""

ANGULAR_DISTANCE = Metric(
    "angular_distance",
    "share of π",
    "Angular distance",
    "arccos(cos(x_l, x_m)) / π on the last token of a window (Gromov et al. 2024)",
    0.0,
    1.0,
)
CKA = Metric(
    "cka",
    "alignment",
    "Linear CKA",
    "unbiased linear centred kernel alignment of x_l and x_m over the last tokens of windows (Kornblith et al. 2019)",
)
GEOMETRY_TABLE = {"layer": pl.Int32, "other": pl.Int32, **ESTIMATE}
"""tables/geometry.parquet: pairs layer < other of residual streams x_0 … x_L. `tokens` are the windows the number is from."""

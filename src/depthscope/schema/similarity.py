"""How similar layers' outputs are under swaps; how similar the residual streams at two depths are."""

import polars as pl

from depthscope.schema.declaration import Experiment, Table
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.metric import Metric

SELF = Metric(
    "self",
    "cosine",
    "Moved and in place",
    "cosine between a component's output when its block is moved and its output in place",
    -1.0,
    1.0,
)
INDEX = Metric(
    "index",
    "cosine",
    "Moved and displaced",
    "cosine between a component's output when its block is moved and the output of the component whose place it took",
    -1.0,
    1.0,
)
ADJACENT = Metric(
    "adjacent", "cosine", "Neighbours", "cosine between the outputs of both blocks' components in place", -1.0, 1.0
)
SWAP_METRICS = (SELF, INDEX, ADJACENT)
COMPONENTS = ("attention", "mlp")
LATER, EARLIER = "later", "earlier"
"""How a block moves in a swap of layers l and l + 1: block l runs later, block l + 1 earlier."""

SIMILARITY_TABLE = {"layer": pl.Int32, "component": pl.String, "moved": pl.String, **ESTIMATE}
"""tables/similarity.parquet. `layer` is the first of the two swapped layers; `adjacent` is the same for both moves."""

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
"""tables/geometry.parquet: pairs layer < other of residual streams x_0 … x_L. `tokens` counts the windows used."""

EXPERIMENT = Experiment(
    name="similarity",
    title="What layers write under swaps; how similar depths are.",
    question="How similar are layers' outputs under swaps, and how similar are the residual streams at two depths? Cosines "
    "under every swap of neighbours; block influence; angular distance and linear CKA between depths.",
    make="depthscope.experiments.similarity:make",
    tables={"similarity": Table(columns=SIMILARITY_TABLE, metrics=SWAP_METRICS)},
    source="Lad et al. 2024, figures 11 and 12",
)
INFLUENCE = Experiment(
    name="influence",
    title="How much each block rotates the residual stream.",
    question="How much does each block rotate the residual stream (block influence)?",
    make="depthscope.experiments.influence:make",
    tables={"influence": Table(columns=INFLUENCE_TABLE, metrics=(BLOCK_INFLUENCE,))},
    with_command="similarity",
    source="Men et al. 2024 (ShortGPT)",
)
GEOMETRY = Experiment(
    name="geometry",
    title="How similar the residual streams at two depths are.",
    question="How similar are the residual streams at each pair of depths?",
    make="depthscope.experiments.geometry:make",
    tables={"geometry": Table(columns=GEOMETRY_TABLE, metrics=(ANGULAR_DISTANCE, CKA))},
    with_command="similarity",
    source="Gromov et al. 2024; Kornblith et al. 2019",
)

"""The geometry of the residual stream by depth: intrinsic dimension, anisotropy, rank; entropy and curvature of texts."""

from math import pi

import polars as pl

from depthscope.schema.declaration import Experiment, Table
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.metric import Metric

POINTS = 1024
"""At most so many windows' last tokens are kept: the nearest neighbours of each are looked for among all."""
NEIGHBOURS = (1, 2, 4, 8, 16, 32)
"""n of the ratios r_2n / r_n of GRIDE."""

TWO_NN = Metric(
    "two_nn",
    "dimensions",
    "Intrinsic dimension, TwoNN",
    "the slope of −log(1 − F(μ)) on log μ through the origin, over the smallest 90 % of the ratios μ of each point's distances "
    "to its second and first neighbour, with empirical distribution F (Facco et al. 2017)",
    0.0,
)
GRIDE = Metric(
    "gride",
    "dimensions",
    "Intrinsic dimension, GRIDE",
    "the most likely dimension, given the ratios of each point's distances to its 2n-th and n-th neighbours (Denti et al. "
    "2022)",
    0.0,
)
ANISOTROPY = Metric(
    "anisotropy",
    "share",
    "Anisotropy",
    "λ₁ / Σ λ: share of the variance along the first principal direction of the centred points",
    0.0,
    1.0,
)
EFFECTIVE_RANK = Metric(
    "effective_rank",
    "dimensions",
    "Effective rank",
    "exp of the entropy of λ / Σ λ, the eigenvalues of the covariance of the points (Roy and Vetterli 2007)",
    1.0,
)
POINT_METRICS = (TWO_NN, ANISOTROPY, EFFECTIVE_RANK)

PROMPT_ENTROPY = Metric(
    "prompt_entropy",
    "nats",
    "Prompt entropy",
    "entropy of the eigenvalues of K / tr K, where K is the Gram matrix of the window's vectors (Skean et al. 2025)",
    0.0,
)
UNIT_PROMPT_ENTROPY = Metric(
    "unit_prompt_entropy",
    "nats",
    "Prompt entropy, vectors of unit length",
    "the same with every vector scaled to length 1, so that a position with a huge norm does not decide it",
    0.0,
)
CURVATURE = Metric(
    "curvature",
    "radians",
    "Curvature",
    "mean angle between the steps from each position to the next, v_k = x_{k+1} − x_k and v_{k+1} (Hosseini and Fedorenko "
    "2023)",
    0.0,
    pi,
)
TRAJECTORY_METRICS = (PROMPT_ENTROPY, UNIT_PROMPT_ENTROPY, CURVATURE)

DIMENSION_TABLE = {"layer": pl.Int32, **ESTIMATE}
"""tables/dimension.parquet: of the last tokens' residual streams x_0 … x_L, `layer` 0 … L. `tokens` counts the points."""
DIMENSION_SCALES_TABLE = {"layer": pl.Int32, "neighbours": pl.Int32, **ESTIMATE}
"""tables/dimension_scales.parquet: the intrinsic dimension at larger and larger scales. `tokens` counts the points."""
TRAJECTORY_TABLE = {"layer": pl.Int32, **ESTIMATE}
"""tables/trajectory.parquet: of windows, at every depth. `tokens` counts the windows of the entropies and the angles of the
curvature."""
TRAJECTORY_SHARD = {
    "document": pl.Int64,
    "layer": pl.Int32,
    "quantity": pl.String,
    "tokens": pl.Int64,
    "value": pl.Float64,
}
"""shards/trajectory: sums over a document's windows (entropies) or angles (curvature)."""

DIMENSION = Experiment(
    name="dimension",
    title="Intrinsic dimension, anisotropy and rank by depth; entropy and curvature.",
    question="How many dimensions do the residual streams of different texts fill at each depth? How anisotropic are they? How "
    "spread out are the vectors of one text, and how curved is its path from token to token?",
    make="depthscope.experiments.dimension:make",
    tables={
        "dimension": Table(columns=DIMENSION_TABLE, metrics=POINT_METRICS),
        "dimension_scales": Table(columns=DIMENSION_SCALES_TABLE, metrics=(GRIDE,)),
    },
    source="Valeriani et al. 2023, Cheng et al. 2024",
    in_study=False,
    deep=True,
)
TRAJECTORY = Experiment(
    name="trajectory",
    title="Entropy and curvature of each text's vectors by depth.",
    question="How spread out are the vectors of one text at each depth, and how curved is its path from token to token?",
    make="depthscope.experiments.trajectory:make",
    tables={"trajectory": Table(columns=TRAJECTORY_TABLE, metrics=TRAJECTORY_METRICS)},
    with_command="dimension",
    source="Skean et al. 2025",
    in_study=False,
    deep=True,
)

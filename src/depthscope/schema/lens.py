"""The logit lens: what the head makes of the residual stream at every depth."""

import polars as pl

from depthscope.schema.metric import ESTIMATE, Metric

KL = Metric(
    "kl",
    "nats",
    "KL to the final distribution",
    "KL(p‖lens) of the lens's next-token distribution from the model's own p",
    0.0,
)
AGREEMENT = Metric(
    "agreement",
    "share",
    "Top-1 agreement",
    "share of positions where lens and p have the same most likely token",
    0.0,
    1.0,
)
ENTROPY = Metric("entropy", "nats", "Lens entropy", "entropy of the lens's next-token distribution", 0.0)
LOSS = Metric("loss", "nats", "Lens loss", "−log lens(next token)", 0.0)
METRICS = (KL, AGREEMENT, ENTROPY, LOSS)

LENS_TABLE = {"layer": pl.Int32, **ESTIMATE}
"""tables/lens.parquet. `layer` l is the residual stream before block l; L, the number of blocks, is after the last one."""

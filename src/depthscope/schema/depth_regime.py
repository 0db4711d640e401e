"""Depth regime: whether the middle layers average many small updates, follow a smooth path, or compose in a few steps.

Angles, progress and the loss through the last block as in Liu, Kangaslahti, Liu and Gore 2026 (arXiv 2602.05970) and the code
they published. They compare curves by eye and give no threshold: the readings and the verdict are depthscope's.
"""

import polars as pl

from depthscope.schema.declaration import Experiment, Table
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.metric import Metric

NAME, READINGS, VERDICT = "depth_regime", "depth_regime_readings", "depth_regime_verdict"
"""The experiment and its first table, and its other tables."""

STEP_ANGLE = Metric(
    "step_angle",
    "degrees",
    "Angle of a layer’s step",
    "angle between the residual stream before block l, x_l, and after it, x_{l+1}",
    0.0,
    180.0,
)
WRITE_ANGLE = Metric(
    "write_angle",
    "degrees",
    "Angle between consecutive writes",
    "angle between what block l adds to the residual stream and what block l + 1 adds: 90 if the two are independent, near 0 "
    "if they follow a smooth path",
    0.0,
    180.0,
)
END_ANGLE = Metric(
    "end_angle", "degrees", "Angle to the end", "angle between x_l and x_L, the stream after the last block", 0.0, 180.0
)
PROGRESS = Metric(
    "progress",
    "ratio",
    "Progress to the end",
    "⟨x_l − x_0, x_L − x_0⟩ / ‖x_L − x_0‖²: 0 before the first block, 1 after the last",
)
STRAIGHT_LOSS = Metric(
    "straight_loss",
    "nats",
    "Loss through the last layer",
    "loss when x_l goes straight to the last block, all blocks from l to L − 2 left out; at l = L − 1 that of the model",
    0.0,
)
CURVES = (STEP_ANGLE, WRITE_ANGLE, END_ANGLE, PROGRESS, STRAIGHT_LOSS)

EVEN_UPDATES = Metric(
    "even_updates",
    "share",
    "Updated by most middle layers",
    "share of tokens with (Σ θ)² / Σ θ² > M / 2, θ the angles of the steps of the M middle blocks, 1 to L − 2: tokens "
    "rotated by more than half of them",
    0.0,
    1.0,
)
PARTICIPATION = Metric(
    "participation",
    "share",
    "Middle layers that take part",
    "(Σ θ)² / (M Σ θ²) of a token, θ the angles of the steps of the M middle blocks: 1 if all rotate the stream equally, "
    "1 / M if one does",
    0.0,
    1.0,
)
MIDDLE_WRITE_ANGLE = Metric(
    "middle_write_angle",
    "degrees",
    "Consecutive writes, middle layers",
    "mean of write_angle over the pairs of consecutive middle blocks",
    0.0,
    180.0,
)
LOSS_BELOW_LINE = Metric(
    "loss_below_line",
    "nats",
    "Loss below the straight line",
    "how far straight_loss at x_2 … x_{L−2} is on average below the straight line from its value at x_1 to that at x_{L−1}: "
    "above 0 if most of the fall comes early, below 0 if late",
)
LOSS_FALL = Metric("loss_fall", "nats", "Fall of the loss", "straight_loss at x_1 minus that at x_{L−1}")
PROGRESS_ABOVE_LINE = Metric(
    "progress_above_line",
    "ratio",
    "Progress above the straight line",
    "how far progress at x_2 … x_{L−2} is on average above the straight line from its value at x_1 to that at x_{L−1}; "
    "reported only",
)
METRICS = (EVEN_UPDATES, MIDDLE_WRITE_ANGLE, LOSS_BELOW_LINE, LOSS_FALL, PARTICIPATION, PROGRESS_ABOVE_LINE)
"""The readings: the first three decide, with LOSS_FALL above 0."""

HALF, SMOOTH_ANGLE, OPPOSED_ANGLE = 0.5, 45.0, 135.0
"""Thresholds of the readings: half of the tokens; angles half-way from independent writes (90 degrees) to parallel and to
opposite ones."""
FEWEST_BLOCKS, FEWEST_MIDDLE = 4, 4
"""Blocks that a model must have for readings, and middle blocks for a verdict: of two or fewer, participation is never below
one half."""

SPREAD, CONCENTRATED = "spread", "concentrated"
INDEPENDENT, ALIGNED, OPPOSED = "independent", "aligned", "opposed"
EARLY, LATE = "early", "late"
"""Sides of a threshold on which a reading's whole interval can be."""

ENSEMBLE, PROCEDURAL, COMPOSITION, UNRESOLVED = "ensemble", "procedural", "composition", "not resolved"
REGIMES = {
    ENSEMBLE: (SPREAD, INDEPENDENT, EARLY),
    PROCEDURAL: (SPREAD, ALIGNED, None),
    COMPOSITION: (CONCENTRATED, None, LATE),
}
"""The regimes, and the sides that EVEN_UPDATES, MIDDLE_WRITE_ANGLE and LOSS_BELOW_LINE must be on; None: either."""

DEPTH_REGIME_TABLE = {"layer": pl.Int32, "positions": pl.String, **ESTIMATE}
"""tables/depth_regime.parquet: the curves. `layer` l is x_l, the residual stream before block l, or what block l writes."""
DEPTH_REGIME_READINGS_TABLE = {"positions": pl.String, **ESTIMATE, "side": pl.String}
"""tables/depth_regime_readings.parquet: what is read from the middle layers, and on which side of its threshold it is."""
DEPTH_REGIME_VERDICT_TABLE = {
    "positions": pl.String,
    "verdict": pl.String,
    "reason": pl.String,
    "tokens": pl.Int64,
    "documents": pl.Int64,
}
"""tables/depth_regime_verdict.parquet: the regime, or `not resolved` and why."""

EXPERIMENT = Experiment(
    name=NAME,
    title="Whether the middle layers average small updates or compose.",
    question="Do the middle layers make many small, independent updates, as an ensemble whose errors average out would, or is "
    "the work done in a few steps that build on each other? Angles between streams and between writes, progress to the final "
    "stream, and the loss when the stream goes straight to the last layer.",
    make="depthscope.experiments.depth_regime:make",
    tables={
        NAME: Table(columns=DEPTH_REGIME_TABLE, metrics=CURVES),
        READINGS: Table(columns=DEPTH_REGIME_READINGS_TABLE, metrics=METRICS),
        VERDICT: Table(columns=DEPTH_REGIME_VERDICT_TABLE),
    },
    source="Liu et al. 2026 (arXiv 2602.05970)",
    in_study=False,
    deep=True,
)

"""Effective depth: how deep into the model its layers still compose what is predicted, by three readings.

From Hu, Zhou and Zhang 2025 (arXiv 2512.14064) and the code they published, after Csordás, Manning and Potts 2025 (arXiv
2505.13898). A reading is one depth, found on curves over depth, so its interval is one of depths.
"""

from dataclasses import dataclass

import polars as pl

from depthscope.schema.declaration import Experiment, Table
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.lens import KL, LENS_OPTIONS, TOP_TOKENS
from depthscope.schema.metric import Metric
from depthscope.schema.protocol import PROTOCOL

NAME, CURVES = "effective_depth", "effective_depth_curves"

WRITE_COSINE = Metric(
    "write_cosine",
    "cosine",
    "Block’s write and stream",
    "cosine between what block l adds to the residual stream, x_{l+1} − x_l, and the stream x_l",
    -1.0,
    1.0,
)
ATTENTION_COSINE = Metric(
    "attention_cosine",
    "cosine",
    "Attention’s write and stream",
    "cosine between what the attention of block l adds to the residual stream and x_l",
    -1.0,
    1.0,
)
MLP_COSINE = Metric(
    "mlp_cosine",
    "cosine",
    "MLP’s write and stream",
    "cosine between what the MLP of block l adds to the residual stream and the stream it is added to: x_l plus the "
    "attention’s write, or x_l in a block whose attention and MLP run in parallel",
    -1.0,
    1.0,
)
COMPONENT_COSINE = Metric(
    "component_cosine",
    "cosine",
    "Mean of the three",
    "mean of write_cosine, attention_cosine and mlp_cosine, which the code of Hu et al. reads",
    -1.0,
    1.0,
)
KL_SHARE = Metric(
    "kl_share",
    "share",
    "Lens KL over its maximum",
    "KL(p‖lens) at x_l as a share of its largest mean over x_0 … x_{L−1}",
    0.0,
    1.0,
)
OVERLAP = Metric(
    "top5_overlap",
    "share",
    "Top-5 overlap",
    f"how many of the lens’s {TOP_TOKENS} most likely tokens at x_l are among the {TOP_TOKENS} most likely ones of the model, "
    f"divided by {TOP_TOKENS}",
    0.0,
    1.0,
)
COSINES = (WRITE_COSINE, ATTENTION_COSINE, MLP_COSINE, COMPONENT_COSINE)
LENS_CURVES = (KL, KL_SHARE, OVERLAP)
METRICS = (*COSINES, *LENS_CURVES)


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthReading:
    """One way to read a depth off a curve."""

    name: str
    title: str
    definition: str
    curve: Metric
    threshold: float
    published: bool = False
    """Whether its threshold is that of the published numbers, rather than the default of the published functions."""


READINGS = {
    one.name: one
    for one in (
        DepthReading(
            name="write_cosine",
            title="Write turns to the stream",
            definition="the last layer l whose mean write_cosine is negative and the next layer’s is not: up to it blocks "
            "take from the stream what it holds or add what it lacks, from then on they amplify it",
            curve=WRITE_COSINE,
            threshold=0.0,
        ),
        DepthReading(
            name="component_cosine",
            title="The same, of the mean of three",
            definition="the same of component_cosine, as in the code of Hu et al.",
            curve=COMPONENT_COSINE,
            threshold=0.0,
        ),
        DepthReading(
            name="kl",
            title="KL below a tenth",
            definition="the first depth l < L at which the lens’s mean KL is less than 0.1 of its maximum",
            curve=KL_SHARE,
            threshold=0.1,
        ),
        DepthReading(
            name="overlap",
            title="Overlap above 20%",
            definition="the first depth l < L at which the mean top-5 overlap is more than 0.2",
            curve=OVERLAP,
            threshold=0.2,
        ),
        DepthReading(
            name="kl_half",
            title="KL below a half",
            definition="the same as kl with the threshold 0.5, with which the published numbers were made",
            curve=KL_SHARE,
            threshold=0.5,
            published=True,
        ),
        DepthReading(
            name="overlap_30",
            title="Overlap above 30%",
            definition="the same as overlap with the threshold 0.3, with which the published numbers were made",
            curve=OVERLAP,
            threshold=0.3,
            published=True,
        ),
    )
}
"""The readings by name. The functions of the published code have the thresholds 0.1 and 0.2 by default; the notebook that
prints its numbers calls them with 0.5 and 0.3."""

EFFECTIVE_DEPTH_TABLE = {
    "lens": pl.String,
    "reading": pl.String,
    "threshold": pl.Float64,
    "depth": pl.Int32,
    "ci_low": pl.Int32,
    "ci_high": pl.Int32,
    "share": pl.Float64,
    "share_low": pl.Float64,
    "share_high": pl.Float64,
    "exists": pl.Float64,
    "reason": pl.String,
    "tokens": pl.Int64,
    "documents": pl.Int64,
}
"""tables/effective_depth.parquet: one row per reading and, of those of a lens, per lens."""

EFFECTIVE_DEPTH_CURVES_TABLE = {"lens": pl.String, "layer": pl.Int32, **ESTIMATE}
"""tables/effective_depth_curves.parquet: what the depths are read from. `layer` l is block l for cosines; for a lens it is x_l,
the residual stream before block l, and L after the last."""

EXPERIMENT = Experiment(
    name=NAME,
    title="How deep the layers still compose the prediction.",
    question="How much of its depth does the model use? Where blocks begin to amplify the residual stream rather than to "
    "change it, where the lens’s prediction comes near the final one, and where their most likely tokens overlap.",
    make="depthscope.experiments.effective_depth:make",
    tables={
        NAME: Table(columns=EFFECTIVE_DEPTH_TABLE),
        CURVES: Table(columns=EFFECTIVE_DEPTH_CURVES_TABLE, metrics=METRICS),
    },
    options=(PROTOCOL, *LENS_OPTIONS),
    source="Hu et al. 2025 (arXiv 2512.14064); Csordás et al. 2025",
)

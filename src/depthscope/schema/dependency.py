"""Layer dependency: how much each later block's write changes when an earlier block is skipped."""

from collections.abc import Sequence

import polars as pl

from depthscope.errors import DepthscopeError
from depthscope.printable import shown
from depthscope.schema.declaration import Experiment, Option, Table
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.metric import Metric

ALL, FUTURE, LOCAL, LOCAL_FUTURE = "all", "future", "local", "local_future"
VARIANTS = {
    ALL: "the block is skipped at every position, and every position is measured",
    FUTURE: "the block is skipped before position t, and the positions from t on are measured: what changes there reaches "
    "them through attention. Several t, pooled",
    LOCAL: "only the block's write is taken from each later block's input, which is otherwise the unmodified model's: its "
    "direct effect, not through blocks in between. Every position",
    LOCAL_FUTURE: "only the block's write is taken from each later block's input, before position t, and the positions from t "
    "on are measured. Several t, pooled",
}
"""What is skipped, and where the change is measured."""
CHAINED = (ALL, FUTURE)
"""The variants in which a block is really skipped, so that there is an output."""

CHANGE = Metric(
    "change", "ratio", "Change of a later write", "‖Δ_l − Δ_l^(s)‖ / ‖Δ_l‖, where Δ_l is what block l adds", 0.0
)
LATER = Metric("later_change", "ratio", "Change of later writes", "mean of `change` over the blocks l > s: e_s", 0.0)
OUTPUT = Metric(
    "output_change",
    "probability",
    "Change of the output",
    "‖softmax(z) − softmax(z^(s))‖₂ over the vocabulary",
    0.0,
    2**0.5,
)
DEPTH_SCORE = Metric(
    "depth_score",
    "layer",
    "Depth score",
    "Σ s·e_s / Σ e_s: the mean layer, weighted by its effect on later writes",
    0.0,
)
OUTPUT_DEPTH_SCORE = Metric(
    "output_depth_score",
    "layer",
    "Depth score of the output",
    "the same, weighted by the effect on the output",
    0.0,
)
SECOND_HALF = Metric(
    "second_half",
    "ratio",
    "Second half over first half",
    "mean e_s of the layers of the second half, divided by that of the first half: below 1, later layers depend less on them",
    0.0,
)
EFFECTS = (LATER, OUTPUT)
SCORES = (DEPTH_SCORE, OUTPUT_DEPTH_SCORE, SECOND_HALF)

DEPENDENCY_SHARD = {
    "document": pl.Int64,
    "variant": pl.String,
    "layer": pl.Int32,
    "other": pl.Int32,
    "tokens": pl.Int64,
    "change": pl.Float64,
    "largest": pl.Float64,
}
"""shards/dependency: sums over a document's measured tokens, and the largest of them. `other` is the number of layers where the
value is the change of the output."""

DEPENDENCY_TABLE = {"variant": pl.String, "layer": pl.Int32, "other": pl.Int32, **ESTIMATE, "largest": pl.Float64}
"""tables/dependency.parquet: block `layer` is skipped and the write of block `other` > `layer` measured."""
DEPENDENCY_EFFECTS_TABLE = {"variant": pl.String, "layer": pl.Int32, **ESTIMATE, "largest": pl.Float64}
"""tables/dependency_effects.parquet: what skipping block `layer` does to all later writes and to the output."""
DEPENDENCY_DEPTH_TABLE = {"variant": pl.String, **ESTIMATE}
"""tables/dependency_depth.parquet: where along the depth the layers are that others depend on."""


def _check_variants(names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in VARIANTS]
    if unknown or not names:
        known = ", ".join(name.replace("_", "-") for name in VARIANTS)
        raise DepthscopeError(
            f"unknown variant of dependency {', '.join(unknown) or '(none given)'}: expected some of {known}"
        )


MOST_SPLITS = 64


def _check_splits(splits: int) -> None:
    if not 1 <= splits <= MOST_SPLITS:
        raise DepthscopeError(f"{shown(splits)} positions to split windows at: expected 1 to {MOST_SPLITS}")


VARIANT = Option(
    name="variant",
    type=tuple,
    default=(ALL,),
    help=f"Which variants, separated by commas: {', '.join(name.replace('_', '-') for name in VARIANTS)}.",
    shown_default=ALL,
    check=_check_variants,
)
SPLITS = Option(
    name="splits",
    type=int,
    default=4,
    help="At how many positions t, evenly spaced, the future variants split a window. Each costs as much as the variant all.",
    check=_check_splits,
)
KEEP_FIRST = Option(
    name="keep_first",
    type=bool,
    default=False,
    help="Do not skip a block at the first position of a window, whose stream many models use as an attention sink; it is "
    "then not measured either. The paper's figures are made so.",
)

EXPERIMENT = Experiment(
    name="dependency",
    title="How much later layers depend on each layer.",
    question="If a block is skipped, how much does what each later block writes change, and how much the output? Are the "
    "later layers of the model ones that others build on?",
    make="depthscope.experiments.dependency:make",
    tables={
        "dependency": Table(columns=DEPENDENCY_TABLE, metrics=(CHANGE,)),
        "dependency_effects": Table(columns=DEPENDENCY_EFFECTS_TABLE, metrics=EFFECTS),
        "dependency_depth": Table(columns=DEPENDENCY_DEPTH_TABLE, metrics=SCORES),
    },
    options=(VARIANT, SPLITS, KEEP_FIRST),
    source="Csordás, Manning, Potts 2025 (arXiv 2505.13898)",
    in_study=False,
    deep=True,
)

"""The edits of "Transformer Layers as Painters" (Sun et al. 2024, arXiv 2407.09298): ranges in the middle of the model changed.

In a model of T layers, numbered from 1, the layers N to T − N are changed, for every N that leaves at least two of them: in the
tables, where layers count from 0, the ranges from f to T − 2 − f. Also Lad et al. 2025: blocks of 3 and 5 layers of which each
layer runs twice in a row.
"""

from dataclasses import dataclass

import polars as pl

from depthscope.schema.declaration import Experiment, Table
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.measures import AGREEMENT, KL, LOSS, metrics_of
from depthscope.schema.metric import Metric

MEASURED = (KL, AGREEMENT, LOSS)
"""What is measured per token."""
METRICS = (KL, AGREEMENT, metrics_of([LOSS])["loss_change"])
KL_DIFFERENCE = Metric(
    "kl_difference",
    "nats",
    "Difference in KL",
    "KL of the edit claimed to be worse minus that of the one claimed to be better, on the same ranges and documents",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PaintersEdit:
    """An edit of a range of layers."""

    name: str
    title: str
    definition: str
    edit: str
    """The edit as text, with places for the first and last layer and, of random orders, the seed."""
    draws: int = 0
    """How many random orders of each range are measured; 0 where nothing is random."""
    block: int = 0
    """The number of layers of the range, at every place of the model; 0 for the ranges in the middle."""


ORDERS = 10
"""Random orders of each range, drawn with the seeds 0 to 9, as many as in the paper."""

EDITS = {
    one.name: one
    for one in (
        PaintersEdit(
            name="repeat_middle",
            title="Repeat the middle",
            definition="each layer of the range is replaced by the range’s middle layer",
            edit="repeat_middle({first}, {last})",
        ),
        PaintersEdit(
            name="skip", title="Skip", definition="the layers of the range are skipped", edit="drop({first}, {last})"
        ),
        PaintersEdit(
            name="parallel",
            title="Parallel",
            definition="the layers of the range read the same residual stream, which continues with their mean",
            edit="parallel({first}, {last})",
        ),
        PaintersEdit(
            name="reverse",
            title="Reverse",
            definition="the layers of the range run in reverse order",
            edit="reverse({first}, {last})",
        ),
        PaintersEdit(
            name="random",
            title="Random order",
            definition=f"the layers of the range run in a random order: mean over {ORDERS} orders, with an interval over "
            "orders and documents",
            edit="shuffle({seed}, {first}, {last})",
            draws=ORDERS,
        ),
        PaintersEdit(
            name="loop",
            title="Looped parallel",
            definition="parallel, three times in a row, each time on the mean of the time before",
            edit="loop({first}, {last}, 3)",
        ),
        PaintersEdit(
            name="repeat_3",
            title="3 layers twice",
            definition="each of 3 neighbouring layers runs twice in a row: 5 5 6 6 7 7",
            edit="repeat({first}, {last})",
            block=3,
        ),
        PaintersEdit(
            name="repeat_5",
            title="5 layers twice",
            definition="each of 5 neighbouring layers runs twice in a row",
            edit="repeat({first}, {last})",
            block=5,
        ),
    )
}
CLAIMED_ORDER = tuple(name for name, one in EDITS.items() if not one.block)
"""The edits of the middle from worst to best, as the paper's figure 11 ranks them."""

AS_CLAIMED, REVERSED, NOT_RESOLVED = "as claimed", "reversed", "not resolved"

PAINTERS_TABLE = {"edit": pl.String, "layer": pl.Int32, "other": pl.Int32, "draw": pl.Int32, **ESTIMATE}
"""tables/painters.parquet. The layers from `layer` to `other` are changed. `draw` is the seed of a random order, null for the
mean over all of them, whose interval is over orders and documents, and for edits without randomness."""

PAINTERS_ORDER_TABLE = {
    "worse": pl.String,
    "better": pl.String,
    "layer": pl.Int32,
    "other": pl.Int32,
    "ranges": pl.Int32,
    **ESTIMATE,
    "verdict": pl.String,
}
"""tables/painters_order.parquet: neighbours in the claimed order, on each range and on average over all `ranges`. The intervals
are those of 5 comparisons at once: each has the level 1 − 0.05 / 5 (Bonferroni)."""

EXPERIMENT = Experiment(
    name="painters",
    title="Change a range of middle layers: skip, repeat, reorder, run in parallel.",
    question="What does it cost to skip, repeat, reverse, shuffle or run in parallel the middle layers of a model, the more of "
    "them are changed? Is the order of these edits, from worst to best, the one claimed?",
    make="depthscope.experiments.painters:make",
    tables={
        "painters": Table(columns=PAINTERS_TABLE, metrics=METRICS),
        "painters_order": Table(columns=PAINTERS_ORDER_TABLE, metrics=(KL_DIFFERENCE,)),
    },
    with_command="sweep",
    source="Sun et al. 2024, figures 4 to 11; Lad et al. 2025 (blocks run twice)",
    in_study=False,
)

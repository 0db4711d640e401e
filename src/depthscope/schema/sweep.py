"""The sweep: edits, what is measured of each, its table and shards."""

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from depthscope.errors import RouteError
from depthscope.schema.metric import ESTIMATE, Metric

KL = Metric(
    "kl", "nats", "KL divergence", "KL(p‖q) of the edited model's next-token distribution q from the model's own p", 0.0
)
AGREEMENT = Metric(
    "agreement",
    "share",
    "Top-1 agreement",
    "share of positions where p and q have the same most likely token",
    0.0,
    1.0,
)
ENTROPY = Metric("entropy", "nats", "Entropy", "H(q)", 0.0)
ENTROPY_CHANGE = Metric("entropy_change", "nats", "Change in entropy", "H(q) − H(p)")
LOSS = Metric("loss", "nats", "Loss", "−log q(next token)", 0.0)
LOSS_CHANGE = Metric("loss_change", "nats", "Change in loss", "−log q(next token) + log p(next token)")

MEASURED = (KL, AGREEMENT, ENTROPY, LOSS)
"""What the engine measures per token; the changes follow from these and the baseline."""

METRICS = {m.name: m for m in (KL, AGREEMENT, ENTROPY, ENTROPY_CHANGE, LOSS, LOSS_CHANGE)}


@dataclass(frozen=True, slots=True)
class EditKind:
    """A kind of edit as it stands in the column `edit`, in words, and the sentence that defines it."""

    name: str
    title: str
    definition: str


SWAP = EditKind("swap", "Swap", "a layer and the next take each other’s places; shown at the first of the two")
DROP = EditKind("drop", "Drop", "a layer is skipped whole: the residual stream passes unchanged")
DROP_ATTN = EditKind("drop_attn", "Drop attention", "a layer runs without its attention output, bias included")
DROP_MLP = EditKind("drop_mlp", "Drop MLP", "a layer runs without its MLP output, bias included")
DROP_SSM = EditKind(
    "drop_ssm", "Drop SSM", "a layer runs without the output of its state-space mixer, its attention in place"
)
DROP_PLE = EditKind("drop_ple", "Drop per-layer input", "a layer runs without its own embedding of the token")
EDIT_KINDS = {kind.name: kind for kind in (SWAP, DROP, DROP_ATTN, DROP_MLP, DROP_SSM, DROP_PLE)}


def check_edits(kinds: Sequence[str]) -> None:
    """Raise RouteError for a kind of edit that a sweep does not do, or none."""
    unknown = [kind for kind in kinds if kind not in EDIT_KINDS]
    if unknown or not kinds:
        raise RouteError(
            f"unknown edit {', '.join(unknown) or '(none given)'}: expected some of {', '.join(EDIT_KINDS)}"
        )


BASELINE_EDIT, BASELINE_LAYER = "none", -1
"""How the unedited model stands in `edit` and `layer`."""

SWEEP_TABLE = {"edit": pl.String, "layer": pl.Int32, **ESTIMATE}
"""tables/sweep.parquet."""

TOKEN_SHARD = {
    "document": pl.Int64,
    "position": pl.Int64,
    "token": pl.Int32,
    "next_token": pl.Int32,
    "edit": pl.String,
    "layer": pl.Int32,
    **{m.name: pl.Float32 for m in MEASURED},
}
"""shards/sweep with --per-token: a row per edit, layer and position. `position` counts within the document, so that
`document` and `position` name a token; everything on a row is about the same next-token distribution. Information in
nats, agreement 0 or 1."""

DOCUMENT_SHARD = {
    "document": pl.Int64,
    "edit": pl.String,
    "layer": pl.Int32,
    "tokens": pl.Int64,
    **{m.name: pl.Float64 for m in MEASURED},
}
"""shards/sweep otherwise: a row per document, edit and layer, the metrics summed over that document's tokens there."""

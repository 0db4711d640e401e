"""Where attention goes: to the previous tokens, to the first token of the window, to the token itself."""

import polars as pl

from depthscope.schema.declaration import Experiment, Table
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.metric import Metric
from depthscope.schema.protocol import PROTOCOL

REACHES = (1, 2, 4, 5, 8, 16)
"""How many previous tokens are counted together."""


def previous(reach: int) -> Metric:
    """Attention to the `reach` tokens before the query."""
    return Metric(
        f"previous_{reach}",
        "share",
        f"Attention to the {reach} previous tokens" if reach > 1 else "Attention to the previous token",
        f"share of a query's attention on the {f'{reach} tokens' if reach > 1 else 'token'} before it, excluding itself",
        0.0,
        1.0,
    )


def band(reach: int) -> Metric:
    """The published script's version."""
    return Metric(
        f"band_{reach}",
        "share",
        f"Mean entry of the first {reach} sub-diagonals",
        f"mean over the entries of the pattern's first {reach} sub-diagonals (lad2024)",
        0.0,
        1.0,
    )


FIRST = Metric("first", "share", "Attention to the first token", "share on the window's first token", 0.0, 1.0)
ITSELF = Metric("self", "share", "Attention to itself", "share on the query's own token", 0.0, 1.0)

PREVIOUS = {reach: previous(reach) for reach in REACHES}
BANDS = {reach: band(reach) for reach in REACHES}

ATTENTION_TABLE = {"layer": pl.Int32, **ESTIMATE}
"""tables/attention.parquet: means over the heads of a layer."""
HEADS_TABLE = {"layer": pl.Int32, "head": pl.Int32, **ESTIMATE}
"""tables/attention_heads.parquet. `tokens` counts the queries in the mean."""

EXPERIMENT = Experiment(
    name="attention",
    title="How local each head's and layer's attention is.",
    question="How much attention goes to the previous tokens, the first token and the token itself, per head and layer?",
    make="depthscope.experiments.attention:make",
    tables={
        "attention": Table(
            columns=ATTENTION_TABLE,
            metrics=(*PREVIOUS.values(), *BANDS.values(), FIRST, ITSELF),
            in_terminal=(*(kind[reach] for kind in (PREVIOUS, BANDS) for reach in (1, 5, 16)), FIRST, ITSELF),
        ),
        "attention_heads": Table(columns=HEADS_TABLE, metrics=(*PREVIOUS.values(), *BANDS.values(), FIRST, ITSELF)),
    },
    options=(PROTOCOL,),
    source="Lad et al. 2024, figures 1 and 4",
)

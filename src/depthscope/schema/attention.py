"""Where attention goes: to the previous tokens, to the first token of the window, to the token itself."""

import polars as pl

from depthscope.errors import DepthscopeError
from depthscope.schema.declaration import Experiment, Option, Table
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
"""tables/attention.parquet: means over the heads of a layer. All columns are over the same queries. Under the protocol `text`
these are the queries with at least as many tokens before them as the longest reach, 16: the first 16 of every window are left
out, so that no query has fewer than k previous tokens. `--queries all` includes them; a query then counts with as many previous
tokens as it has. Under `lad2024` all queries are included."""
HEADS_TABLE = {"layer": pl.Int32, "head": pl.Int32, **ESTIMATE}
"""tables/attention_heads.parquet. `tokens` counts the queries in the mean: those of `attention`."""

FULL, ALL = "full", "all"
QUERY_CHOICES = {FULL: "those with 16 tokens before them", ALL: "all of a window"}


def check_queries(name: str) -> None:
    """Raise DepthscopeError for an unknown choice of queries."""
    if name not in QUERY_CHOICES:
        raise DepthscopeError(f"unknown choice of queries {name!r}: expected one of {', '.join(QUERY_CHOICES)}")


QUERIES = Option(
    name="queries",
    type=str,
    default=FULL,
    help="Queries whose attention is averaged: full (those with 16 tokens before them), or all. lad2024 always uses all.",
    check=check_queries,
)

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
    options=(PROTOCOL, QUERIES),
    source="Lad et al. 2024, figures 1 and 4",
)

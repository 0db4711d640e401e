"""Attention heads: what they attend to, their tables and shards."""

import polars as pl

from depthscope.schema.declaration import Experiment, Table
from depthscope.schema.estimates import ESTIMATE, MOMENTS
from depthscope.schema.metric import Metric

MERGE = Metric(
    "merge",
    "share",
    "Sub-word merging",
    "attention of a word’s last token to the word’s other tokens, minus attention of a one-token word to the same "
    "positions before it; both words from the same document",
    -1.0,
    1.0,
)
MERGE_FIRST = Metric(
    "merge_first",
    "share",
    "Sub-word merging, first token",
    "as merge, for the word’s first token alone: the subjoiner heads of the paper",
    -1.0,
    1.0,
)
PREVIOUS_TOKEN = Metric(
    "previous_token",
    "share",
    "Previous token",
    "attention to the previous token, in a repeated sequence of random tokens; mean over positions that have one",
    0.0,
    1.0,
)
DUPLICATE_TOKEN = Metric(
    "duplicate_token",
    "share",
    "Duplicate token",
    "attention to earlier occurrences of the same token, in a repeated sequence of random tokens; mean over positions whose "
    "token occurred before",
    0.0,
    1.0,
)
INDUCTION = Metric(
    "induction",
    "share",
    "Induction",
    "attention to the tokens that followed earlier occurrences of the same token, in a repeated sequence of random tokens; "
    "mean over positions whose token occurred before",
    0.0,
    1.0,
)
PREVIOUS_TOKEN_NATURAL = Metric(
    "previous_token_natural", "share", "Previous token, text", "as previous_token, in windows of the text", 0.0, 1.0
)
DUPLICATE_TOKEN_NATURAL = Metric(
    "duplicate_token_natural", "share", "Duplicate token, text", "as duplicate_token, in windows of the text", 0.0, 1.0
)
INDUCTION_NATURAL = Metric(
    "induction_natural", "share", "Induction, text", "as induction, in windows of the text", 0.0, 1.0
)
ATTENTION = Metric(
    "attention",
    "share",
    "Attention of the final token",
    "attention of a prompt’s final token to one position",
    0.0,
    1.0,
)

MERGING = (MERGE, MERGE_FIRST)
REPEATED = (PREVIOUS_TOKEN, DUPLICATE_TOKEN, INDUCTION)
NATURAL = (PREVIOUS_TOKEN_NATURAL, DUPLICATE_TOKEN_NATURAL, INDUCTION_NATURAL)
HEAD_METRICS = {metric.name: metric for metric in (*MERGING, *REPEATED, *NATURAL)}

TEXT_OF = dict(zip(NATURAL, REPEATED, strict=True))
"""For each metric on text, the metric on random tokens that decides whether a head is of the kind."""
OF_A_KIND = 0.25
"""A head is a previous-token, duplicate-token or induction head from this share of its attention on, in a repeated sequence of
random tokens. The papers judge by eye; the threshold is ours. A score far above chance but below it shows that the head leans
that way, not that this is what it does."""

WORD, PLAIN = "word", "plain"
"""The prompts whose last word is `word_tokens` tokens long, and those whose last word is one token."""

HEADS_TABLE = {
    "layer": pl.Int32,
    "head": pl.Int32,
    "rank": pl.Int32,
    "word_tokens": pl.Int32,
    "chance": pl.Float64,
    "p_adjusted": pl.Float64,
    **ESTIMATE,
}
"""tables/heads.parquet: one row per metric and query head. `rank` is 1 for the head with the largest mean of the metric.
`word_tokens` is the number of tokens of the words in merge and merge_first, null otherwise. `chance` is the mean of a head
with uniform attention to all positions up to itself; 0 for the two differences. `p_adjusted`: one-sided t test over documents
of mean > chance (by more than rounding), adjusted over the metric's heads after Benjamini and Hochberg, so that of the heads
with p_adjusted < 0.05 no more than about 5 % are expected to be there by chance; null with one document. `tokens` counts the
queries in the mean (pairs of prompts for merge and merge_first). For random tokens `documents` counts sequences."""

HEAD_POSITIONS_TABLE = {
    "layer": pl.Int32,
    "head": pl.Int32,
    "prompts": pl.String,
    "offset": pl.Int32,
    "word_tokens": pl.Int32,
    **ESTIMATE,
}
"""tables/head_positions.parquet: attention of the final token to the token `offset` positions before it (0: itself), for
each class of prompts. `word_tokens` is the number of tokens of the words of the class `word`, for both classes."""

HEAD_SHARD = {
    "sample": pl.String,
    "quantity": pl.String,
    "offset": pl.Int32,
    "layer": pl.Int32,
    "head": pl.Int32,
    **MOMENTS,
}
"""shards/heads: moments over the documents of a unit, from which means and intervals are computed, one row per quantity and
head. `sample` names the queries (`prompts`, or a metric), `quantity` what is measured: `merge`, `merge_first`; `word` or
`plain` attention at an `offset`; `attention`, and its `excess` over chance."""

EXPERIMENT = Experiment(
    name="heads",
    title="Heads that merge sub-words; previous-token, duplicate-token, induction heads.",
    question="Which heads merge the parts of words, and which are previous-token, duplicate-token or induction heads?",
    make="depthscope.experiments.heads:make",
    tables={
        "heads": Table(columns=HEADS_TABLE, metrics=tuple(HEAD_METRICS.values())),
        "head_positions": Table(columns=HEAD_POSITIONS_TABLE, metrics=(ATTENTION,)),
    },
    source="Lad et al. 2024, figure 9",
)

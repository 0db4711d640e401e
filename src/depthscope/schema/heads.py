"""Attention heads: what they attend to, their tables and shards."""

from collections.abc import Mapping
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class HeadKind:
    """When a head is of a kind: its mean must exceed what position alone would give by more than `least`."""

    definition: str
    """What position alone would give: the null."""
    least: float
    reason: str


OF_A_KIND = 0.25
RECENCY_DECAY = 0.5
"""Attention by recency is taken to fall by at most this factor with every token back."""
QUARTER = (
    "a quarter of the head's attention: below it the head leans that way, but does something else most of the time. The papers "
    "judge by eye (Clark et al. 2019 speak of heads with more than half of their attention on the previous token); the "
    "threshold is ours, fixed before the nulls were measured"
)
_MERGING = HeadKind(
    "0: the metric is already the difference from a one-token word's attention to the same positions",
    OF_A_KIND,
    QUARTER,
)
_PREVIOUS = HeadKind(
    "twice the head's attention to the token two before the query: attention by recency that halves with every token back",
    OF_A_KIND,
    QUARTER,
)
_ON_REPEATS = HeadKind(
    "the head's attention from the same tokens to the same positions after the first half, the one that is repeated, was "
    "replaced by other random tokens",
    OF_A_KIND,
    QUARTER,
)
_ON_TEXT = HeadKind(
    "the head's attention between the same two positions in other windows in which the key is not of the kind",
    OF_A_KIND,
    QUARTER,
)
HEAD_KINDS: Mapping[str, HeadKind] = {
    MERGE.name: _MERGING,
    MERGE_FIRST.name: _MERGING,
    PREVIOUS_TOKEN.name: _PREVIOUS,
    DUPLICATE_TOKEN.name: _ON_REPEATS,
    INDUCTION.name: _ON_REPEATS,
    PREVIOUS_TOKEN_NATURAL.name: _PREVIOUS,
    DUPLICATE_TOKEN_NATURAL.name: _ON_TEXT,
    INDUCTION_NATURAL.name: _ON_TEXT,
}
"""By metric: the null, and the least excess over it that makes a head one of the kind."""
FALSE_DISCOVERIES = 0.05
"""Of the heads called one of a kind at most about this share is expected not to exceed the least excess."""

KIND_COLUMNS = {
    "null_mean": pl.Float64,
    "excess": pl.Float64,
    "least_excess": pl.Float64,
    "p_kind": pl.Float64,
    "of_kind": pl.Boolean,
}
"""The columns of HEADS_TABLE that say whether a head is of its kind; runs made before these were measured lack them."""

WORD, PLAIN = "word", "plain"
"""The prompts whose last word is `word_tokens` tokens long, and those whose last word is one token."""

HEADS_TABLE = {
    "layer": pl.Int32,
    "head": pl.Int32,
    "rank": pl.Int32,
    "word_tokens": pl.Int32,
    "chance": pl.Float64,
    "p_adjusted": pl.Float64,
    **KIND_COLUMNS,
    **ESTIMATE,
}
"""tables/heads.parquet: one row per metric and query head. `rank` is 1 for the head with the largest mean of the metric.
`word_tokens` is the number of tokens of the words in merge and merge_first, null otherwise. `chance` is the mean of a head
with uniform attention to all positions up to itself; 0 for the two differences. `p_adjusted`: one-sided t test over documents
of mean > chance (by more than rounding), adjusted over the metric's heads after Benjamini and Hochberg, so that of the heads
with p_adjusted < 0.05 no more than about 5 % are expected to be there by chance; null with one document. That is a low bar:
any head that attends to recent tokens passes it for `previous_token`. `of_kind` has the higher one: `null_mean` is what the
head would score by position alone (HEAD_KINDS has the definition per metric), `excess` the mean minus that, `p_kind` a
one-sided t test over documents of excess > `least_excess`, adjusted in the same way, and `of_kind` whether it is below 0.05;
both null with one document. `tokens` counts the
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
`plain` attention at an `offset`; `attention`, its `excess` over chance, and over the metric's null (`over_null`)."""

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

"""Probes by depth: which properties of the text a linear classifier reads from the residual stream at every depth."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from depthscope.errors import DepthscopeError
from depthscope.printable import shown
from depthscope.schema.declaration import Experiment, Option, Table
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.metric import Metric
from depthscope.schema.probes import SELECTIVITY

ACCURACY = Metric(
    "accuracy", "share", "Accuracy", "share of the test examples whose class the probe predicts correctly", 0.0, 1.0
)
CONTROL_ACCURACY = Metric(
    "control_accuracy",
    "share",
    "Control accuracy",
    "accuracy of probes on control tasks, where each token has a random class in the same proportions: mean over tasks",
    0.0,
    1.0,
)
OVER_MAJORITY = Metric(
    "accuracy_over_majority",
    "share",
    "Accuracy over the majority class",
    "accuracy − accuracy of always predicting the class that is most frequent among the training examples",
    -1.0,
    1.0,
)
OVER_TOKEN = Metric(
    "accuracy_over_token",
    "share",
    "Accuracy over the token alone",
    "accuracy − accuracy of the class that the position’s token most often has among the training examples, on the same "
    "examples: what the probe gains from the context, or loses because the stream no longer shows the token",
    -1.0,
    1.0,
)
METRICS = (ACCURACY, CONTROL_ACCURACY, SELECTIVITY, OVER_MAJORITY, OVER_TOKEN)


@dataclass(frozen=True, slots=True, kw_only=True)
class Property:
    """A property of a position of the text: a class for each position that has it."""

    name: str
    title: str
    definition: str


FREQUENT = 10
"""How many tokens the probes of a token distinguish: the most frequent ones of the training examples."""
FIRST, LATER = "first", "later"
FUNCTION, CAPITALISED, OTHER, PUNCTUATION, DIGITS = "function word", "capitalised", "other", "punctuation", "digits"
WORD_CLASSES = (FUNCTION, CAPITALISED, OTHER, PUNCTUATION, DIGITS)
NO_SUFFIX = "none of them"

PROPERTIES = {
    one.name: one
    for one in (
        Property(
            name="token",
            title="The token itself",
            definition=f"which token is at the position, where it is one of the {FREQUENT} most frequent ones",
        ),
        Property(
            name="previous_token",
            title="The previous token",
            definition=f"which token is before the position, where it is one of the {FREQUENT} most frequent ones",
        ),
        Property(
            name="word_class",
            title="Word class",
            definition="by the token’s text: digits; punctuation (and symbols); a function word (an English article, pronoun, "
            "preposition, conjunction, auxiliary or the like that begins a word); another one that begins with a capital; "
            "another one that begins with a letter",
        ),
        Property(
            name="word_position",
            title="Position in the word",
            definition="of a token that begins with a letter, after a space or not: whether it is the first token of a word or "
            "a later one, which follows a letter without a space",
        ),
        Property(
            name="next_suffix",
            title="Suffix of the next token",
            definition="which of the suffixes of `--suffixes` the next token ends in (the longest), or none of them, of which "
            "only as many examples are used as end in one; a spelling, not grammar: “is” ends in “s”",
        ),
    )
}
"""What is probed."""

DEPTH_PROBES_TABLE = {"property": pl.String, "layer": pl.Int32, **ESTIMATE}
"""tables/depth_probes.parquet. `layer` is the depth of the residual stream."""

DEPTH_PROBES_BEST_TABLE = {
    "property": pl.String,
    "layer": pl.Int32,
    "layer_low": pl.Int32,
    "layer_high": pl.Int32,
    **ESTIMATE,
}
"""tables/depth_probes_best.parquet: of accuracy, selectivity and accuracy over the token alone the depth with the highest mean,
the first of equal ones. Intervals of the mean cover all depths at once, so they hold although the depth was picked."""
BEST_OF = (ACCURACY, SELECTIVITY, OVER_TOKEN)

DEPTH_PROBES_CLASSES_TABLE = {
    "property": pl.String,
    "label": pl.String,
    "training": pl.Int64,
    "test": pl.Int64,
}
"""tables/depth_probes_classes.parquet: the classes of each property, and how many examples they have."""


def depth_probes_shard(width: int) -> dict[str, Any]:
    """shards/depth_probes: the residual stream of each example at each depth, in the experiment's order of examples."""
    return {"example": pl.Int64, "layer": pl.Int32, "residual": pl.Array(pl.Float32, width)}


MOST_SUFFIXES, LONGEST_SUFFIX = 16, 32


def _check_suffixes(suffixes: Sequence[str]) -> None:
    wrong = [one for one in suffixes if not (one.isalpha() and len(one) <= LONGEST_SUFFIX)]
    if wrong or not 1 <= len(set(suffixes)) <= MOST_SUFFIXES:
        found = shown(wrong[0]) if wrong else f"{len(set(suffixes))} suffixes"
        raise DepthscopeError(
            f"suffixes of the next token: expected 1 to {MOST_SUFFIXES}, each of 1 to {LONGEST_SUFFIX} letters, such as "
            f"ing,ed, got {found}"
        )


SUFFIXES = Option(
    name="suffixes",
    type=tuple,
    default=("ing", "ed", "ly", "s"),
    help="Suffixes of the next token that probes by depth distinguish, separated by commas.",
    shown_default="ing,ed,ly,s",
    check=_check_suffixes,
)
EXPERIMENT = Experiment(
    name="depth_probes",
    title="What a linear probe reads from the residual stream by depth.",
    question="Which properties of the text (the token, the one before it, word class, place in the word, the next token's "
    "suffix) can a linear probe read from the residual stream at each depth, compared with a control task?",
    make="depthscope.experiments.depth_probes:make",
    tables={
        "depth_probes": Table(columns=DEPTH_PROBES_TABLE, metrics=METRICS),
        "depth_probes_best": Table(columns=DEPTH_PROBES_BEST_TABLE, metrics=BEST_OF),
        "depth_probes_classes": Table(columns=DEPTH_PROBES_CLASSES_TABLE),
    },
    options=(SUFFIXES,),
    source="Lad et al. 2024, table 1; Hewitt and Liang 2019 (arXiv 1909.03368)",
    in_study=False,
    deep=True,
)

"""Tasks of the lm-evaluation-harness under edits: tables, limits, and what may be asked for. Imports no torch."""

import re
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import polars as pl

from depthscope.errors import DataError, DepthscopeError
from depthscope.printable import shown
from depthscope.schema.estimates import ESTIMATE

EVAL, EDIT_TEXT = "eval", "eval_text"
"""The two parts of a run, by their directory of shards: requests of the tasks, and the same edits on a text."""

TASKS, EXAMPLES, EDIT_KL, CORRELATIONS = "tasks", "task_examples", "edit_kl", "task_correlations"
TABLES = (TASKS, EXAMPLES, EDIT_KL, CORRELATIONS)

ANSWER_SHARD = {
    "request": pl.Int64,
    "edit": pl.String,
    "loglikelihood": pl.Float64,
    "greedy": pl.Boolean,
    "text": pl.String,
}
"""shards/eval: one row per request and edit. The log-likelihood of the continuation is in nats; `greedy`: whether each of its
tokens is the most likely one. `text` is what was generated, for a request that asks for that; the other two are null there."""

TASK_TABLE = {
    "task": pl.String,
    "filter": pl.String,
    "metric": pl.String,
    "edit": pl.String,
    "route": pl.String,
    "value": pl.Float64,
    "stderr": pl.Float64,
    "difference": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
    "changed": pl.Int64,
    "examples": pl.Int64,
    "clusters": pl.Int64,
    "higher_is_better": pl.Boolean,
}
"""tables/tasks.parquet: the harness's metric and standard error, and the difference to the unmodified model (edit `none`) with
its paired 95 % interval. `changed`: examples whose value is another one than the unmodified model's. `clusters`: the units of
the interval, examples unless the task declares what belongs together. Null where there is none:
a standard error that the harness does not compute, an interval where no example changed or fewer than ten clusters are
resampled, a perplexity that overflows."""

EXAMPLE_TABLE = {
    "task": pl.String,
    "filter": pl.String,
    "metric": pl.String,
    "edit": pl.String,
    "example": pl.Int64,
    "cluster": pl.Int64,
    "value": pl.Float64,
}
"""tables/task_examples.parquet: what the harness aggregates, per example; null where that is more than one number."""

KL_TABLE = {"edit": pl.String, **ESTIMATE}
"""tables/edit_kl.parquet: the measures of a sweep for every edit, on the run's text."""

CORRELATION_TABLE = {
    "task": pl.String,
    "filter": pl.String,
    "metric": pl.String,
    "edits": pl.Int64,
    "spearman": pl.Float64,
    "ci_low": pl.Float64,
    "ci_high": pl.Float64,
}
"""tables/task_correlations.parquet: Spearman's correlation over edits of a task's difference with the KL on the text."""

MOST_TASKS, MOST_EDITS, MOST_LIMIT, MOST_SHOTS = 200, 5_000, 10_000_000, 1_000
MOST_ANSWERS = 20_000_000
"""Requests times edits: their log-likelihoods are held in memory when the tables are made."""
_NAME = re.compile(r"[A-Za-z0-9_][\w.\-+/]{0,199}", re.ASCII)


def task_names(names: Any) -> tuple[str, ...]:
    """The names, each once. Raises DepthscopeError for none, too many, or what cannot name a task."""
    if isinstance(names, str):
        names = names.split(",")
    if not isinstance(names, Iterable):
        raise DepthscopeError(f"tasks is {shown(names)}: expected names such as bookshelf_last_word")
    found = tuple(dict.fromkeys(_name(name) for name in islice(names, MOST_TASKS + 1)))
    if not 1 <= len(found) <= MOST_TASKS:
        raise DepthscopeError(
            f"expected 1 to {MOST_TASKS} tasks, such as bookshelf_last_word, got {len(found) or 'none'}"
        )
    return found


def _name(name: Any) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name.strip()):
        raise DataError(f"the name of a task is {shown(name)}: expected one such as bookshelf_last_word or hellaswag")
    return name.strip()


def check_number(name: str, value: int | None, least: int, most: int) -> None:
    """Raise DepthscopeError unless a setting is None or a whole number in its range."""
    if value is not None and not (type(value) is int and least <= value <= most):
        raise DepthscopeError(f"{name} is {shown(value)}: expected a whole number from {least} to {most:,}")


def require_answers(requests: int, edits: int, names: Sequence[str]) -> None:
    """Raise DepthscopeError for more answers than are held in memory."""
    if requests * edits > MOST_ANSWERS:
        raise DepthscopeError(
            f"{', '.join(names)}: {requests:,} requests under {edits:,} edits are more than {MOST_ANSWERS:,} answers. Use a "
            "smaller --limit, or fewer edits at a time"
        )

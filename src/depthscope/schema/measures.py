"""The measures: what is computed at every token for an edited model, each declared once.

A measure is declared with its name, unit, title, definition and bounds. The declaration determines the columns of shards, the
rows of tables, the page's panel and definition, and what a run records. Everything else refers to a measure by name. All are
aggregated in the same way: values per token are summed over the tokens of a document, and a table has their mean over all
tokens with an interval over documents. Imports no torch.

p is the next-token distribution of the unmodified model, q that of the edited model. The four built-in measures are computed
in one pass over slices of the vocabulary (`engine.divergence`). Others are functions of whole rows of log-probabilities:

    @ds.register_measure(
        unit="share", title="Total variation", definition="half the sum over the vocabulary of |p − q|", lowest=0, highest=1
    )
    def total_variation(p, q, next_token):
        return (p.exp() - q.exp()).abs().sum(-1) / 2
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from depthscope.errors import DepthscopeError
from depthscope.schema.metric import Metric

PerTokenFunction = Callable[[Any, Any, Any], Any]
"""(p, q, next_token) -> one number per token: p and q are float32 log-probabilities shaped [tokens, vocab], next_token holds
token ids shaped [tokens], and the result is shaped [tokens]."""

OTHER_COLUMNS = (
    *("document", "position", "token", "next_token", "tokens", "edit", "layer"),
    *("metric", "unit", "mean", "ci_low", "ci_high", "documents"),
)
"""Columns that stand with the measures in shards and tables, whose names no measure can have."""


@dataclass(frozen=True, slots=True)
class Measure(Metric):
    """A number per token that compares an edited model's next-token distribution q with the unmodified model's p.

    `per_token(p, q, next_token)` computes it from log-probabilities shaped [tokens, vocab] (float32) and the ids of the next
    tokens, shaped [tokens], and returns numbers shaped [tokens]. It is called with a limited number of rows at a time, so
    rows must not depend on each other. `definition` is a few words without a full stop. Raises DepthscopeError for a name
    that cannot be a column.
    """

    change: str | None = None
    """The definition of its change from the unmodified model, which tables then include; None: they do not."""
    per_token: PerTokenFunction | None = None
    """None for the built-in measures, which the engine computes."""

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z][a-z0-9_]*", self.name) or self.name in OTHER_COLUMNS:
            raise DepthscopeError(
                f"{self.name!r} cannot name a measure: expected lower-case letters, digits and _, and none of "
                f"{', '.join(OTHER_COLUMNS)}, which are other columns"
            )

    @property
    def built_in(self) -> bool:
        """Whether it comes with depthscope."""
        return BUILT_IN.get(self.name) == self

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Its metrics in tables: itself and, where declared, its change from the unmodified model."""
        if self.change is None:
            return (self,)
        return self, Metric(f"{self.name}_change", self.unit, f"Change in {self.title.lower()}", self.change)

    def described(self) -> dict[str, Any]:
        """What a run records of it, as JSON values; `Measure(**described)` is the measure without its function."""
        return {one.name: getattr(self, one.name) for one in fields(self) if one.name != "per_token"}


KL = Measure(
    "kl",
    "nats",
    "KL divergence",
    "KL(p‖q) of the edited model's next-token distribution q from the unmodified model's p",
    0.0,
)
AGREEMENT = Measure(
    "agreement",
    "share",
    "Top-1 agreement",
    "share of positions where p and q have the same most likely token",
    0.0,
    1.0,
)
ENTROPY = Measure("entropy", "nats", "Entropy", "H(q)", 0.0, change="H(q) − H(p)")
LOSS = Measure("loss", "nats", "Loss", "−log q(next token)", 0.0, change="−log q(next token) + log p(next token)")

BUILT_IN = {measure.name: measure for measure in (KL, AGREEMENT, ENTROPY, LOSS)}
"""M1-M4 of the paper, in the order of tables."""

_REGISTERED: dict[str, Measure] = {}


def register_measure(
    *,
    unit: str,
    title: str,
    definition: str,
    lowest: float | int | None = None,
    highest: float | int | None = None,
    change: str | None = None,
    name: str | None = None,
) -> Callable[[PerTokenFunction], Measure]:
    """Turn the decorated function into a measure, which every later sweep then includes.

    The function takes log-probabilities p of the unmodified and q of the edited model, float32 shaped [tokens, vocab], and the
    ids of the next tokens, shaped [tokens]; it returns one number per token, shaped [tokens]. The decorated name is then a
    Measure, which `measure` also accepts. `unit`, `title` and `definition` (a few words) are shown in tables and on the page;
    `lowest` and `highest` are its bounds; `change` defines its change from the unmodified model, if tables are to include it;
    `name` is the function's by default. A measure registered earlier under the same name is replaced. A run records the
    declaration, not the code, and refuses to resume with a different one: a changed function needs a new definition.
    Raises DepthscopeError for the name of a built-in measure or of another measure's change.
    """

    def declare(function: PerTokenFunction) -> Measure:
        made = Measure(
            name or function.__name__,
            unit,
            title,
            definition,
            None if lowest is None else float(lowest),
            None if highest is None else float(highest),
            change,
            function,
        )
        # Running a notebook cell again defines a new function of the same name: it replaces the earlier one.
        distinct([other for other in all_measures() if other.built_in or other.name != made.name], made)
        _REGISTERED[made.name] = made
        return made

    return declare


def unregister_measure(name: str) -> None:
    """Remove a registered measure. Raises DepthscopeError for a built-in measure and for an unknown name."""
    if name not in _REGISTERED:
        raise DepthscopeError(
            f"no measure is registered as {name!r}: expected one of {', '.join(_REGISTERED) or 'none'}"
        )
    del _REGISTERED[name]


def all_measures() -> tuple[Measure, ...]:
    """What a sweep measures: the built-in measures, then the registered ones in the order of registration."""
    return (*BUILT_IN.values(), *_REGISTERED.values())


def chosen(measures: Sequence[str | Measure]) -> tuple[Measure, ...]:
    """Measures given by name or as objects, each once. Raises DepthscopeError for an unknown or duplicate name, or for none."""
    by_name = {measure.name: measure for measure in all_measures()}
    if unknown := [one for one in measures if not isinstance(one, Measure) and one not in by_name]:
        raise DepthscopeError(
            f"unknown measure {', '.join(map(str, unknown))}: expected some of {', '.join(by_name)}, or a Measure"
        )
    found = tuple(dict.fromkeys(one if isinstance(one, Measure) else by_name[one] for one in measures))
    if not found:
        raise DepthscopeError(f"no measure given: expected some of {', '.join(by_name)}, or a Measure")
    for place, measure in enumerate(found):
        if measure.per_token is None and not measure.built_in:
            raise DepthscopeError(
                f"measure {measure.name} has no function: expected per_token=..., called with (p, q, next_token)"
            )
        distinct(found[:place], measure)
    return found


def distinct(others: Iterable[Measure], measure: Measure) -> None:
    """Raise DepthscopeError if another measure or its change already has this measure's name or that of its change."""
    taken = {metric.name for other in others for metric in other.metrics}
    for metric in measure.metrics:
        if metric.name in taken:
            raise DepthscopeError(f"a measure {metric.name} already exists: expected another name")


def metrics_of(measures: Iterable[Measure]) -> dict[str, Metric]:
    """The metrics of these measures in tables, by name and in order."""
    return {metric.name: metric for measure in measures for metric in measure.metrics}

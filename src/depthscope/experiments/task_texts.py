"""Requests of tasks for text, and what models write on many routes.

A context is generated from as `depthscope.generate` does, with a cache for each visit where the model's caches are right on
the route, else without. Only the likeliest tokens are taken: drawn ones would differ from run to run, and between the edited
and the unmodified model by chance alone. Requests that share a batch have contexts of one length, so none is padded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from depthscope.engine.generation import check_caches, generate_tokens
from depthscope.errors import DataError, NumericError, UnsupportedError
from depthscope.experiments.task_batches import in_halves
from depthscope.models.finite import REMEDY
from depthscope.models.generation import check_options, ends
from depthscope.models.model import Model
from depthscope.printable import shown
from depthscope.routes import Route

WRITTEN = 16
"""Cost of a generated token, in tokens that are read: each needs all weights for itself."""
IGNORED = ("temperature", "top_k", "top_p", "min_p", "typical_p")
"""Options that only say how tokens would be drawn."""


@dataclass(frozen=True, slots=True, order=True)
class TextRequest:
    """A context as token ids, and when the text that follows it ends."""

    length: int
    """Tokens of the context."""
    tokens: int
    """Most tokens of the text."""
    until: tuple[str, ...]
    """The text ends before the first of these."""
    options: tuple[tuple[str, Any], ...]
    """Further options of transformers' `generate`, by name."""
    ids: tuple[int, ...]

    @property
    def alike(self) -> tuple[object, ...]:
        """See `task_batches.Request`."""
        return (self.length, self.tokens, self.until, self.options)

    @property
    def cost(self) -> int:
        """See `task_batches.Request`."""
        return self.length + WRITTEN * self.tokens


def text_request(
    context: Sequence[int], tokens: int, until: Sequence[str], options: Mapping[str, Any], longest: int
) -> TextRequest:
    """A request for a model that reads `longest` tokens, of which the text needs `tokens`: a longer context loses its first.

    Raises DataError where no token of the context is left, and what `likeliest` raises.
    """
    if not 1 <= tokens < longest:
        raise DataError(
            f"a task generates up to {tokens:,} tokens, and the model's context is {longest:,}: expected a model with a longer "
            "context, or a task that generates less (max_gen_toks)"
        )
    ids = tuple(context[-(longest - tokens) :])
    return TextRequest(len(ids), tokens, tuple(until), tuple(sorted(likeliest(options, "a task").items())), ids)


def likeliest(options: Mapping[str, Any], task: str) -> dict[str, int | float | str]:
    """The options of `generate` that matter where the likeliest token is taken.

    Raises UnsupportedError for a task that draws tokens, DataError for options that cannot be used.
    """
    if options.get("do_sample"):
        raise UnsupportedError(f"{task} draws tokens at random (do_sample): expected one that takes the likeliest")
    given = {name: value for name, value in options.items() if name not in (*IGNORED, "do_sample")}
    check_options(given)
    if not all(isinstance(value, int | float | str) for value in given.values()):
        raise DataError(f"{task} generates with {shown(given)}: expected options that are numbers or strings")
    return given


def before_stops(text: str, until: Sequence[str]) -> str:
    """The text before the strings that end it, cut at one after the other as the harness does."""
    for stop in until:
        text = text.partition(stop)[0] if stop else text
    return text


class RouteWriter:
    """Texts that the unmodified model and a list of routes write.

    Raises RouteError for a route that the model cannot run, and UnsupportedError for a model that does not generate.
    """

    def __init__(self, model: Model, routes: Sequence[Route]) -> None:
        self.model = model
        self.tokenizer = model.require_tokenizer()
        self.routes = (Route.own(model.depth), *routes)
        self._ends = sorted(ends(model, {}) | ({self.tokenizer.eos_token_id} - {None}))
        self._cached: dict[Route, bool] = {}

    def write(self, requests: Sequence[TextRequest]) -> list[list[str]]:
        """The text after each context, one list per route as in `routes`. The requests are alike.

        What does not fit into memory is done in halves. Raises DataError for ids outside the vocabulary, NumericError, with the
        route, for NaN, and MemoryShortError where one request does not fit.
        """
        found = []
        for route in self.routes:
            named = f"{requests[0].tokens} tokens after {requests[0].length} on the route {route.name!r}"
            parts = in_halves(lambda some, route=route: self._write(route, some), requests, named)
            found.append([text for part in parts for text in part])
        return found

    def _write(self, route: Route, requests: Sequence[TextRequest]) -> list[str]:
        first = requests[0]
        rows: list[list[int]] = [[] for _ in requests]

        def seen(new: Sequence[int]) -> bool:
            for row, token in zip(rows, new, strict=True):
                row.append(token)
            return all(self._ended(row, first.until) for row in rows)

        def finite(_ids: Tensor, scores: Tensor) -> Tensor:
            if bool(scores.isnan().any()):
                raise NumericError(
                    f"NaN in the logits of {self.model.name} on the route {route.name!r} while a text is generated. {REMEDY}, "
                    "or leave the edit out"
                )
            return scores

        generate_tokens(
            self.model,
            route,
            torch.tensor([request.ids for request in requests]),
            tokens=first.tokens,
            seen=seen,
            do_sample=False,
            use_cache=self._caches(route),
            eos_token_id=self._ends or None,
            logits_processor=[finite],
            **dict(first.options),
        )
        return [before_stops(self._text(row), first.until) for row in rows]

    def _caches(self, route: Route) -> bool:
        """Whether caches are right on a route. Without them the text is the same, and takes longer."""
        if route not in self._cached:
            try:
                check_caches(self.model, route)
                self._cached[route] = True
            except UnsupportedError:
                self._cached[route] = False
        return self._cached[route]

    def _ended(self, row: Sequence[int], until: Sequence[str]) -> bool:
        if row[-1] in self._ends:
            return True
        text = self._text(row)
        return before_stops(text, until) != text

    def _text(self, row: Sequence[int]) -> str:
        end = next((place for place, token in enumerate(row) if token in self._ends), len(row))
        return str(self.tokenizer.decode(row[:end], skip_special_tokens=True))

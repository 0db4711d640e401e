"""Two routes through the model side by side: next-token predictions and continuations."""

import re
import time
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from depthscope.edit_registry import Edit, parse_edit
from depthscope.engine.execute import run_route
from depthscope.engine.generation import generate_tokens
from depthscope.errors import RouteError, UnsupportedError
from depthscope.explore import markup
from depthscope.models.generation import ends
from depthscope.models.model import Model
from depthscope.routes import Route, parse_route
from depthscope.shapes import TokenIds

CONTINUED = 40
"""Number of tokens in a continuation."""
SECONDS = 20.0
"""How long one may take: others may be waiting for the model."""
MOST_VISITS = 8
"""A route may visit at most this many times the model's number of blocks: longer routes take too long."""
_AN_EDIT = re.compile(r"[a-z_-]+\s*\(", re.IGNORECASE)


def read_route(text: str, depth: int) -> Route:
    """Parse a route: `0 1 3 2 4-11`, an edit of the unmodified model such as `swap(3) | drop_mlp(7)`, or an empty string for
    the unmodified model. Raises RouteError, also for a route too long to run interactively."""
    text = text.strip()
    if len(text) > 1000 or re.search(r"\d{6}", text):
        raise RouteError("expected a route of at most 1,000 characters with numbers below 1,000,000")
    own = Route.own(depth)
    if not text or text == "none":
        return own
    if not _AN_EDIT.search(text):
        return _of_bearable_length(parse_route(text, depth))
    route = own
    for action in parse_edit(text.lower()).actions:
        times = action.given.get("times", 0)
        if action.kind == "repeat" and times > MOST_VISITS * depth:
            raise RouteError(f"repeat {times} times is too often: expected at most {MOST_VISITS * depth}")
        route = _of_bearable_length(Edit((action,))(route))
    return route


def _of_bearable_length(route: Route) -> Route:
    visits, most = sum(1 for _ in route.steps()), MOST_VISITS * route.depth
    if visits > most:
        raise RouteError(
            f"the route visits {visits} blocks: expected at most {most}, {MOST_VISITS} times the model's number"
        )
    return route


def last_probabilities(model: Model, ids: TokenIds, route: Route) -> Float64[Tensor, " vocab"]:
    """The next-token distribution after the last token, for a route. Raises NumericError where it is not finite."""
    model.check_route(route)
    residual = run_route(model, route, ids)
    return model.unembedding.logits(model.unembedding.hidden(residual[:, -1:]))[0].double().softmax(-1).cpu()


def divergence(p: Float64[Tensor, " vocab"], q: Float64[Tensor, " vocab"]) -> float:
    """KL(p‖q) in nats."""
    return max(0.0, float(torch.where(p > 0, p * (p.log() - q.log()), 0.0).sum()))


@dataclass(frozen=True, slots=True)
class Continuation:
    """Greedily generated tokens."""

    ids: list[int]
    stopped: str
    """Why there are fewer tokens than requested; empty if there are not."""


def continuation(
    model: Model, ids: TokenIds, route: Route, count: int = CONTINUED, seconds: float = SECONDS
) -> Continuation:
    """Up to `count` greedy tokens after `ids`, shaped [1, seq], on a route, within about `seconds`.

    Tokens are computed with caches, or again and again from the beginning where a model's caches do not allow that.
    """
    room = count if model.context is None else model.context - ids.shape[1]
    full = f"the context of {model.context} tokens is full"
    if room < 1:
        return Continuation([], full)
    finals = sorted(ends(model, {}).union(getattr(model.tokenizer, "all_special_ids", ())))
    until = time.monotonic() + seconds
    given: dict[str, Any] = {"tokens": min(count, room), "eos_token_id": finals or None, "do_sample": False}
    given["seen"] = lambda _new: time.monotonic() > until
    try:
        found = generate_tokens(model, route, ids, **given)
    except UnsupportedError:
        found = generate_tokens(model, route, ids, **given, use_cache=False)
    new = found[0, ids.shape[1] :].tolist()
    if new[-1] in finals:
        return Continuation(new[:-1], "the text ends here")
    if len(new) < min(count, room):
        return Continuation(new, f"stopped after {seconds:g} seconds")
    return Continuation(new, full if len(new) < count else "")


def written(model: Model, continued: Continuation) -> str:
    """A continuation as HTML."""
    text = str(model.tokenizer.decode(continued.ids)) if model.tokenizer is not None and continued.ids else ""
    stop = f" <small>[{markup.escaped(continued.stopped)}]</small>" if continued.stopped else ""
    return f"<p class='written' dir='auto'>… {markup.escaped(text)}{stop}</p>"


def card(title: str, under: str, items: list[tuple[str, float]], below: str = "") -> str:
    """One route's card: its name, a subtitle, its most likely tokens, and its continuation."""
    return f"<h4>{markup.escaped(title)}</h4><p class='under'>{markup.escaped(under)}</p>{markup.bars(items)}{below}"

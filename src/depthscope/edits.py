"""Edits: what is done to a route. Each is a small immutable recipe; `a | b` does a, then b.

    >>> from depthscope.routes import Route
    >>> swap(2)(Route.own(6)).name
    '0-1 3 2 4-5'
    >>> (drop(1) | drop_mlp(4))(Route.own(6)).name
    '0 2-3 4~mlp 5'
    >>> parse_edit("drop(1) | drop_mlp(4)") == drop(1) | drop_mlp(4)
    True

Edits speak of blocks by their own number, wherever they stand by then.
"""

import inspect
import random
import re
from collections.abc import Callable
from dataclasses import dataclass

from depthscope.errors import RouteError
from depthscope.routes import COMPONENTS, Parallel, Route, Step, Visit, check_layer


def _span(depth: int, first: int | None, last: int | None) -> tuple[int, int]:
    low, high = (0 if first is None else first), (depth - 1 if last is None else last)
    check_layer(low, depth, "first layer")
    check_layer(high, depth, "last layer")
    if low > high:
        raise RouteError(f"layers {low}-{high} run backwards: expected the first layer not above the last")
    return low, high


def _swapped(route: Route, layer: int) -> Route:
    check_layer(layer, route.depth, "swap layer")
    check_layer(layer + 1, route.depth, f"swap({layer}) exchanges blocks {layer} and {layer + 1}; block")
    silencing: dict[int, Step] = {}
    for step in route.steps():
        if step.block in (layer, layer + 1) and silencing.setdefault(step.block, step) != step:
            raise RouteError(
                f"block {step.block} is silenced differently at different visits: "
                f"write the route out instead of swap({layer})"
            )
    partner = {layer: layer + 1, layer + 1: layer}
    return route.map(
        lambda step: silencing.get(partner[step.block], Step(partner[step.block])) if step.block in partner else step
    )


def _dropped(route: Route, first: int, last: int | None = None) -> Route:
    low, high = _span(route.depth, first, first if last is None else last)
    return route.map(lambda step: None if low <= step.block <= high else step)


def _without(part: str) -> Callable[[Route, int], Route]:
    def change(route: Route, layer: int) -> Route:
        check_layer(layer, route.depth, f"drop_{part} layer")
        return route.map(lambda step: step.without(part) if step.block == layer else step)

    return change


def _repeated(route: Route, first: int, last: int | None = None, times: int = 2) -> Route:
    low, high = _span(route.depth, first, first if last is None else last)
    if times < 1:
        raise RouteError(f"repeat visits a block at least once, not {times} times")
    visits: list[Visit] = []
    for visit in route.visits:
        visits += [visit] * (times if _within(visit, low, high) else 1)
    return Route(route.depth, tuple(visits))


def _within(visit: Visit, low: int, high: int) -> bool:
    members = visit.members if isinstance(visit, Parallel) else (visit,)
    return all(low <= step.block <= high for step in members)


def _reordered(route: Route, low: int, high: int, order: Callable[[list[Visit]], list[Visit]]) -> Route:
    """The visits that lie wholly within blocks low … high, put into another order at the places they hold."""
    places = [i for i, visit in enumerate(route.visits) if _within(visit, low, high)]
    visits = list(route.visits)
    for place, visit in zip(places, order([visits[i] for i in places]), strict=True):
        visits[place] = visit
    return Route(route.depth, tuple(visits))


def _reversed(route: Route, first: int | None = None, last: int | None = None) -> Route:
    return _reordered(route, *_span(route.depth, first, last), lambda visits: visits[::-1])


def _shuffled(route: Route, seed: int, first: int | None = None, last: int | None = None) -> Route:
    def order(visits: list[Visit]) -> list[Visit]:
        return random.Random(seed).sample(visits, len(visits))

    return _reordered(route, *_span(route.depth, first, last), order)


def _in_parallel(route: Route, first: int | None = None, last: int | None = None) -> Route:
    low, high = _span(route.depth, first, last)
    members: list[Step] = []
    visits: list[Visit] = []
    place = None
    for visit in route.visits:
        if not _within(visit, low, high):
            visits.append(visit)
            continue
        if isinstance(visit, Parallel):
            raise RouteError(f"{visit.name} is parallel already; parallel({low}, {high}) cannot be put around it")
        place = len(visits) if place is None else place
        members.append(visit)
    if place is not None:
        visits.insert(place, Parallel(tuple(members)))
    return Route(route.depth, tuple(visits))


ACTIONS: dict[str, Callable[..., Route]] = {
    "swap": _swapped,
    "drop": _dropped,
    **{f"drop_{part}": _without(part) for part in COMPONENTS},
    "repeat": _repeated,
    "reverse": _reversed,
    "shuffle": _shuffled,
    "parallel": _in_parallel,
}


@dataclass(frozen=True, slots=True)
class Edit:
    """A recipe that turns a route into another; `a | b` does a, then b. Call it on a Route to apply it."""

    actions: tuple[tuple[str, tuple[int, ...]], ...] = ()

    def __or__(self, other: "Edit") -> "Edit":
        return Edit(self.actions + other.actions)

    def __call__(self, route: Route) -> Route:
        """The route after this edit. Raises RouteError where it cannot be applied."""
        for kind, arguments in self.actions:
            route = ACTIONS[kind](route, *arguments)
        return route

    @property
    def name(self) -> str:
        """The edit as it is written: `swap(3) | drop_mlp(7)`."""
        return " | ".join(f"{kind}({', '.join(map(str, arguments))})" for kind, arguments in self.actions) or "none"

    def __str__(self) -> str:
        return self.name


def _edit(kind: str, *arguments: int | None) -> Edit:
    """An edit of one action; a last layer alone means from block 0, trailing defaults are left out of its name."""
    given = list(arguments)
    while given and given[-1] is None:
        given.pop()
    return Edit(((kind, tuple(0 if argument is None else int(argument) for argument in given)),))


def swap(layer: int) -> Edit:
    """Blocks `layer` and `layer + 1` take each other's places (E1 of the paper)."""
    return _edit("swap", layer)


def drop(first: int, last: int | None = None) -> Edit:
    """Blocks `first … last` (one block without `last`) are skipped whole: the residual stream passes unchanged (E2)."""
    return _edit("drop", first, last)


def drop_attn(layer: int) -> Edit:
    """The attention output of block `layer`, bias included, is zero; its MLP runs (E3)."""
    return _edit("drop_attn", layer)


def drop_mlp(layer: int) -> Edit:
    """The MLP output of block `layer`, bias included, is zero; its attention runs (E3)."""
    return _edit("drop_mlp", layer)


def drop_ssm(layer: int) -> Edit:
    """The output of the state-space mixer of block `layer`, which has an attention too (Falcon-H1), is zero."""
    return _edit("drop_ssm", layer)


def drop_ple(layer: int) -> Edit:
    """What block `layer` adds of the token's embedding for this layer (Gemma 4's per-layer input) is zero."""
    return _edit("drop_ple", layer)


def repeat(first: int, last: int | None = None, times: int = 2) -> Edit:
    """Each of the blocks `first … last` is visited `times` times in a row: `5 5 6 6 7 7`."""
    return _edit("repeat", first, first if last is None else last, times)


def reverse(first: int | None = None, last: int | None = None) -> Edit:
    """The visits to blocks `first … last` (all by default) happen in reverse order."""
    return _edit("reverse", first, last)


def shuffle(seed: int, first: int | None = None, last: int | None = None) -> Edit:
    """The visits to blocks `first … last` (all by default) happen in an order drawn with `seed`."""
    return _edit("shuffle", seed, first, last)


def parallel(first: int | None = None, last: int | None = None) -> Edit:
    """Blocks `first … last` (all by default) read the same residual stream, which goes on with their outputs' mean."""
    return _edit("parallel", first, last)


_EDIT = re.compile(r"\s*([a-z_-]+)\s*\(([^()]*)\)\s*")


def parse_edit(text: str) -> Edit:
    """Read `swap(3) | drop_mlp(7)`; ranges may be written `drop(21-24)`. Raises RouteError."""
    edit = Edit()
    if text.strip() in ("", "none"):
        return edit
    for part in text.split("|"):
        match = _EDIT.fullmatch(part)
        kind = match.group(1).replace("-", "_") if match else ""
        if match is None or kind not in ACTIONS:
            raise RouteError(
                f"cannot read the edit {part.strip()!r}: expected one of {', '.join(ACTIONS)}, written like swap(3)"
            )
        numbers = [number.strip() for number in re.split(r"[,-]", match.group(2)) if match.group(2).strip()]
        if not all(number.isdecimal() for number in numbers):
            raise RouteError(f"cannot read the edit {part.strip()!r}: expected whole numbers in the brackets")
        try:
            inspect.signature(ACTIONS[kind]).bind("route", *numbers)
        except TypeError as error:
            raise RouteError(f"cannot read the edit {part.strip()!r}: {error}") from error
        edit |= Edit(((kind, tuple(map(int, numbers))),))
    return edit

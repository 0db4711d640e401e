"""Edits: changes to a route. Each is a small immutable recipe; `a | b` applies a, then b.

    >>> from depthscope.routes import Route
    >>> swap(2)(Route.own(6)).name
    '0-1 3 2 4-5'
    >>> (drop(1) | drop_mlp(4))(Route.own(6)).name
    '0 2-3 4~mlp 5'
    >>> parse_edit("drop(1) | drop_mlp(4)") == drop(1) | drop_mlp(4)
    True
    >>> (drop_head(4, 0, 2) | mean_ablate_head(4, 5))(Route.own(6)).name
    '0-3 4~head0,2~head5=mean 5'

Edits refer to blocks by their original number, wherever earlier edits have moved them.

Each edit is declared once: a function from a route and integers to a route, with its title and definition. Decorated with
`register_edit`, the function's name creates an Edit, `swap(3)`; parser, sweep, tables, page and `--help` derive from it. To
add an edit, declare it here and add a line for type checkers in `depthscope/__init__.py`; users declare custom edits in the
same way in their code.
"""

import random
from collections.abc import Callable

from depthscope.edit_registry import EDITS as EDITS
from depthscope.edit_registry import Edit as Edit
from depthscope.edit_registry import LayerSweep as LayerSweep
from depthscope.edit_registry import parse_edit as parse_edit
from depthscope.edit_registry import register_edit as register_edit
from depthscope.edit_registry import unregister_edit as unregister_edit
from depthscope.errors import RouteError
from depthscope.routes import (
    ATTN,
    HEAD,
    MEAN,
    MLP,
    NEURON,
    PLE,
    RESAMPLE,
    SSM,
    ZERO,
    Parallel,
    Route,
    Step,
    Visit,
    check_layer,
)


def _span(depth: int, first: int, last: int | None) -> tuple[int, int]:
    low, high = first, depth - 1 if last is None else last
    check_layer(low, depth, "first layer")
    check_layer(high, depth, "last layer")
    if low > high:
        raise RouteError(f"layers {low}-{high} run backwards: expected the first layer not above the last")
    return low, high


def _within(visit: Visit, low: int, high: int) -> bool:
    members = visit.members if isinstance(visit, Parallel) else (visit,)
    return all(low <= step.block <= high for step in members)


@register_edit(
    title="Swap",
    definition="a layer and the next are swapped; shown at the first of the two",
    sweep=LayerSweep(neighbours=1, verb="swapping"),
)
def swap(route: Route, layer: int) -> Route:
    """Swap blocks `layer` and `layer + 1` (E1 of the paper)."""
    check_layer(layer, route.depth, "swap layer")
    check_layer(layer + 1, route.depth, f"swap({layer}) exchanges blocks {layer} and {layer + 1}; block")
    return _exchanged(route, layer, layer + 1, f"swap({layer})")


@register_edit(title="Exchange", definition="two layers, not necessarily neighbours, change places")
def exchange(route: Route, layer: int, other: int) -> Route:
    """Exchange blocks `layer` and `other`: each is visited where the other was. Neighbours: `swap`."""
    check_layer(layer, route.depth, "exchange layer")
    check_layer(other, route.depth, "exchange layer")
    return _exchanged(route, layer, other, f"exchange({layer}, {other})")


def _exchanged(route: Route, layer: int, other: int, called: str) -> Route:
    steps = {layer: _as_visited(route, other, called), other: _as_visited(route, layer, called)}
    return route.map(lambda step: steps.get(step.block, step))


def _as_visited(route: Route, block: int, called: str) -> Step:
    """The block with the components that are ablated at its visits, so that an ablation moves with its block.

    Raises RouteError where its visits differ in that.
    """
    found = {step for step in route.steps() if step.block == block}
    if len(found) > 1:
        raise RouteError(
            f"block {block} is ablated differently at different visits: write the route out instead of {called}"
        )
    return found.pop() if found else Step(block)


@register_edit(
    title="Drop",
    definition="a layer is skipped: the residual stream passes it unchanged",
    sweep=LayerSweep(verb="dropping"),
)
def drop(route: Route, first: int, last: int | None = None) -> Route:
    """Skip blocks `first … last` (one block without `last`): the residual stream passes them unchanged (E2)."""
    low, high = _span(route.depth, first, first if last is None else last)
    return route.map(lambda step: None if low <= step.block <= high else step)


def _without(part: str, route: Route, layer: int) -> Route:
    check_layer(layer, route.depth, f"drop_{part} layer")
    return route.map(lambda step: step.without(part) if step.block == layer else step)


@register_edit(
    title="Drop attention",
    definition="a layer runs without its attention output, bias included",
    sweep=LayerSweep(component=ATTN),
)
def drop_attn(route: Route, layer: int) -> Route:
    """Set the attention output of block `layer`, bias included, to zero; its MLP runs (E3)."""
    return _without(ATTN, route, layer)


@register_edit(
    title="Drop MLP",
    definition="a layer runs without its MLP output, bias included",
    sweep=LayerSweep(component=MLP),
)
def drop_mlp(route: Route, layer: int) -> Route:
    """Set the MLP output of block `layer`, bias included, to zero; its attention runs (E3)."""
    return _without(MLP, route, layer)


@register_edit(
    title="Drop SSM",
    definition="a layer runs without the output of its state-space mixer; its attention stays",
    sweep=LayerSweep(component=SSM),
)
def drop_ssm(route: Route, layer: int) -> Route:
    """Set the output of the state-space mixer of block `layer` to zero; the block also has an attention (Falcon-H1)."""
    return _without(SSM, route, layer)


@register_edit(
    title="Drop per-layer input",
    definition="a layer runs without its layer-specific embedding of the token",
    sweep=LayerSweep(component=PLE),
)
def drop_ple(route: Route, layer: int) -> Route:
    """Set to zero what block `layer` adds of its layer-specific embedding of the token (Gemma 4's per-layer input)."""
    return _without(PLE, route, layer)


def _ablated(kind: str, mode: str, route: Route, layer: int, indices: tuple[int, ...]) -> Route:
    check_layer(layer, route.depth, f"layer of the {kind}s")
    if not indices:
        raise RouteError(f"no {kind} of layer {layer} is named: expected one or more {kind}s after the layer")
    return route.map(lambda step: step.ablating(kind, indices, mode) if step.block == layer else step)


@register_edit(
    title="Drop heads",
    definition="attention heads of a layer are zero-ablated: they give zeros to the output projection",
)
def drop_head(route: Route, layer: int, *heads: int) -> Route:
    """Set what the attention heads `heads` of block `layer` give to the output projection to zero; its bias stays."""
    return _ablated(HEAD, ZERO, route, layer, heads)


@register_edit(
    title="Mean-ablate heads", definition="attention heads of a layer give their mean over a fixed reference text"
)
def mean_ablate_head(route: Route, layer: int, *heads: int) -> Route:
    """Replace what the attention heads `heads` of block `layer` give by its mean over a fixed reference text."""
    return _ablated(HEAD, MEAN, route, layer, heads)


@register_edit(
    title="Resample-ablate heads",
    definition="attention heads of a layer give what they gave at the same position of another document",
)
def resample_ablate_head(route: Route, layer: int, *heads: int) -> Route:
    """Replace what the attention heads `heads` of block `layer` give by what they gave at the same position of another
    document, which is drawn for each position from a fixed reference text."""
    return _ablated(HEAD, RESAMPLE, route, layer, heads)


@register_edit(title="Drop neurons", definition="MLP neurons of a layer are zero-ablated: their activation is zero")
def drop_neuron(route: Route, layer: int, *neurons: int) -> Route:
    """Set the activations of the MLP neurons `neurons` of block `layer` to zero; the bias of the output projection stays."""
    return _ablated(NEURON, ZERO, route, layer, neurons)


@register_edit(
    title="Mean-ablate neurons", definition="the activations of MLP neurons are their means over a fixed reference text"
)
def mean_ablate_neuron(route: Route, layer: int, *neurons: int) -> Route:
    """Replace the activations of the MLP neurons `neurons` of block `layer` by their means over a fixed reference text."""
    return _ablated(NEURON, MEAN, route, layer, neurons)


@register_edit(
    title="Resample-ablate neurons",
    definition="MLP neurons have the activations they had at the same position of another document",
)
def resample_ablate_neuron(route: Route, layer: int, *neurons: int) -> Route:
    """Replace the activations of the MLP neurons `neurons` of block `layer` by those at the same position of another
    document, which is drawn for each position from a fixed reference text."""
    return _ablated(NEURON, RESAMPLE, route, layer, neurons)


@register_edit(title="Repeat", definition="each layer of a range is visited several times in a row")
def repeat(route: Route, first: int, last: int | None = None, times: int = 2) -> Route:
    """Visit each of the blocks `first … last` `times` times in a row: `5 5 6 6 7 7`."""
    low, high = _span(route.depth, first, first if last is None else last)
    if times < 1:
        raise RouteError(f"repeat visits a block at least once, not {times} times")
    visits: list[Visit] = []
    for visit in route.visits:
        visits += [visit] * (times if _within(visit, low, high) else 1)
    return Route(route.depth, tuple(visits))


@register_edit(title="Repeat range", definition="a range of layers is run several times as a whole")
def repeat_range(route: Route, first: int, last: int | None = None, times: int = 2) -> Route:
    """Run the blocks `first … last` `times` times as a whole: `5 6 7 5 6 7`. The copies follow the range's last visit."""
    low, high = _span(route.depth, first, first if last is None else last)
    if times < 1:
        raise RouteError(f"repeat_range runs a range at least once, not {times} times")
    places = [place for place, visit in enumerate(route.visits) if _within(visit, low, high)]
    if not places:
        return route
    after = places[-1] + 1
    copies = tuple(route.visits[place] for place in places) * (times - 1)
    return Route(route.depth, route.visits[:after] + copies + route.visits[after:])


@register_edit(title="Repeat middle", definition="each layer of a range is replaced by the middle one of the range")
def repeat_middle(route: Route, first: int, last: int) -> Route:
    """Replace each of the blocks `first … last` by the middle one, `(first + last) // 2`: `6 6 6` (Sun et al. 2024)."""
    low, high = _span(route.depth, first, last)
    middle = _as_visited(route, (low + high) // 2, f"repeat_middle({low}, {high})")
    return route.map(lambda step: middle if low <= step.block <= high else step)


def _reordered(route: Route, low: int, high: int, order: Callable[[list[Visit]], list[Visit]]) -> Route:
    """Reorder the visits that lie entirely within blocks low … high, using only the places they already have."""
    places = [i for i, visit in enumerate(route.visits) if _within(visit, low, high)]
    visits = list(route.visits)
    for place, visit in zip(places, order([visits[i] for i in places]), strict=True):
        visits[place] = visit
    return Route(route.depth, tuple(visits))


@register_edit(title="Reverse", definition="the layers of a range are visited in reverse order")
def reverse(route: Route, first: int = 0, last: int | None = None) -> Route:
    """Visit blocks `first … last` (all by default) in reverse order."""
    return _reordered(route, *_span(route.depth, first, last), lambda visits: visits[::-1])


@register_edit(title="Shuffle", definition="the layers of a range are visited in a random order")
def shuffle(route: Route, seed: int, first: int = 0, last: int | None = None) -> Route:
    """Visit blocks `first … last` (all by default) in a random order drawn with `seed`."""

    def order(visits: list[Visit]) -> list[Visit]:
        return random.Random(seed).sample(visits, len(visits))

    return _reordered(route, *_span(route.depth, first, last), order)


@register_edit(
    title="Parallel", definition="the layers of a range read the same residual stream, which continues with their mean"
)
def parallel(route: Route, first: int = 0, last: int | None = None) -> Route:
    """Let blocks `first … last` (all by default) read the same residual stream, which continues with their outputs' mean."""
    return _in_parallel(route, first, last, 1)


@register_edit(
    title="Loop",
    definition="the layers of a range run in parallel, and their mean enters them again, several times in all",
)
def loop(route: Route, first: int = 0, last: int | None = None, times: int = 3) -> Route:
    """Run blocks `first … last` in parallel `times` times in a row, each time on the mean of before (Sun et al. 2024)."""
    if times < 1:
        raise RouteError(f"loop runs a range at least once, not {times} times")
    return _in_parallel(route, first, last, times)


def _in_parallel(route: Route, first: int, last: int | None, times: int) -> Route:
    """The visits to blocks `first … last` as one parallel visit, `times` times in a row, at the place of the first of them."""
    low, high = _span(route.depth, first, last)
    members: list[Step] = []
    visits: list[Visit] = []
    place = None
    for visit in route.visits:
        if not _within(visit, low, high):
            visits.append(visit)
            continue
        if isinstance(visit, Parallel):
            raise RouteError(f"{visit.name} is already parallel: blocks {low}-{high} cannot be made parallel around it")
        place = len(visits) if place is None else place
        members.append(visit)
    if place is not None:
        visits[place:place] = [Parallel(tuple(members))] * times
    return Route(route.depth, tuple(visits))

"""What a search for blocks to remove chooses from: sets of blocks, or of attentions and MLPs, and the routes without them.

An item is a Step: `Step(3)` stands for block 3, `Step(3, ("attn",))` for its attention. A set of items is written as their
names, in order: `3 7~mlp`.
"""

from collections.abc import Iterable
from random import Random

from depthscope.errors import DepthscopeError, RouteError
from depthscope.models.model import Model
from depthscope.routes import ATTN, MLP, Route, Step

Removed = frozenset[Step]
NOTHING: Removed = frozenset()
TRIES = 200
"""How often a random set that the model cannot run without is drawn again."""


def name_of(removed: Removed) -> str:
    """The items by name, in order, separated by spaces; empty for none."""
    return " ".join(item.name for item in sorted(removed))


def route_without(depth: int, removed: Removed) -> Route:
    """The route without these blocks and components."""
    blocks = {item.block for item in removed if item.whole}
    silent: dict[int, tuple[str, ...]] = {}
    for item in sorted(removed):
        silent[item.block] = silent.get(item.block, ()) + item.silent
    visits = (Step(block, silent.get(block, ())) for block in range(depth) if block not in blocks)
    return Route(depth, tuple(visits))


class Removals:
    """The sets that can be removed from a model: all items, and which sets the model can run without.

    Raises UnsupportedError where components are to be removed and the model's blocks cannot be taken apart.
    """

    def __init__(self, model: Model, components: bool = False) -> None:
        self.model, self.components = model, components
        if components:
            parts = model.require_components().parts
            self.items = tuple(
                Step(block, (kind,)) for block in range(model.depth) for kind in (ATTN, MLP) if kind in parts[block]
            )
        else:
            self.items = tuple(map(Step, range(model.depth)))
        self.refused: dict[Removed, str] = {}
        """Sets that were not tried, and why the model cannot run without them."""
        self._possible: set[Removed] = set()

    @property
    def kind(self) -> str:
        """What the items are, for messages."""
        return "attentions and MLPs" if self.components else "blocks"

    def route(self, removed: Removed) -> Route:
        """The route without a set."""
        return route_without(self.model.depth, removed)

    def possible(self, removed: Removed) -> bool:
        """Whether the model can run without a set; a later block may read what one of its blocks stores."""
        if removed not in self._possible and removed not in self.refused:
            try:
                self.model.check_route(self.route(removed))
            except RouteError as error:
                self.refused[removed] = str(error)
            else:
                self._possible.add(removed)
        return removed in self._possible

    def with_one_more(self, removed: Removed) -> list[Removed]:
        """All possible sets with one more item, in the order of the items."""
        larger = (removed | {item} for item in self.items if item not in removed)
        return [one for one in larger if self.possible(one)]

    def first_possible(self, ranked: Iterable[Step], count: int) -> dict[int, Removed]:
        """The sets of the first 1, 2, … `count` items of a ranking, without items that the model cannot do without then."""
        found, removed = {}, NOTHING
        for item in ranked:
            if len(removed) == count:
                break
            if self.possible(removed | {item}):
                removed = removed | {item}
                found[len(removed)] = removed
        return found

    def drawn(self, random: Random, count: int) -> list[Step] | None:
        """Random items, in the order drawn, without which the model can run; None if none were found."""
        for _ in range(TRIES):
            items = random.sample(self.items, count)
            if self.possible(frozenset(items)):
                return items
        return None

    def switched(self, random: Random, removed: Removed) -> Removed | None:
        """A mutation (level switches of EvoPress): one to three removed items exchanged for kept ones; None if none is found.

        The number is the lower of two draws from 1 to 3, so mostly 1.
        """
        for _ in range(TRIES):
            kept = [item for item in self.items if item not in removed]
            switches = min(random.randint(1, 3), random.randint(1, 3), len(kept), len(removed))
            out, into = random.sample(sorted(removed), switches), random.sample(kept, switches)
            if self.possible(found := removed - frozenset(out) | frozenset(into)):
                return found
        return None


def require_count(removals: Removals, remove: int) -> int:
    """`remove`, or DepthscopeError where so many items are not there, or nothing would be left."""
    there, name = len(removals.items), removals.model.name
    if remove > there:
        raise DepthscopeError(
            f"{remove:,} {removals.kind} to remove, but {name} has {there}: expected at most {there - 1}"
        )
    if remove == there:
        raise DepthscopeError(
            f"nothing left to keep: {name} has {there} {removals.kind}, expected at most {there - 1} to remove"
        )
    return remove


def require_some_kept(model: Model, removed: Removed) -> None:
    """Raise DepthscopeError where a set is all blocks, RouteError for a block or component that the model lacks."""
    route = route_without(model.depth, removed)
    if outside := [item for item in sorted(removed) if item.block >= model.depth]:
        raise RouteError(f"block {outside[0].block} cannot be removed: {model.name} has blocks 0 … {model.depth - 1}")
    if not route.visits:
        raise DepthscopeError(f"nothing left to keep: all {model.depth} blocks of {model.name} would be removed")
    model.check_route(route)

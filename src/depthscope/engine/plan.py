"""Plans: many routes become one tree of visits, and the tree becomes a list of instructions.

Routes share their common prefixes, so a sweep over all swaps and drops runs the unmodified model's blocks once
and each edited route only from its edit on: a drop sweep of L blocks takes L(L+1)/2 block calls instead of L·L.

Nodes of the tree are residual streams, numbered; node 0 is the embedding, nodes 1, 2, … are those of the first route.
The tree's leaves are processed in cohorts of `width` routes. Within a cohort, streams about to enter the same block
share one call (a wavefront) of at most `together` streams; from one cohort to the next, only streams from which later routes
branch off are kept. Width 1 processes one route after the other, which is fastest for a large batch; a wide cohort makes full
use of the machine when the batch is a single short prompt, and lets a block whose weights are read from disk serve all routes
of the cohort, a few at a time, before the next block is read. Torch-free; the numbers do not depend on the plan.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from depthscope.routes import Parallel, Replaced, Route, Step, Visit

EMBEDDING = 0


@dataclass(frozen=True, slots=True)
class Call:
    """Apply one visit to the streams `sources`, in one batch; the results are `targets`."""

    step: Step
    sources: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of the streams `sources` becomes `target`."""

    sources: tuple[int, ...]
    target: int


@dataclass(frozen=True, slots=True)
class Finish:
    """The streams `sources` are final: `routes[i]` are the indices of the routes that end with `sources[i]`."""

    sources: tuple[int, ...]
    routes: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Free:
    """No later instruction reads this stream."""

    source: int


Instruction = Call | Mean | Finish | Free


@dataclass(slots=True)
class _Node:
    parent: int
    visit: Visit | None
    inputs: tuple[int, ...]
    children: list[int] = field(default_factory=list)
    routes: list[int] = field(default_factory=list)


def make_plan(routes: Sequence[Route], width: int = 1, together: int | None = None) -> list[Instruction]:
    """Instructions that compute the final residual streams of `routes`, the first route first and alone.

    `width`: how many routes may be in progress, at least 1; `together`: how many of them share a call, `width` by default.
    """
    together = together or width
    assert width >= 1
    assert together >= 1
    tree = _tree(routes)
    leaves = [node for node in _depth_first(tree) if tree[node].routes]
    first = next(node for node in leaves if 0 in tree[node].routes)
    leaves.remove(first)
    cohorts = [[first], *(leaves[i : i + width] for i in range(0, len(leaves), width))]
    scheduler = _Scheduler(tree, together)
    instructions = [instruction for cohort in cohorts for instruction in scheduler.run(cohort)]
    assert scheduler.done(), "every stream is computed and freed"
    return instructions


def block_calls(plan: Iterable[Instruction]) -> int:
    """How many times a block is applied to a batch: the plan's cost in blocks."""
    return sum(len(instruction.targets) for instruction in plan if isinstance(instruction, Call))


def block_order(plan: Iterable[Instruction], known: int = 0) -> list[int]:
    """The blocks a plan calls, in order, without calls that compute only the first `known` streams of the first route."""
    return [
        instruction.step.block
        for instruction in plan
        if isinstance(instruction, Call)
        and not isinstance(instruction.step, Replaced)
        and any(target >= known for target in instruction.targets)
    ]


def _tree(routes: Sequence[Route]) -> list[_Node]:
    tree = [_Node(-1, None, ())]
    index: dict[tuple[int, Visit], int] = {}

    def child(parent: int, visit: Visit) -> int:
        if (parent, visit) not in index:
            inputs = tuple(child(parent, step) for step in visit.members) if isinstance(visit, Parallel) else (parent,)
            index[parent, visit] = len(tree)
            tree.append(_Node(parent, visit, inputs))
            for source in set(inputs):
                tree[source].children.append(index[parent, visit])
        return index[parent, visit]

    for number, route in enumerate(routes):
        node = EMBEDDING
        for visit in route.visits:
            node = child(node, visit)
        tree[node].routes.append(number)
    return tree


def _depth_first(tree: list[_Node]) -> Iterator[int]:
    seen = set()
    stack = [EMBEDDING]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            yield node
            stack.extend(reversed(tree[node].children))


class _Scheduler:
    def __init__(self, tree: list[_Node], together: int) -> None:
        self.tree, self.together = tree, together
        self.computed = {EMBEDDING}
        self.pending = Counter({node: len(data.children) + bool(data.routes) for node, data in enumerate(tree)})

    def done(self) -> bool:
        return len(self.computed) == len(self.tree) and not any(self.pending.values())

    def run(self, cohort: list[int]) -> Iterator[Instruction]:
        needed = self._ancestors(cohort)
        ending = set(cohort)
        for node in cohort:  # drop(L-1) ends at a stream that the unmodified model's route has already computed
            if node in self.computed:
                yield from self._finish([node])
        while needed:
            ready = [node for node in needed if all(source in self.computed for source in self.tree[node].inputs)]
            for node in [node for node in ready if isinstance(self.tree[node].visit, Parallel)]:
                yield Mean(self.tree[node].inputs, node)
                yield from self._after([node], needed, ending)
            yield from self._wave([node for node in ready if isinstance(self.tree[node].visit, Step)], needed, ending)

    def _wave(self, ready: list[int], needed: set[int], ending: set[int]) -> Iterator[Instruction]:
        """One call for the streams furthest behind, so that they catch up with others and share later calls."""
        groups: dict[Step, list[int]] = defaultdict(list)
        for node in sorted(ready):
            step = self.tree[node].visit
            assert isinstance(step, Step)
            groups[step].append(node)
        if groups:
            step = min(groups, key=lambda step: (step.block, step.silent))  # replaced ones have no order among others
            nodes = groups[step][: self.together]
            yield Call(step, tuple(self.tree[node].parent for node in nodes), tuple(nodes))
            yield from self._after(nodes, needed, ending)

    def _after(self, nodes: list[int], needed: set[int], ending: set[int]) -> Iterator[Instruction]:
        self.computed.update(nodes)
        needed.difference_update(nodes)
        for node in nodes:
            for source in set(self.tree[node].inputs):
                yield from self._release(source)
        if final := [node for node in nodes if node in ending]:
            yield from self._finish(final)

    def _finish(self, nodes: list[int]) -> Iterator[Instruction]:
        yield Finish(tuple(nodes), tuple(tuple(self.tree[node].routes) for node in nodes))
        for node in nodes:
            yield from self._release(node)

    def _release(self, node: int) -> Iterator[Instruction]:
        self.pending[node] -= 1
        if self.pending[node] == 0:
            yield Free(node)

    def _ancestors(self, cohort: list[int]) -> set[int]:
        needed: set[int] = set()
        stack = list(cohort)
        while stack:
            node = stack.pop()
            if node not in self.computed and node not in needed:
                needed.add(node)
                stack.extend(self.tree[node].inputs)
        return needed

"""Routes: the order in which one residual stream visits a model's blocks.

The unmodified model's route is `0 1 2 … L-1`; every intervention is an edit (`depthscope.edits`) that turns it into another
route:

    >>> Route.own(6).name
    '0-5'
    >>> parse_route("0-1 3 2 4~mlp 5", depth=6).visits[4]
    Step(block=4, silent=('mlp',), inside=())

Routes are immutable values in a normal form, so two edits that lead to the same route give equal routes with the same name.
Imports no torch.

Route names: `4-7` is `4 5 6 7` (and `7-4` the reverse), `3~attn` is block 3 with its attention ablated, `3~mlp` with
its MLP ablated (and so on for each of COMPONENTS), `3~head0,2` with its attention heads 0 and 2 ablated, `3~neuron5-9` with its
MLP neurons 5 to 9, `3~head2=mean` with head 2 at its mean (see MODES), `(3+4+5)` the mean of the outputs of blocks 3, 4 and 5,
all given the same input, and `empty` the route without visits.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from depthscope.errors import RouteError

ATTN, SSM, MLP, PLE = "attn", "ssm", "mlp", "ple"
COMPONENT_NAMES = {ATTN: "attention", SSM: "state-space mixer", MLP: "MLP", PLE: "per-layer input"}
"""The components of a block with their full names."""
COMPONENTS = tuple(COMPONENT_NAMES)
"""What a block may add to the residual stream: attention (or another token mixer in its place), a state-space mixer next to
an attention, an MLP or experts, and a layer-specific embedding of the token (Gemma 4's per-layer input)."""


HEAD, NEURON = "head", "neuron"
HOLDERS = {HEAD: ATTN, NEURON: MLP}
"""What a component is made of, and the component: attention heads and MLP neurons."""
ZERO, MEAN, RESAMPLE = "zero", "mean", "resample"
MODES = {
    ZERO: "is zero",
    MEAN: "is its mean over a fixed reference text",
    RESAMPLE: "is what it was at the same position of another document, drawn from a fixed reference text",
}
"""What a head or neuron gives where it is ablated (models.substitutes says which text)."""
MOST_INDEX = 1 << 24
"""Heads and neurons have numbers below this."""
MOST_ABLATED = 1 << 16
"""Heads and neurons ablated at one visit."""


@dataclass(frozen=True, slots=True, order=True)
class Ablated:
    """A head or neuron that is ablated at a visit: what goes into its component's output projection is replaced.

    The bias of the projection stays, so all heads ablated are not the same as the attention ablated.
    """

    kind: str
    index: int
    mode: str = ZERO

    def __post_init__(self) -> None:
        if self.kind not in HOLDERS or self.mode not in MODES:
            raise RouteError(
                f"cannot ablate {self.kind!r} by {self.mode!r}: expected {_either(HOLDERS)} by {_either(MODES)}"
            )
        if not 0 <= self.index < MOST_INDEX:
            raise RouteError(f"{self.kind} {self.index} is out of range: they are numbered from 0")


@dataclass(frozen=True, slots=True, order=True)
class Step:
    """One visit to a block. `silent` are those of its COMPONENTS that are ablated: their output, bias included, is zero.
    `inside` are the heads and neurons that are ablated.

    Normal form: both are sorted, and heads and neurons of an ablated component are left out. Raises RouteError for a head or
    neuron that is ablated in two ways.
    """

    block: int
    silent: tuple[str, ...] = ()
    inside: tuple[Ablated, ...] = ()

    def __post_init__(self) -> None:
        unknown = [part for part in self.silent if part not in COMPONENTS]
        if unknown:
            raise RouteError(f"unknown component {unknown[0]!r}: expected some of {', '.join(COMPONENTS)}")
        object.__setattr__(self, "silent", tuple(part for part in COMPONENTS if part in self.silent))
        inside = sorted({one for one in self.inside if HOLDERS[one.kind] not in self.silent})
        if len(inside) > MOST_ABLATED:
            raise RouteError(f"{len(inside):,} heads and neurons of one block: expected at most {MOST_ABLATED:,}")
        for one, other in pairwise(inside):
            if (one.kind, one.index) == (other.kind, other.index):
                raise RouteError(f"{one.kind} {one.index} of block {self.block} is ablated in two ways: expected one")
        object.__setattr__(self, "inside", tuple(inside))

    @property
    def whole(self) -> bool:
        """Whether nothing is ablated."""
        return not self.silent and not self.inside

    def without(self, part: str) -> "Step":
        """The same visit with one more component ablated."""
        return Step(self.block, (*self.silent, part), self.inside)

    def ablating(self, kind: str, indices: Iterable[int], mode: str = ZERO) -> "Step":
        """The same visit with these heads or neurons ablated; of those that were ablated already the mode changes."""
        added = tuple(Ablated(kind, index, mode) for index in indices)
        places = {(one.kind, one.index) for one in added}
        kept = tuple(one for one in self.inside if (one.kind, one.index) not in places)
        return Step(self.block, self.silent, (*kept, *added))

    @property
    def name(self) -> str:
        """`3`, `3~attn`, `3~attn~mlp`, `3~head0,2`, `3~head2=mean~neuron5-9`."""
        return "".join([str(self.block), *(f"~{part}" for part in self.silent), *_inside_names(self.inside)])


def _inside_names(inside: Iterable[Ablated]) -> Iterator[str]:
    """`~head0,2`, `~head5=mean`: heads before neurons, in the order of MODES."""
    order = {mode: place for place, mode in enumerate(MODES)}
    ordered = sorted(inside, key=lambda one: (one.kind, order[one.mode], one.index))
    for (kind, mode), several in groupby(ordered, key=lambda one: (one.kind, one.mode)):
        yield f"~{kind}{listed_numbers([one.index for one in several])}{'' if mode == ZERO else f'={mode}'}"


def listed_numbers(numbers: Iterable[int]) -> str:
    """Numbers in ascending order, three or more in a row as a range: `0,2,5-9`."""
    parts = []
    for _, group in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        parts += [f"{run[0]}-{run[-1]}"] if len(run) > 2 else map(str, run)
    return ",".join(parts)


def _either(names: Iterable[str]) -> str:
    return " or ".join(names)


@dataclass(frozen=True, slots=True)
class Replaced(Step):
    """A visit at which `function`, called `by`, maps the residual stream [batch, seq, d_model] in place of the block.

    Two are equal if block and function are the same. For routes made in code: the name `3=linear` cannot be parsed. The
    block stores nothing for later blocks here.
    """

    by: str = ""
    function: Callable[[Any], Any] | None = None

    @property
    def whole(self) -> bool:
        """False: the block is not visited."""
        return False

    @property
    def name(self) -> str:
        """`3=linear`."""
        return f"{self.block}={self.by}"


@dataclass(frozen=True, slots=True)
class Parallel:
    """Several visits from the same residual stream, which continues with the mean of their outputs."""

    members: tuple[Step, ...]

    @property
    def name(self) -> str:
        """`(3+4+5)`."""
        return "(" + "+".join(step.name for step in self.members) + ")"


Visit = Step | Parallel


@dataclass(frozen=True, slots=True)
class Route:
    """The visits of one forward pass through a model of `depth` blocks, in normal form.

    Normal form: parallel members are sorted, and a single one (or several that are all the same) is a plain step. Raises
    RouteError for a block outside `0 … depth-1`.
    """

    depth: int
    visits: tuple[Visit, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "visits", tuple(_normalised(self.visits)))
        for step in self.steps():
            check_layer(step.block, self.depth, "block")

    @classmethod
    def own(cls, depth: int) -> "Route":
        """The unmodified model's route."""
        return cls(depth, tuple(Step(block) for block in range(depth)))

    def steps(self) -> Iterator[Step]:
        """Every individual visit, parallel ones in sorted order."""
        for visit in self.visits:
            yield from visit.members if isinstance(visit, Parallel) else (visit,)

    @property
    def silences(self) -> bool:
        """Whether any visit ablates a component."""
        return any(step.silent for step in self.steps())

    @property
    def name(self) -> str:
        """The route in writing, with consecutive blocks as ranges: `0-2 4 3 5-11`."""
        return " ".join(_runs(self.visits)) or "empty"

    def __str__(self) -> str:
        return self.name

    def map(self, change: Callable[[Step], Step | None]) -> "Route":
        """The route with every individual visit changed, or omitted where `change` returns None."""
        visits: list[Visit] = []
        for visit in self.visits:
            members = visit.members if isinstance(visit, Parallel) else (visit,)
            changed = tuple(step for step in map(change, members) if step is not None)
            if changed:
                visits.append(Parallel(changed))
        return Route(self.depth, tuple(visits))


def _normalised(visits: Iterable[Visit]) -> Iterator[Visit]:
    for visit in visits:
        members = visit.members if isinstance(visit, Parallel) else (visit,)
        if len(set(members)) == 1:
            yield members[0]
        elif members:
            yield Parallel(tuple(sorted(members)))


def _runs(visits: tuple[Visit, ...]) -> Iterator[str]:
    """Names of visits, with consecutive blocks without ablations written as `first-last`."""
    start = 0
    while start < len(visits):
        end, direction = start + 1, 0
        for here, after in pairwise(visits[start:]):
            if not (isinstance(here, Step) and isinstance(after, Step) and here.whole and after.whole):
                break
            stride = after.block - here.block
            if abs(stride) != 1 or (direction and stride != direction):
                break
            end, direction = end + 1, stride
        if direction > 0 or end - start > 2:
            yield f"{visits[start].name}-{visits[end - 1].name}"
        else:
            end = start + 1
            yield visits[start].name
        start = end


def check_layer(layer: int, depth: int, what: str) -> None:
    """Raise RouteError, with `what` in the message, unless `layer` is one of `0 … depth-1`."""
    if not 0 <= layer < depth:
        raise RouteError(f"{what} {layer} is out of range: the model has blocks 0 … {depth - 1}")


_STEP = re.compile(r"(\d+)((?:~[^~]*)*)")
_INSIDE = re.compile(rf"({'|'.join(HOLDERS)})(\d[\d,-]*)(?:=({'|'.join(MODES)}))?")
_NUMBERS = re.compile(r"(\d+)(?:-(\d+))?")


def parse_route(text: str, depth: int) -> Route:
    """Parse a route's name, `0-2 4 3 5-11`, for a model of `depth` blocks. Raises RouteError."""
    if text.strip() == "empty":
        return Route(depth, ())
    visits: list[Visit] = []
    for word in text.split():
        if word.startswith("(") and word.endswith(")"):
            visits.append(Parallel(tuple(_parse_step(member, text) for member in word[1:-1].split("+"))))
        elif run := re.fullmatch(r"(\d+)-(\d+)", word):
            first, last = int(run[1]), int(run[2])
            for end in (first, last):
                check_layer(end, depth, f"block in {word!r}:")
            visits += [Step(b) for b in range(first, last + (1 if last >= first else -1), 1 if last >= first else -1)]
        else:
            visits.append(_parse_step(word, text))
    if not visits:
        raise RouteError("expected a route such as '0-2 4 3 5-11' (or 'empty'), got nothing")
    return Route(depth, tuple(visits))


def _parse_step(word: str, text: str) -> Step:
    match = _STEP.fullmatch(word)
    silent: list[str] = []
    inside: list[Ablated] = []
    for part in match[2].split("~")[1:] if match else ():
        found = _INSIDE.fullmatch(part)
        numbers = numbers_of(found[2]) if found else None
        if found and numbers:
            inside += [Ablated(found[1], number, found[3] or ZERO) for number in numbers]
        elif part in COMPONENTS:
            silent.append(part)
        else:
            match = None
            break
    if match is None:
        raise RouteError(
            f"cannot read {word!r} in the route {text!r}: expected 3, 3~attn, 3~mlp, 3~head0,2, 3~neuron5-9=mean, 4-7 or "
            "(3+4+5)"
        )
    return Step(int(match[1]), tuple(silent), tuple(inside))


def numbers_of(text: str) -> list[int] | None:
    """The numbers of `0,2,5-9`; None for what is not written so. Raises RouteError for more than MOST_ABLATED."""
    numbers: list[int] = []
    for part in text.split(","):
        found = _NUMBERS.fullmatch(part.strip())
        if found is None or len(part) > 24:
            return None
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            return None
        if last - first >= MOST_ABLATED or len(numbers) > MOST_ABLATED:
            raise RouteError(f"{part.strip()} are too many heads or neurons: expected at most {MOST_ABLATED:,}")
        numbers += range(first, last + 1)
    return numbers

"""What an edit is and how it is declared: the registry that parser, sweep, tables, page and help read."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from operator import index
from typing import Any, Concatenate, ParamSpec

from depthscope.errors import RouteError
from depthscope.printable import shown
from depthscope.routes import COMPONENTS, Route, numbers_of

Arguments = ParamSpec("Arguments")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSweep:
    """How a sweep applies an edit at every layer in turn, with the layer as its only argument: `swap(0)`, `swap(1)`, ….

    Raises RouteError for a number below 0 or an unknown component.
    """

    first: int = 0
    """The first layer at which it is applied."""
    neighbours: int = 0
    """How many blocks after the layer it also changes; a swap, with 1, is not applied at the last layer."""
    component: str | None = None
    """The one of COMPONENTS that it ablates; every block that it changes must have it."""
    verb: str = ""
    """The edit as a verb in sentences, before its layers: `swapping` layers 3 and 4. By default the title is used."""

    def __post_init__(self) -> None:
        if self.first < 0 or self.neighbours < 0:
            raise RouteError(
                f"expected integers of at least 0, got first={self.first} and neighbours={self.neighbours}"
            )
        if self.component not in (None, *COMPONENTS):
            raise RouteError(f"unknown component {self.component!r}: expected some of {', '.join(COMPONENTS)}")

    def layers(self, depth: int) -> range:
        """The layers at which it is applied in a model of `depth` blocks."""
        return range(self.first, depth - self.neighbours)

    def blocks(self, layer: int) -> range:
        """The blocks it changes when applied at a layer."""
        return range(layer, layer + self.neighbours + 1)


@dataclass(frozen=True, slots=True)
class Call:
    """An edit's name with its arguments in canonical form: trailing defaults omitted, arguments after a gap by name."""

    kind: str
    arguments: tuple[int, ...] = ()
    named: tuple[tuple[str, int], ...] = ()

    @property
    def name(self) -> str:
        """The call in writing: `drop(3, 5)`, `repeat(3, times=4)`."""
        return (
            f"{self.kind}({', '.join([*map(str, self.arguments), *(f'{key}={value}' for key, value in self.named)])})"
        )

    @property
    def given(self) -> Mapping[str, int]:
        """The arguments by the names of their parameters, without those of a list."""
        kind = registered(self.kind)
        single = self.arguments if kind.listed is None else self.arguments[: kind.single]
        names = [*kind.signature.parameters][: len(single)]
        return {**dict(zip(names, single, strict=True)), **dict(self.named)}


@dataclass(frozen=True, slots=True)
class Edit:
    """A recipe that turns a route into another; `a | b` applies a, then b. Call it on a Route to apply it."""

    actions: tuple[Call, ...] = ()

    def __or__(self, other: "Edit") -> "Edit":
        return Edit(self.actions + other.actions)

    def __call__(self, route: Route) -> Route:
        """The route after this edit. Raises RouteError where it cannot be applied."""
        for call in self.actions:
            route = registered(call.kind).apply(route, call)
        return route

    @property
    def name(self) -> str:
        """The edit in writing, `swap(3) | drop_mlp(7)`; equal edits have equal names."""
        return " | ".join(call.name for call in self.actions) or "none"

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class EditKind:
    """A registered edit. `name` appears in the column `edit` and in text; `function` turns a route into another."""

    name: str
    title: str
    definition: str
    """What it does, as in a legend: no capital, no full stop."""
    function: Callable[..., Route]
    sweep: LayerSweep | None = None
    """None: it is not used in sweeps."""
    signature: inspect.Signature = field(init=False, repr=False, compare=False)
    """Signature of the name that creates the Edit: the function's without the route."""

    def __post_init__(self) -> None:
        own = inspect.signature(self.function)
        after_route = [*own.parameters.values()][1:]
        object.__setattr__(self, "signature", own.replace(parameters=after_route, return_annotation=Edit))
        if not is_edit_name(self.name):
            raise RouteError(
                f"{self.name!r} cannot name an edit: expected lower-case letters, digits and _, such as skip_pair"
            )
        parameters = [*self.signature.parameters.values()]
        for one in parameters:
            suits = one.kind is one.POSITIONAL_OR_KEYWORD and isinstance(
                one.default, int | type(None) | type(one.empty)
            )
            # A list takes all arguments from its place on, so those before it are always given, by position.
            alone = all(other is one or other.default is one.empty for other in parameters)
            if not suits and not (one.kind is one.VAR_POSITIONAL and alone):
                raise RouteError(f"edit {self.name}: expected integer parameters after the route, got {one}")
        if self.sweep is not None:
            try:
                self.signature.bind(self.sweep.first)
            except TypeError as error:
                raise RouteError(f"a sweep calls {self.name} with only a layer: {error}") from error

    @property
    def listed(self) -> str | None:
        """The name of its last parameter if that takes any number of integers, such as the heads of `drop_head`; else None."""
        return next((n for n, one in self.signature.parameters.items() if one.kind is one.VAR_POSITIONAL), None)

    @property
    def single(self) -> int:
        """How many parameters take one integer."""
        return len(self.signature.parameters) - (self.listed is not None)

    @property
    def source(self) -> str:
        """Where its function is defined: `__main__.skip_pair`."""
        return f"{self.function.__module__}.{self.function.__qualname__}"

    @property
    def built_in(self) -> bool:
        """Whether it comes with depthscope."""
        return self.source.startswith("depthscope.")

    def call(self, *arguments: Any, **named: Any) -> Call:
        """The call in canonical form, from integers, or None for a default. Raises TypeError for arguments that do not fit."""
        bound = self.signature.bind(*arguments, **named).arguments
        if self.listed is not None:
            single = [bound[name] for name in self.signature.parameters if name != self.listed]
            return Call(self.name, tuple(map(index, (*single, *bound.get(self.listed, ())))))
        values: list[tuple[str, int | None]] = []
        length = 0
        for name, parameter in self.signature.parameters.items():
            value = bound.get(name)
            if value is None and parameter.default is not parameter.empty:
                value = parameter.default
            elif value is None:
                raise TypeError(f"missing a required argument: {name!r}")
            values.append((name, None if value is None else index(value)))
            if value != parameter.default:
                length = len(values)
        given = values[:length]
        # A default of None cannot be written as a number, so arguments after it are given by name.
        gap = next((i for i, (_, value) in enumerate(given) if value is None), length)
        by_position = tuple(value for _, value in given[:gap] if value is not None)
        return Call(self.name, by_position, tuple((name, value) for name, value in given[gap:] if value is not None))

    def edit(self, *arguments: Any, **named: Any) -> Edit:
        """The edit with these arguments. Raises TypeError for arguments that do not fit."""
        return Edit((self.call(*arguments, **named),))

    def apply(self, route: Route, call: Call) -> Route:
        """The route after the call. Raises RouteError where the edit cannot be applied."""
        changed = self.function(route, *call.arguments, **dict(call.named))
        if not isinstance(changed, Route) or changed.depth != route.depth:
            raise RouteError(f"{call.name} returned {changed!r}: expected a Route of depth {route.depth}")
        return changed


EDITS: dict[str, EditKind] = {}
"""Every registered edit by name, in the order of registration."""


def register_edit(
    *, title: str, definition: str, sweep: LayerSweep | None = None, name: str | None = None
) -> Callable[[Callable[Concatenate[Route, Arguments], Route]], Callable[Arguments, Edit]]:
    """Turn the decorated function, which takes a Route and integers and returns a Route of the same depth, into an edit.

    Its last parameter may be a list of integers, `*heads`, where none before it has a default. The decorated name then creates
    Edits: `skip_pair(3)`. `title` and `definition` (a few words without a capital) are shown on the page and in help, `sweep`
    states how a sweep applies the edit at every layer (None: it does not), `name` is the function's by default. Running the
    same definition again replaces the edit. Raises RouteError for a name that depthscope or another function already uses, or
    for a function with unsuitable parameters.
    """

    def declare(function: Callable[Concatenate[Route, Arguments], Route]) -> Callable[Arguments, Edit]:
        kind = EditKind(
            name=name or function.__name__, title=title, definition=definition, function=function, sweep=sweep
        )
        _check_free(kind)
        EDITS[kind.name] = kind

        @wraps(function)
        def constructor(*arguments: Arguments.args, **named: Arguments.kwargs) -> Edit:
            return kind.edit(*arguments, **named)

        # Without these two the name would show the signature of the wrapped function, including the route.
        constructor.__signature__ = kind.signature  # type: ignore[attr-defined]
        constructor.__annotations__ = {one.name: one.annotation for one in kind.signature.parameters.values()}
        constructor.__name__ = constructor.__qualname__ = kind.name
        return constructor

    return declare


def _check_free(kind: EditKind) -> None:
    there = EDITS.get(kind.name, kind)
    # Running a notebook cell again defines a new function of the same name in the same place.
    if there.source == kind.source:
        return
    if there.built_in:
        raise RouteError(f"{kind.name} is a built-in edit: expected another name for {kind.source}")
    raise RouteError(f"the edit {kind.name} is already {there.source}: expected another name for {kind.source}")


def unregister_edit(name: str) -> None:
    """Remove a registered edit. Raises RouteError for a built-in edit and for an unknown name."""
    if registered(name).built_in:
        raise RouteError(f"{name} is a built-in edit and cannot be removed")
    del EDITS[name]


def registered(name: str) -> EditKind:
    """The edit of that name. Raises RouteError if there is none."""
    if name not in EDITS:
        raise RouteError(f"no edit is registered as {name!r}: expected one of {', '.join(EDITS)}")
    return EDITS[name]


def is_edit_name(name: str) -> bool:
    """Whether an edit may have this name: lower-case letters, digits and _. `none` is the unmodified model."""
    return re.fullmatch("[a-z][a-z0-9_]*", name) is not None and name != "none"


def title_of(name: str) -> str:
    """The title of an edit; the name itself if it is not registered, for runs made with an edit not registered here."""
    return EDITS[name].title if name in EDITS else name


def sweeps() -> dict[str, LayerSweep]:
    """The edits that a sweep can apply, in the order of its table, and how it applies each."""
    return {name: kind.sweep for name, kind in EDITS.items() if kind.sweep is not None}


def check_edits(names: Sequence[str]) -> None:
    """Raise RouteError for an edit that a sweep cannot apply, or for none."""
    unknown = [name for name in names if name not in sweeps()]
    if unknown or not names:
        raise RouteError(f"unknown edit {', '.join(unknown) or '(none given)'}: expected some of {', '.join(sweeps())}")


def as_edit(given: Any) -> Edit | Route:
    """What callers may give as an edit: an Edit or a Route is itself, text is parsed.

    Raises RouteError for anything else, or for text that cannot be read.
    """
    if isinstance(given, Edit | Route):
        return given
    if not isinstance(given, str):
        raise RouteError(f"expected edits as Edit, Route or text such as 'swap(3) | drop_mlp(7)', got {shown(given)}")
    return parse_edit(given)


def route_of(edit: Edit | Route, depth: int) -> Route:
    """The route of an edited model of `depth` blocks. Raises RouteError where the edit cannot be applied."""
    return edit if isinstance(edit, Route) else edit(Route.own(depth))


_CALL = re.compile(r"\s*([A-Za-z][\w-]*)\s*\(([^()]*)\)\s*")
_ARGUMENT = re.compile(r"\s*(?:(-?\d+)|(-?\d+)\s*-\s*(-?\d+)|(\w+)\s*=\s*(-?\d+))\s*")


def parse_edit(text: str) -> Edit:
    """Parse `swap(3) | drop_mlp(7)`; ranges may be written `drop(21-24)` or, in a list, `drop_head(4, 0-2, 5)`.

    Arguments may be given by name. Raises RouteError.
    """
    edit = Edit()
    if text.strip() in ("", "none"):
        return edit
    for part in text.split("|"):
        match = _CALL.fullmatch(part)
        name = match[1].replace("-", "_") if match else ""
        if match is None or name not in EDITS:
            raise RouteError(
                f"cannot read the edit {part.strip()!r}: expected one of {', '.join(EDITS)}, written like swap(3)"
            )
        numbers: list[int] = []
        named: dict[str, int] = {}
        for argument in match[2].split(",") if match[2].strip() else ():
            if EDITS[name].listed is not None and len(numbers) >= EDITS[name].single and (many := numbers_of(argument)):
                numbers += many
                continue
            found = _ARGUMENT.fullmatch(argument)
            if found is not None and found[2] is not None and EDITS[name].listed is not None:
                raise RouteError(
                    f"cannot read the edit {part.strip()!r}: expected one integer in place of {argument.strip()}"
                )
            if found is None or (named and found[4] is None) or found[4] in named:
                raise RouteError(f"cannot read the edit {part.strip()!r}: expected integers in the brackets")
            if found[4] is not None:
                named[found[4]] = int(found[5])
            else:
                numbers += [int(number) for number in found.groups()[:3] if number is not None]
        try:
            edit |= EDITS[name].edit(*numbers, **named)
        except TypeError as error:
            raise RouteError(f"cannot read the edit {part.strip()!r}: {error}") from error
    return edit

"""How an experiment is declared: once, without torch. Command, help, settings, tables and documentation derive from it."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

from depthscope.errors import DepthscopeError
from depthscope.printable import shown
from depthscope.schema.metric import Metric


def accept(_: Any) -> None:
    """The check of an option whose every value is allowed."""


LONGEST_TEXT = 4096
"""Bytes of a setting that is text: names, suffixes, paths."""


def check_text(name: str, value: str, most: int = LONGEST_TEXT) -> None:
    """Raise DepthscopeError for text that is empty, too long, cannot be written as UTF-8 or has a null character."""
    try:
        fits = 0 < len(value.encode()) <= most and "\0" not in value
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise DepthscopeError(
            f"{name} is {shown(value)}: expected text of 1 to {most:,} bytes, in UTF-8 and without null characters"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A setting of an experiment or of a study: a keyword of `ds.study` and, with hyphens, an option of the commands."""

    name: str
    type: type
    """str, int, float or bool; tuple for names that the command line separates by commas."""
    default: Any
    help: str | Callable[[], str]
    """One or more sentences, for `--help` and the documentation; a function where they depend on what is registered."""
    shown_default: str | None = None
    """What `--help` shows as the default where the value alone is not informative."""
    check: Callable[[Any], object] = accept
    """Raises DepthscopeError for a value that is invalid for every model, before the model is loaded."""

    @property
    def text(self) -> str:
        """The current help."""
        return self.help if isinstance(self.help, str) else self.help()


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table that an experiment writes: its columns with their types, and its metrics."""

    columns: Mapping[str, Any]
    metrics: Sequence[Metric] = ()
    """The quantities in its column `metric`, if it is a table of estimates."""
    in_terminal: Sequence[Metric] | None = None
    """The metrics that the terminal shows by layer; all of them by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """Everything about an experiment except its computation.

    >>> experiment = Experiment(name="count", title="Count", question="How many?", make=dict, tables={})
    >>> experiment.command
    'count'
    """

    name: str
    """Its directory of shards, its entry in `--experiments`, and the name of its command."""
    title: str
    """One line for the list of commands."""
    question: str
    """What it measures, in a sentence or two: the command's help."""
    make: str | Callable[..., Any]
    """`module:function`, imported when a study begins, or the function: takes a Subject, returns a Reading or OwnUnits."""
    tables: Mapping[str, Table]
    """By name, in display order."""
    options: Sequence[Option] = ()
    """Settings that it reads from `subject.options`. Experiments may share an option."""
    with_command: str | None = None
    """The experiment whose command also runs this one; by default it has a separate command."""
    source: str = ""
    """The figure of the paper that it reproduces, or the source of its definition."""
    in_study: bool = True
    """Whether a study runs it by default, and `with_command`'s command. Otherwise only where it is asked for by name."""
    deep: bool = False
    """Whether `--experiments deep` names it: of the experiments on how depth is used, those too dear for every study."""

    @property
    def command(self) -> str:
        """The command that runs it."""
        return self.with_command or self.name

    def maker(self) -> Callable[..., Any]:
        """The function that creates it for a Subject."""
        return loaded(self.make)


Declared = TypeVar("Declared")


class Registry(Mapping[str, Declared]):
    """Declarations by name, in order: the built-in ones, then those registered from outside the package."""

    def __init__(self, what: str, *built_in: tuple[str, Declared]) -> None:
        self.what = what
        """What is declared, as named in messages."""
        self._built_in = dict(built_in)
        self._added: dict[str, Declared] = {}

    def __getitem__(self, name: str) -> Declared:
        return self._built_in[name] if name in self._built_in else self._added[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*self._built_in, *self._added))

    @property
    def added(self) -> tuple[str, ...]:
        """The names of those registered from outside the package."""
        return tuple(self._added)

    def __len__(self) -> int:
        return len(self._built_in) + len(self._added)

    def register(self, name: str, declared: Declared) -> Declared:
        """Add a declaration, or replace one that was added earlier, as when a notebook cell runs again.

        Raises DepthscopeError for the name of a built-in declaration, or for one that is not a lower-case Python name.
        """
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise DepthscopeError(f"{name!r} cannot name {self.what}: expected lower-case letters, digits and _")
        if name in self._built_in:
            raise DepthscopeError(f"{self.what} named {name} is built in: register yours under another name")
        self._added[name] = declared
        return declared

    def unregister(self, name: str) -> None:
        """Remove a registered declaration. Raises DepthscopeError if there is none of that name."""
        if self._added.pop(name, None) is None:
            raise DepthscopeError(f"no {self.what.split()[-1]} named {name} was registered")

    def known(self, names: Sequence[str]) -> tuple[str, ...]:
        """The names unchanged. Raises DepthscopeError for an unknown name, listing the known ones."""
        if unknown := [name for name in names if name not in self]:
            raise DepthscopeError(
                f"unknown {self.what.split()[-1]} {', '.join(unknown)}: expected some of {', '.join(self)}"
            )
        return tuple(names)


def loaded(target: str | Callable[..., Any]) -> Callable[..., Any]:
    """The function that `module:function` names, imported; a function unchanged."""
    if not isinstance(target, str):
        return target
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)

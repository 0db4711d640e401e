"""What blocks pass to later blocks other than the residual stream: arguments that they write to.

A model whose late layers reuse the keys and values of early ones (Gemma 4) passes one mapping to all of its blocks: some
store in it, later ones read from it. Each route needs a mapping of its own, or one route's keys would reach another. So every
residual stream has a `State`; a block is called with a copy of it, and what the block leaves there belongs to the stream after
the block. Tensors in it have the batch first and are never changed in place, only replaced.

A block that writes to anything else, another argument or the residual stream itself, would make replay depend on what ran
before: such models are refused.
"""

import copy
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]
"""Argument name -> mapping. Empty for nearly all models."""
RESIDUAL = "the residual stream"
Key = tuple[str, Any]
"""Argument name, key of its mapping."""


@dataclass(slots=True)
class Links:
    """What a block reads from and writes to the arguments that blocks share."""

    reads: set[Key] = field(default_factory=set)
    writes: set[Key] = field(default_factory=set)


def copied(state: State) -> State:
    """One that can be written to."""
    return {name: copy.copy(mapping) for name, mapping in state.items()}


def keys(state: State) -> frozenset[Key]:
    """What is stored."""
    return frozenset((name, key) for name, mapping in state.items() for key in mapping)


def mapped(state: State, change: Callable[[Tensor], Tensor]) -> State:
    """The same with every tensor changed."""
    return together([state], lambda tensors: change(tensors[0]))


def together(states: Sequence[State], join: Callable[[list[Tensor]], Tensor] = torch.cat) -> State:
    """The states of several streams, which have the same keys, as the state of one batch."""
    joined = copied(states[0])
    for name, mapping in joined.items():
        for key in list(mapping):
            mapping[key] = _joined([state[name][key] for state in states], join)
    return joined


def merged(states: Sequence[State]) -> State:
    """The state after several visits to one stream (parallel blocks): of what more than one has stored, the last."""
    result = copied(states[0])
    for state in states[1:]:
        for name, mapping in state.items():
            result[name].update(mapping)
    return result


def _joined(values: list[Any], join: Callable[[list[Tensor]], Tensor]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return join(values)
    return type(first)(_joined(list(parts), join) for parts in zip(*values, strict=True))


class Watch:
    """Sees, in one run of the model, what every block reads from and writes to its arguments."""

    def __init__(self, depth: int) -> None:
        self.links = [Links() for _ in range(depth)]
        self.changed: dict[int, list[str]] = {}
        """For each block that writes into tensors it is given, their names."""
        self._watched: dict[int, MutableMapping[Any, Any]] = {}
        self._originals: list[Any] = []
        """Kept, so that no other object gets the identity of one."""
        self._before: list[tuple[str, Tensor, Tensor]] = []
        self._block = -1

    def enter(
        self, block: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Before a block is called: its arguments, with what is shared replaced by the same, watched."""
        self._block = block
        given = {f"argument {place}" if place else RESIDUAL: value for place, value in enumerate(args)}
        given |= {RESIDUAL if name == "hidden_states" else name: value for name, value in kwargs.items()}
        self._before = [
            (name, t, t.clone()) for name, value in given.items() for t in (value if isinstance(value, tuple) else (value,))
            if isinstance(t, Tensor)
        ]  # fmt: skip
        shared = {k: self._watch(k, v) for k, v in kwargs.items() if isinstance(v, MutableMapping)}
        return args, {**kwargs, **shared}

    def leave(self) -> None:
        """After it."""
        changed = [name for name, tensor, before in self._before if not _same(tensor, before)]
        if changed:
            self.changed[self._block] = changed
        self._before = []

    def _watch(self, name: str, mapping: MutableMapping[Any, Any]) -> MutableMapping[Any, Any]:
        if id(mapping) not in self._watched:
            kind: Any = type(mapping)
            # A subclass, so that code that checks the mapping's type still takes it. Its constructor may store what is there
            # already through __setitem__, which is no write of a block: watched from after it on.
            seen = type(kind.__name__, (kind,), {"__getitem__": self._reading(name, kind), "__setitem__": None})
            seen.__setitem__ = kind.__setitem__
            made = seen(mapping)
            seen.__setitem__ = self._writing(name, kind)
            self._watched[id(mapping)] = made
            self._originals.append(mapping)
        return self._watched[id(mapping)]

    def _reading(self, name: str, kind: Any) -> Any:
        def read(mapping: Any, key: Any) -> Any:
            self.links[self._block].reads.add((name, key))
            return kind.__getitem__(mapping, key)

        return read

    def _writing(self, name: str, kind: Any) -> Any:
        def write(mapping: Any, key: Any, value: Any) -> None:
            self.links[self._block].writes.add((name, key))
            kind.__setitem__(mapping, key, value)

        return write


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether all numbers are equal; NaN, which is not equal to itself, counts as equal to NaN."""
    return torch.equal(one, other) or bool(((one == other) | ((one != one) & (other != other))).all())

"""Execution: run a plan on a batch of tokens and yield final residual streams as they are computed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from depthscope.engine.plan import Call, Finish, Instruction, Mean, block_order, make_plan
from depthscope.errors import NumericError
from depthscope.models.finite import REMEDY, Named, all_finite, first_row, window_of_batch
from depthscope.models.model import Model
from depthscope.models.stack import Arguments, Entry
from depthscope.models.state import State, copied, keys, mapped, merged, together
from depthscope.routes import Route, Step
from depthscope.shapes import Residual, TokenIds

Shared = Callable[[Step, int], Residual | None]
"""The result of a visit to a stream of the plan's first route, if it is known from that route's run; else None."""


def execute(
    model: Model,
    plan: Sequence[Instruction],
    ids: TokenIds,
    entry: Entry | None = None,
    known: Sequence[Residual] = (),
    states: Sequence[State] = (),
    shared: Shared = lambda step, stream: None,
) -> Iterator[tuple[tuple[tuple[int, ...], ...], Residual]]:
    """Final residual streams of a plan's routes on `ids`, in the plan's order.

    Each item is (routes, residual): `residual` holds `len(routes)` batches in sequence, and `routes[i]` are the
    indices of the routes that end with the i-th batch. Streams are freed as soon as nothing branches off them any more.
    `entry` is the model's entry for `ids` and `known` the residual streams of the plan's first route, from the embedding
    on, if they are already computed, with their `states`; `shared` returns what else is known from that run.
    """
    entry = entry or model.stack.enter(ids)
    run = _Run(
        model, ids, entry, dict(enumerate(known or [entry.residual])), list(states or [copied(entry.state)]), shared
    )
    done = set(run.streams)
    if model.stack.streamed:
        model.stack.expect(block_order(plan, known=len(done)))
    for instruction in plan:
        if isinstance(instruction, Call):
            if not done.issuperset(instruction.targets):
                run.call(instruction)
        elif isinstance(instruction, Mean):
            run.mean(instruction)
        elif isinstance(instruction, Finish):
            yield instruction.routes, _together([run.streams[source] for source in instruction.sources])
        else:
            del run.streams[instruction.source], run.handed[instruction.source]


def run_route(model: Model, route: Route, ids: TokenIds, named: Named = window_of_batch) -> Residual:
    """The final residual stream of one route. Raises NumericError, with route, visit and window, where it is not finite."""
    ((_, residual),) = execute(model, make_plan([route]), ids)
    if not all_finite([residual]):
        raise NumericError(
            f"NaN or infinity on the route {route.name!r} of {model.name}, {named(first_row(residual) or 0)}, "
            f"{first_broken(model, route, ids)}. {REMEDY}"
        )
    return residual


def first_broken(model: Model, route: Route, ids: TokenIds) -> str:
    """Where on a route the residual stream stops to be finite, for messages; the route is run again for it."""
    with torch.inference_mode():
        entry = model.stack.enter(ids)
        if not all_finite([entry.residual]):
            return "from the embedding on"
        run = _Run(model, ids, entry, {0: entry.residual}, [copied(entry.state)], lambda step, stream: None)
        for instruction in make_plan([route]):
            if isinstance(instruction, Call):
                run.call(instruction)
                if not all_finite([run.streams[target] for target in instruction.targets]):
                    return f"from block {instruction.step.name} on"
            elif isinstance(instruction, Mean):
                run.mean(instruction)
    return "in the final norm or the unembedding"


class _Run:
    """The live streams, each with the state that its blocks have passed on."""

    def __init__(
        self,
        model: Model,
        ids: TokenIds,
        entry: Entry,
        streams: dict[int, Tensor],
        states: list[State],
        shared: Shared,
    ) -> None:
        self.model, self.ids, self.streams, self.own_states, self.shared = model, ids, streams, states, shared
        self.handed = dict(enumerate(states))
        self._arguments = {1: entry.arguments}
        """The blocks' arguments by number of copies of `ids`: if they depend on the tokens, making them runs the model."""

    def call(self, call: Call) -> None:
        step, batch = call.step, self.ids.shape[0]
        if len(call.sources) == 1 and (follows := self.shared(step, call.sources[0])) is not None:
            self.streams[call.targets[0]] = follows
            self.handed[call.targets[0]] = self.own_states[step.block + 1]  # as the baseline run's visit left it
            return
        for sources, targets in _alike(call, self.handed):
            given = _together([self.streams[source] for source in sources])
            state = together([self.handed[source] for source in sources])
            result = self.model.visit(step, given, self._arguments_for(len(sources)), state)
            self.streams.update(zip(targets, result.split(batch), strict=True))
            for place, target in enumerate(targets):
                rows = slice(place * batch, (place + 1) * batch)
                self.handed[target] = mapped(state, lambda kept, rows=rows: kept[rows])

    def mean(self, mean: Mean) -> None:
        self.streams[mean.target] = torch.stack([self.streams[source] for source in mean.sources]).mean(0)
        self.handed[mean.target] = merged([self.handed[source] for source in mean.sources])

    def _arguments_for(self, copies: int) -> tuple[Arguments, ...]:
        if copies not in self._arguments:
            self._arguments[copies] = self.model.stack.arguments(self.ids, copies)
        return self._arguments[copies]


def _alike(call: Call, handed: Mapping[int, State]) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """A call's sources and targets, grouped by the keys passed to their streams: nearly always a single group."""
    groups: dict[frozenset[Any], list[tuple[int, int]]] = {}
    for source, target in zip(call.sources, call.targets, strict=True):
        groups.setdefault(keys(handed[source]), []).append((source, target))
    for group in groups.values():
        sources, targets = zip(*group, strict=True)
        yield sources, targets


def _together(streams: list[Tensor]) -> Tensor:
    return streams[0] if len(streams) == 1 else torch.cat(streams)

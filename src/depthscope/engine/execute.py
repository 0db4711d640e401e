"""Execution: run a plan on a batch of tokens and hand out final residual streams as they come."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from depthscope.engine.plan import Call, Finish, Instruction, Mean, block_order
from depthscope.models.model import Model
from depthscope.models.stack import Entry
from depthscope.routes import Step
from depthscope.shapes import Residual, TokenIds

Shared = Callable[[Step, int], Residual | None]
"""What a visit to a stream of the plan's first route gives, where it follows from that route's own run; else None."""


def execute(
    model: Model,
    plan: Sequence[Instruction],
    ids: TokenIds,
    entry: Entry | None = None,
    known: Sequence[Residual] = (),
    shared: Shared = lambda step, stream: None,
) -> Iterator[tuple[tuple[tuple[int, ...], ...], Residual]]:
    """Final residual streams of a plan's routes on `ids`, in the plan's order.

    Each item is (routes, residual): `residual` holds `len(routes)` batches behind each other, and `routes[i]` are the
    indices of the routes that end with the i-th. Streams are freed as soon as nothing branches off them any more.
    `entry` is the model's entry for `ids` and `known` the residual streams of the plan's first route, from the embedding
    on, where they have been computed before; `shared` gives what else is known from that.
    """
    batch = ids.shape[0]
    entry = entry or model.stack.enter(ids)
    streams: dict[int, Tensor] = dict(enumerate(known or [entry.residual]))
    done = set(streams)
    repeated = {1: entry.arguments}
    """The blocks' arguments for so many copies of `ids`: where they depend on the tokens, making them runs the model."""
    if model.stack.streamed:
        model.stack.expect(block_order(plan, known=len(streams)))
    for instruction in plan:
        if isinstance(instruction, Call):
            if done.issuperset(instruction.targets):
                continue
            if (
                len(instruction.sources) == 1
                and (follows := shared(instruction.step, instruction.sources[0])) is not None
            ):
                streams[instruction.targets[0]] = follows
                continue
            copies = len(instruction.sources)
            if copies not in repeated:
                repeated[copies] = model.stack.arguments(ids, copies)
            given = _together([streams[source] for source in instruction.sources])
            result = model.visit(instruction.step, given, repeated[copies])
            streams.update(zip(instruction.targets, result.split(batch), strict=True))
        elif isinstance(instruction, Mean):
            streams[instruction.target] = torch.stack([streams[source] for source in instruction.sources]).mean(0)
        elif isinstance(instruction, Finish):
            yield instruction.routes, _together([streams[source] for source in instruction.sources])
        else:
            del streams[instruction.source]


def _together(streams: list[Tensor]) -> Tensor:
    return streams[0] if len(streams) == 1 else torch.cat(streams)

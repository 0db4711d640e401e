"""Requests of tasks in batches that need no padding, and batches in work units."""

from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Protocol, TypeVar

from depthscope.errors import MemoryShortError
from depthscope.models.memory import short_of_memory

BATCHES_PER_UNIT = 4
"""Full batches of a work unit: what is lost if a run is killed."""

R = TypeVar("R")
T = TypeVar("T")


class Request(Protocol):
    """What a task asks of a model."""

    @property
    def alike(self) -> tuple[object, ...]:
        """Requests for which this is equal can share a batch."""
        ...

    @property
    def cost(self) -> int:
        """Work under one route, in tokens of a batch that are read together."""
        ...


def batches(requests: Sequence[Request], tokens: int) -> list[list[int]]:
    """Places of requests that share a batch: neighbours that are alike, of a cost of at most `tokens`, or one request."""
    found: list[list[int]] = []
    for _, places in groupby(range(len(requests)), key=lambda place: requests[place].alike):
        same = list(places)
        together = max(1, tokens // requests[same[0]].cost)
        found += [same[start : start + together] for start in range(0, len(same), together)]
    return found


def units(requests: Sequence[Request], tokens: int) -> list[list[list[int]]]:
    """The batches of each work unit. By cost, not by number: many batches are a few short requests."""
    found: list[list[list[int]]] = []
    before = 0
    for batch in batches(requests, tokens):
        if before // (BATCHES_PER_UNIT * tokens) >= len(found):
            found.append([])
        found[-1].append(batch)
        before += sum(requests[place].cost for place in batch)
    return found


def in_halves(answer: Callable[[Sequence[R]], T], requests: Sequence[R], named: str) -> list[T]:
    """What `answer` gives for all requests or, where that does not fit into memory, for each half of them, and so on.

    Raises MemoryShortError, with `named`, where one does not fit.
    """
    try:
        return [answer(requests)]
    except (RuntimeError, MemoryError) as error:
        if not short_of_memory(error):
            raise
        if len(requests) == 1:
            raise MemoryShortError(
                f"not enough memory for {named}: expected fewer edits, fewer --shots, or --stream yes"
            ) from error
    middle = len(requests) // 2
    return in_halves(answer, requests[:middle], named) + in_halves(answer, requests[middle:], named)

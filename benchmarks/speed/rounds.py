"""Taking turns: A B C A B C …, so that a slow minute of the machine falls on everybody."""

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Protocol, TypeVar

import torch

from depthscope.allocator import keep_freed

Result = TypeVar("Result")
Seconds = dict[str, float]
"""Seconds of one repetition per sweep."""


class Contender(Protocol):
    """Something that sweeps."""

    name: str

    def warm(self) -> None:
        """Do once, untimed, what the first repetition would pay for."""
        ...

    def repetition(self, number: int) -> Seconds:
        """Sweep once; `number` seeds what is drawn."""
        ...


Taken = dict[str, dict[str, list[float]]]
"""Contender -> sweep -> seconds, a number per round."""


def take_turns(contenders: Sequence[Contender], rounds: int, tell: Callable[[str], None] = lambda line: None) -> Taken:
    """Warm every contender, then let each repeat once per round, always in the same order."""
    for contender in contenders:
        tell(f"  warming {contender.name}")
        contender.warm()
    taken: Taken = {contender.name: {} for contender in contenders}
    for number in range(rounds):
        for contender in contenders:
            for sweep, spent in contender.repetition(number).items():
                taken[contender.name].setdefault(sweep, []).append(spent)
                tell(f"  round {number + 1}: {contender.name}, {sweep}: {spent:.2f} s")
    return taken


def tell(line: str) -> None:
    """Print at once."""
    print(line, flush=True)


def in_a_new_process(measure: Callable[..., Result], *arguments: object) -> Result:
    """measure(*arguments, tell) in a process that has loaded no other model: what one leaves in memory slows the next.

    Freed memory is kept, as commands keep it. Raises what `measure` raises.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=keep_freed) as process:
        return process.submit(measure, *arguments, tell).result()


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """above / below, round by round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def median(values: Sequence[float]) -> float:
    """The median of the rounds."""
    return statistics.median(values)


def seconds(act: Callable[[], object], device: str = "cpu") -> float:
    """Wall-clock time of one call, the device's work finished."""
    _finish(device)
    start = time.perf_counter()
    act()
    _finish(device)
    return time.perf_counter() - start


def steady_seconds(act: Callable[[], object], at_least: float, device: str = "cpu") -> float:
    """Mean time of a call repeated for at least so many seconds: what the machine sustains, not its best moment."""
    calls, spent = 0, 0.0
    while spent < at_least:
        spent += seconds(act, device)
        calls += 1
    return spent / calls


def _finish(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()

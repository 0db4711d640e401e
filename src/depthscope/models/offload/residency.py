"""Which blocks of a streamed model are in memory: loaded when they are run, the next one read ahead, others evicted.

A streamed model keeps everything but its blocks in memory. A hook loads a block's weights before the block runs, so whatever
calls a block (a sweep, a pattern, a check, the model's own forward) works as on any other model. While one block computes, a
separate thread reads the next. Which one is next follows from the plan of a sweep, given in advance; without a plan, from the
order of the blocks. The block that will be needed last is evicted first.

On an accelerator a block is copied from host memory (pinned, with CUDA) on a stream of its own, during the computation.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import groupby
from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from depthscope.models.hooks import hook_for_good, replaced
from depthscope.models.offload.deferred import Deferred

ALIGNMENT = 64
"""Bytes; what torch aligns its own memory to. Alignment decides which kernel computes a product, and so its rounding."""
CAPACITY = 3
"""Blocks in memory: the two of a swap, and the one being read."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A parameter of a block: its module and name, its recipe, and its place among the block's bytes."""

    module: nn.Module
    name: str
    deferred: Deferred
    strides: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        """Its size in memory."""
        return self.deferred.numel() * self.deferred.dtype.itemsize

    def within(self, block: Tensor) -> Tensor:
        """The parameter as a view of the block's bytes."""
        own = block[self.offset : self.offset + self.bytes].view(self.deferred.dtype)
        return own.as_strided(self.deferred.shape, self.strides)


class BlockReader:
    """The weights of each block as one contiguous buffer, read from the checkpoint in the dtype they are run in.

    `parameters` holds, for each block, (module, name, deferred) of the parameters to read. With `keep`, a block's bytes stay
    in host memory (pinned, if there is CUDA) once they have been read.
    """

    def __init__(self, parameters: Sequence[Sequence[tuple[nn.Module, str, Deferred]]], keep: bool = False) -> None:
        self.weights = [_laid_out(block) for block in parameters]
        self.reads = [0] * len(self.weights)
        """How often each block has been read."""
        self._kept: dict[int, Tensor] | None = {} if keep else None

    def bytes(self, block: int) -> int:
        """Size of a block in memory."""
        last = self.weights[block][-1:]
        return last[0].offset + last[0].bytes if last else 0

    def read(self, block: int) -> Tensor:
        """A block's weights, shaped [bytes]. Raises ModelError where the checkpoint was changed."""
        self.reads[block] += 1
        if self._kept is not None and block in self._kept:
            return self._kept[block]
        made = torch.empty(
            self.bytes(block), dtype=torch.uint8, pin_memory=self._kept is not None and torch.cuda.is_available()
        )
        shared: dict[Any, Any] = {}
        for weight in self.weights[block]:
            weight.deferred.write_into(weight.within(made), shared)
        if self._kept is not None:
            self._kept[block] = made
        return made


def _laid_out(parameters: Sequence[tuple[nn.Module, str, Deferred]]) -> list[Weight]:
    weights: list[Weight] = []
    end = 0
    for module, name, deferred in parameters:
        weights.append(Weight(module, name, deferred, deferred.dense_strides(), end))
        end += -(-weights[-1].bytes // ALIGNMENT) * ALIGNMENT
    return weights


@dataclass(slots=True)
class _Loaded:
    """A block's bytes on the device, and the event after which they are there, if a stream of its own copies them."""

    bytes: Tensor
    ready: torch.Event | None


class Residency:
    """Keeps at most `capacity` of `blocks` in memory, 2 at least. One thread may use a model at a time.

    `room`: bytes that may be taken by the residual streams of routes that wait for the same block.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        reader: BlockReader,
        device: torch.device,
        capacity: int = CAPACITY,
        room: int = 0,
    ) -> None:
        assert capacity >= 2, "the block that runs, and the one being read"
        self.reader, self.device, self.capacity, self.room = reader, device, capacity, room
        self._depth = len(blocks)
        self._absent = [[weight.module._parameters[weight.name] for weight in block] for block in reader.weights]
        self._present: list[int] = []
        self._reading: dict[int, Future[_Loaded]] = {}
        self._pinned: list[int] = []
        self._order: list[int] = []
        self._place = 0
        self._current = -1
        self._paused = False
        self._thread = ThreadPoolExecutor(1, "depthscope-blocks")
        self._copies = _stream(device)
        for index, block in enumerate(blocks):
            hook_for_good(block, self._before(index))

    @property
    def present(self) -> tuple[int, ...]:
        """The blocks whose weights can be used now."""
        return tuple(self._present)

    def expect(self, order: Sequence[int]) -> None:
        """The blocks that will be run next, in order; those in succession may be named once or often."""
        self._order = [block for block, _ in groupby(order)]
        self._place = 0

    def paused(self) -> AbstractContextManager[None]:
        """While open, running a block reads nothing: for when blocks are bypassed."""
        return replaced([self], "_paused", [True])

    @contextmanager
    def resident(self, block: int) -> Iterator[None]:
        """While open, the block's weights are present, whatever else is run."""
        self.require(block)
        self._pinned.append(block)
        try:
            yield
        finally:
            self._pinned.remove(block)

    def require(self, block: int) -> None:
        """Make a block's weights present, and begin to read what comes after it. Raises what reading raises."""
        if block == self._current:  # called again in the same visit: the plan does not move on
            return
        self._advance(block)
        if block not in self._present:
            self._make_room(block)
            loaded = (self._reading.pop(block, None) or self._read(block)).result()
            self._install(block, loaded)
        self._read_ahead()  # also when nothing was missing: the block that is to be read next may have changed

    def release(self) -> None:
        """Evict every block that is not pinned."""
        for block in [block for block in (*self._present, *self._reading) if block not in self._pinned]:
            self._let_go(block)
        self._current = -1

    def _before(self, block: int) -> Any:
        def present(_module: nn.Module, _args: Any, _kwargs: Any) -> None:
            if not self._paused:
                self.require(block)

        return present

    def _advance(self, block: int) -> None:
        self._current = block
        if block in self._order[self._place :]:
            self._place = self._order.index(block, self._place) + 1
        else:  # not what was announced, so neither is the rest
            self._order, self._place = [], 0

    def _next_use(self, block: int) -> int | float:
        """How many visits from now a block is needed. Without a plan blocks are expected in their own order, repeatedly."""
        coming = self._order[self._place :]
        if coming:
            return coming.index(block) if block in coming else inf
        return (block - self._current - 1) % self._depth

    def _coming(self) -> Iterator[int]:
        """The blocks needed next, each once."""
        coming = self._order[self._place :] or [(self._current + 1 + i) % self._depth for i in range(self._depth)]
        yield from dict.fromkeys(coming)

    def _make_room(self, wanted: int) -> None:
        while len({*self._present, *self._reading, wanted}) > self.capacity:
            if (block := self._least_needed({wanted})) is None:
                return
            self._let_go(block)

    def _least_needed(self, kept: set[int]) -> int | None:
        held = [b for b in (*self._present, *self._reading) if b not in kept and b not in self._pinned]
        return max(held, key=self._next_use, default=None)

    def _read_ahead(self) -> None:
        """Read the next block that is missing, if that evicts none that is needed sooner."""
        if (
            self._reading
        ):  # one at a time, and used before the next is read: so the order of reads does not depend on speed
            return
        following = next((b for b in self._coming() if b not in self._present), None)
        if following is None:
            return
        if len(self._present) >= self.capacity:
            block = self._least_needed({self._current})
            if block is None or self._next_use(block) <= self._next_use(following):
                return
            self._let_go(block)
        self._reading[following] = self._read(following)

    def _read(self, block: int) -> "Future[_Loaded]":
        return self._thread.submit(self._load, block)

    def _load(self, block: int) -> _Loaded:
        """In the reading thread: from the checkpoint, or from the host's memory, to the device."""
        host = self.reader.read(block)
        if self._copies is None:
            return _Loaded(host.to(self.device), None)
        with self._copies:
            there = host.to(self.device, non_blocking=True)
            ready = self._copies.record_event()
        if not host.is_pinned():
            ready.synchronize()  # the host's copy may go only when it has been read
        return _Loaded(there, ready)

    def _install(self, block: int, loaded: _Loaded) -> None:
        if loaded.ready is not None:
            computing = torch.accelerator.current_stream(self.device)
            computing.wait_event(loaded.ready)
            loaded.bytes.record_stream(computing)  # the memory is not given away before the computation has passed
        for weight in self.reader.weights[block]:
            weight.module._parameters[weight.name] = nn.Parameter(weight.within(loaded.bytes), requires_grad=False)
        self._present.append(block)

    def _let_go(self, block: int) -> None:
        if (future := self._reading.pop(block, None)) is not None:
            future.cancel()
            wait([future])
            return
        self._present.remove(block)
        for weight, absent in zip(self.reader.weights[block], self._absent[block], strict=True):
            weight.module._parameters[weight.name] = absent


def _stream(device: torch.device) -> torch.Stream | None:
    """A stream for copies to a device; None where there is none: on the CPU, and with backends that have no further streams."""
    if device.type == "cpu":
        return None
    try:
        return torch.Stream(device)
    except RuntimeError:
        return None

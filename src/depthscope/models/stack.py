"""Replay: a model's decoder blocks, called one by one with exactly the arguments their own model passes them.

Nothing of a block is re-implemented. The model's own forward is run with every block bypassed, which costs an embedding
lookup and the building of masks, and shows what the model passes to each block: the embedding x_0, attention masks,
rotary embeddings, whatever its family uses. A block is then called again with those arguments on any residual stream.
A block keeps its own arguments wherever a route visits it (a sliding-window block stays one). What blocks pass to each other
through arguments they write to belongs to each route's own stream (`state`).

Of a streamed model a block's weights are present while it runs (`residency`); code that reads them at other times opens
`resident`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from depthscope.errors import RouteError, UnsupportedError
from depthscope.models.hooks import hooked, replaced
from depthscope.models.offload.hooked import kept_elsewhere, present
from depthscope.models.offload.residency import Residency
from depthscope.models.packed import parts
from depthscope.models.state import Links, State, Watch, copied, keys
from depthscope.routes import Replaced, Route, Step
from depthscope.shapes import Residual, TokenIds


@dataclass(frozen=True, slots=True)
class Arguments:
    """What a model passes to one block in addition to the residual stream."""

    positional: tuple[Any, ...]
    keyword: dict[str, Any]
    residual_keyword: bool
    """Whether the residual stream itself goes in as `hidden_states=`."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Where replay starts for a batch of tokens: the residual stream before block 0 and every block's arguments."""

    residual: Tensor
    arguments: tuple[Arguments, ...]
    state: State
    """What blocks share other than the residual stream, before the first of them."""


class _Entered(Exception):  # noqa: N818 - control flow, not an error: the last block has been reached
    pass


class BlockStack:
    """The blocks of a causal language model, found by structure, each callable on any residual stream.

    `residency` is in charge of the blocks of a streamed model. Raises UnsupportedError when the model has no list of
    `num_hidden_layers` blocks called once each, in order.
    """

    def __init__(self, model: PreTrainedModel, residency: Residency | None = None) -> None:
        self.model = model
        self.residency = residency
        self.path, self.blocks = find_blocks(model)
        self.links: list[Links] = []
        """What each block reads from and writes to arguments that blocks share."""
        self._tuple_outputs = self._check_calls()
        # A mapping that is only read is an argument like any other.
        self._shared = sorted({name for links in self.links for name, _ in links.writes})
        self._cache: dict[tuple[int, int], tuple[Arguments, ...]] = {}
        self._tokens_matter = self._arguments_depend_on_tokens()

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def enter(self, ids: TokenIds) -> Entry:
        """The residual stream before block 0 for `ids`, and the arguments of every block for that batch."""
        residual: list[Tensor] = []
        arguments: list[Arguments] = []

        def bypass(index: int):
            def forward(*args: Any, **kwargs: Any) -> Any:
                by_keyword = not args
                hidden = kwargs.pop("hidden_states") if by_keyword else args[0]
                residual.append(hidden)
                arguments.append(Arguments(args[1:], kwargs, by_keyword))
                # All is known: what comes after the blocks is not run. On the way out no hook of ours is left behind.
                if index == self.depth - 1:
                    raise _Entered
                return self.output(index, hidden)

            return forward

        with self._bypassed([bypass(i) for i in range(self.depth)]), suppress(_Entered):
            self.model.base_model(input_ids=ids, use_cache=False)
        return Entry(residual[0], tuple(arguments), self.first_state(arguments))

    def output(self, block: int, residual: Tensor) -> Any:
        """What a block returns whose residual stream is `residual`: that, or the first of as many as it returns."""
        length = self._tuple_outputs[block]
        return (residual, *(None,) * (length - 1)) if length else residual

    def first_state(self, arguments: Sequence[Arguments]) -> State:
        """What blocks share other than the residual stream, before the first of them."""
        # Copied: the blocks' arguments keep the mapping itself, and calls without a state of their own write to it.
        return copied({name: arguments[0].keyword[name] for name in self._shared})

    @contextmanager
    def passed_on(self) -> Iterator[None]:
        """While open, every block passes the residual stream on unchanged, so that what lies around the blocks runs alone."""

        def passing(index: int):
            def forward(*args: Any, **kwargs: Any) -> Any:
                return self.output(index, args[0] if args else kwargs["hidden_states"])

            return forward

        with self._bypassed([passing(i) for i in range(self.depth)]):
            yield

    def arguments(self, ids: TokenIds, copies: int) -> tuple[Arguments, ...]:
        """Every block's arguments for one batch that holds `ids` `copies` times."""
        shape = (ids.shape[0] * copies, ids.shape[1])
        if self._tokens_matter:
            return self.enter(ids.repeat(copies, 1)).arguments
        if shape not in self._cache:
            if len(self._cache) >= 64:  # masks of many shapes would add up
                self._cache.clear()
            self._cache[shape] = self.enter(ids.repeat(copies, 1)).arguments
        return self._cache[shape]

    def call(
        self, block: int, residual: Residual, arguments: tuple[Arguments, ...], state: State | None = None
    ) -> Residual:
        """The residual stream after `block`, given the one before it.

        `state`: what the stream's earlier blocks stored for later ones; the block writes to it. Without one, blocks share the
        state of `arguments`, which is right for one stream that goes through them in order.
        """
        own = arguments[block]
        keyword = {**own.keyword, **state} if state else own.keyword
        if own.residual_keyword:
            output = self.blocks[block](*own.positional, hidden_states=residual, **keyword)
        else:
            output = self.blocks[block](residual, *own.positional, **keyword)
        # Of a model in parts (`offload.placed`) a block may be on another device; the stream returns to its own.
        return residual_of(output).to(residual.device)

    def call_alone(self, block: int, entry: Entry) -> Residual:
        """A block's output for the embedding of `entry`. Earlier blocks run only if they store what later ones read."""
        state = copied(entry.state)
        for source in (source for source in range(block) if self.links[source].writes):
            self.call(source, entry.residual, entry.arguments, state)
        return self.call(block, entry.residual, entry.arguments, state)

    def check_state(self, route: Route) -> None:
        """Raise RouteError where a block would read what no block before it on the route has stored."""
        if not self._shared:
            return
        stored = keys(self.enter(self._probe_ids(0)).state)
        for visit in route.visits:
            for step in (visit,) if isinstance(visit, Step) else visit.members:
                if isinstance(step, Replaced):
                    continue
                links = self.links[step.block]
                reads = {link for link in links.reads if link[0] in self._shared}
                if missing := reads - stored - links.writes:
                    argument, key = min(missing, key=str)
                    sources = [str(block) for block, other in enumerate(self.links) if (argument, key) in other.writes]
                    raise RouteError(
                        f"route {route.name!r}: block {step.block} reads {argument}[{key!r}], which block "
                        f"{' or '.join(sources)} stores; expected a route that visits it before block {step.block}"
                    )
                stored = stored | links.writes

    @property
    def streamed(self) -> bool:
        """Whether blocks are read when they are run."""
        return self.residency is not None

    @contextmanager
    def resident(self, block: int) -> Iterator[None]:
        """While open, the weights of a block can be read. Keep copies of them, not views."""
        with present(self.blocks[block]) if self.residency is None else self.residency.resident(block):
            yield

    @property
    def moving(self) -> list[nn.Module]:
        """The blocks whose weights are in memory while they run, and not otherwise."""
        return list(self.blocks) if self.streamed else [block for block in self.blocks if kept_elsewhere(block)]

    def expect(self, order: Sequence[int]) -> None:
        """Say which blocks will be called next, in order, so that those of a streamed model are read in time."""
        if self.residency is not None:
            self.residency.expect(order)

    def release(self) -> None:
        """Free the memory of the blocks of a streamed model that are not in use."""
        if self.residency is not None:
            self.residency.release()

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Names and values of the model's state_dict, in its order; packed tensors in their parts. The values of a
        block that is not kept in memory are valid until the next is asked for."""
        if not self.moving:
            for name, tensor in self.model.state_dict().items():
                yield from parts(name, tensor)
            return
        of_block = {f"{self.path}.{index}": index for index in range(self.depth)}
        for holder, names in groupby(self.model.state_dict(), lambda name: _holder(name, of_block)):
            with nullcontext() if holder is None else self.resident(of_block[holder]):
                # Taken again inside: before, the block's parameters were empty ones on the meta device.
                state = self.model.state_dict()
                yield from ((name, state[name]) for name in names)

    @contextmanager
    def _bypassed(self, forwards: Sequence[Any]) -> Iterator[None]:
        # A replaced forward does not keep the block's hooks from running, and that of a streamed model would read the weights.
        paused = nullcontext() if self.residency is None else self.residency.paused()
        with paused, replaced(self.blocks, "forward", forwards):
            yield

    def _check_calls(self) -> list[int]:
        """Run the model once as it is: each block's output length if it is a tuple, else 0. Sees what blocks share."""
        order: list[int] = []
        lengths = [0] * self.depth
        watch = Watch(self.depth)

        def before(index: int):
            return lambda _module, args, kwargs: watch.enter(index, args, kwargs)

        def record(index: int):
            def hook(_module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
                watch.leave()
                order.append(index)
                lengths[index] = len(output) if isinstance(output, tuple | list) else 0

            return hook

        with hooked(
            before=[(block, before(i)) for i, block in enumerate(self.blocks)],
            after=[(block, record(i)) for i, block in enumerate(self.blocks)],
        ):
            self.model.base_model(input_ids=self._probe_ids(0), use_cache=False)
        if order != list(range(self.depth)):
            raise UnsupportedError(
                f"{type(self.model).__name__} calls its blocks in the order {order}: "
                f"expected {self.path}.0 … {self.path}.{self.depth - 1}, once each"
            )
        if watch.changed:
            block, names = min(watch.changed.items())
            raise UnsupportedError(
                f"{type(self.model).__name__}: block {block} writes into what it is given ({', '.join(names)}), so replaying "
                "it would depend on what ran before"
            )
        self.links = watch.links
        return lengths

    def _arguments_depend_on_tokens(self) -> bool:
        """Whether arguments differ between token ids of one shape (then they are captured for every batch again)."""
        one, other = (self.enter(self._probe_ids(first)).arguments for first in (0, 1))
        return not all(
            _same(a.positional, b.positional) and _same(a.keyword, b.keyword) for a, b in zip(one, other, strict=True)
        )

    def _probe_ids(self, first: int) -> Tensor:
        return torch.arange(first, first + 3, device=self.model.device)[None]


def residual_of(output: Any) -> Tensor:
    """The residual stream in what a block returns: the output itself, or the first of several."""
    return output[0] if isinstance(output, tuple | list) else output


def find_blocks(model: PreTrainedModel) -> tuple[str, list[nn.Module]]:
    """The list of decoder blocks, with its path: of the text model's module lists that are as long as it is deep, the one
    with most parameters. Raises UnsupportedError where there is none.
    """
    depth = model.config.get_text_config(decoder=True).num_hidden_layers
    of_text = {id(module) for module in model.get_decoder().modules()}
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth and id(module) in of_text
    }
    if not lists:
        raise UnsupportedError(
            f"{type(model).__name__} has no list of {depth} blocks (num_hidden_layers), so there are no layers to take apart"
        )
    path = max(lists, key=lambda name: sum(p.numel() for p in lists[name].parameters()))
    return path, list(lists[path])


def _holder(name: str, holders: Mapping[str, int]) -> str | None:
    """The path among `holders` that a weight lies under."""
    parts = name.split(".")
    return next((path for end in range(len(parts)) if (path := ".".join(parts[:end])) in holders), None)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool(torch.equal(a, b))
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    # Anything else counts as different unless it is one object: then arguments are captured again, which is slow, not wrong.
    return a is b or (type(a) is type(b) and isinstance(a, int | float | str | bool) and a == b)

"""A model's own forward that visits the blocks in the order of a route, with a cache entry for every visit.

transformers' `generate` calls the model's forward, which prepares positions, masks and rotary embeddings and then calls its
blocks one after the other. While a `RoutedForward` is active, the list of blocks holds recorders in place of the blocks: each
notes what the model passes to its block and passes the residual stream on. The last one knows every block's arguments, runs
the route with them as replay does (`stack`), and gives the residual stream at its end to the model's own head. No weight is
copied, and a block keeps its own mask and rotary embedding wherever a route visits it.

**Caches.** The cache that `generate` holds is never given to a block. Each visit has a cache of its own, an empty copy of that
one taken at the first call, of which the block fills its own entry: keys and values, or the states of a convolution or a
recurrence. So a block visited twice has two entries, a dropped one has none, and an entry stays with its visit in whatever
order blocks are visited. `generate`'s cache only counts tokens: each of its entries gets keys of width 1, so that the lengths
from which the model makes positions and masks are right for dropped blocks too.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin, LinearAttentionCacheLayerMixin

from depthscope.errors import UnsupportedError
from depthscope.models.hooks import hooked, replaced
from depthscope.models.model import Model
from depthscope.models.stack import Arguments
from depthscope.models.state import State, copied, merged
from depthscope.routes import RESAMPLE, Parallel, Route, Step


class RoutedForward:
    """The forward of a model along a route. It keeps the caches of one generation at a time."""

    def __init__(self, model: Model, route: Route) -> None:
        """Raises RouteError, or UnsupportedError, where the model cannot run the route."""
        model.check_route(route)
        if any(one.mode == RESAMPLE for step in route.steps() for one in step.inside):
            raise UnsupportedError(
                f"text cannot be generated on the route {route.name!r}: what a resampled head or neuron gives depends on the "
                "position in a window, and a token generated has none. Expected zero or mean ablation"
            )
        self.model, self.route = model, route
        self._arguments: list[Arguments] = []
        self._residual: Tensor | None = None
        self._main: Cache | None = None
        self._visits: list[Cache] = []

    @contextmanager
    def active(self) -> Iterator[None]:
        """While open, the model's forward runs the route. May be closed and opened again between two calls of it."""
        stack = self.model.stack
        blocks = self.model.hf.get_submodule(stack.path)
        decoder = self.model.hf.get_submodule(stack.path.rpartition(".")[0])
        recorders = {name: _Recorder(block, self, i) for i, (name, block) in enumerate(blocks.named_children())}
        with replaced([blocks], "_modules", [recorders]), hooked(before=[(decoder, _every_position)]):
            yield

    def record(self, block: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """In place of a block's call: note its arguments; at the last block run the route."""
        by_keyword = not args
        hidden = kwargs.pop("hidden_states") if by_keyword else args[0]
        if block == 0:
            self._arguments, self._residual = [], hidden
        assert self._residual is not None
        if hidden.shape != self._residual.shape:
            raise UnsupportedError(
                f"{self.model.name} ({self.model.family}) changes the residual stream between its blocks from shape "
                f"{list(self._residual.shape)} to {list(hidden.shape)}: text cannot be generated along another route than "
                "its own"
            )
        self._arguments.append(Arguments(args[1:], kwargs, by_keyword))
        if block == self.model.depth - 1:
            hidden = self._run(self._residual, tuple(self._arguments))
            self._arguments, self._residual = [], None
        return self.model.stack.output(block, hidden)

    def _run(self, residual: Tensor, arguments: tuple[Arguments, ...]) -> Tensor:
        steps = list(self.route.steps())
        self._count(_cache_of(arguments), steps, residual)
        state = self.model.stack.first_state(arguments)
        self.model.stack.expect([step.block for step in steps])
        place = 0
        for visit in self.route.visits:
            if isinstance(visit, Parallel):
                outputs, states = [], []
                for step in visit.members:
                    states.append(copied(state))
                    outputs.append(self._visit(place, step, residual, arguments, states[-1]))
                    place += 1
                residual, state = torch.stack(outputs).mean(0), merged(states)
            else:
                residual = self._visit(place, visit, residual, arguments, state)
                place += 1
        return residual

    def _visit(
        self, place: int, step: Step, residual: Tensor, arguments: tuple[Arguments, ...], state: State
    ) -> Tensor:
        if self._main is not None:
            own = _with_cache(arguments[step.block], self._main, self._visits[place])
            arguments = (*arguments[: step.block], own, *arguments[step.block + 1 :])
        return self.model.visit(step, residual, arguments, state)

    def _count(self, main: Cache | None, steps: list[Step], residual: Tensor) -> None:
        """Make the visits' caches at the first call of a generation, and add the new tokens to what `main` counts."""
        if main is not self._main:
            self._main = main
            # Copied while it is empty: its class and the kinds of its entries are the model's own.
            self._visits = [] if main is None else [copy.deepcopy(main) for _ in steps]
            for visit, step in zip(self._visits, steps, strict=main is not None):
                for block in range(min(len(visit.layers), self.model.depth)):
                    if main is not None and block != step.block:
                        visit.layers[block] = main.layers[block]  # some blocks ask for the length of the first entry
        if main is not None:
            _add_tokens(main, self.model.depth, residual)


class _Recorder(nn.Module):
    """In a block's place in the model's list of blocks. Attributes, such as the block's kind, are the block's own."""

    def __init__(self, block: nn.Module, run: RoutedForward, place: int) -> None:
        super().__init__()
        # Not as a submodule: nothing that goes through the model's modules meets the block's weights at another path.
        vars(self).update(block=block, run=run, place=place)
        self.training = block.training

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Called by the model."""
        return vars(self)["run"].record(vars(self)["place"], args, kwargs)

    def __getattr__(self, name: str) -> Any:
        """What a module has not itself is the block's."""
        return getattr(vars(self)["block"], name)


def _every_position(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Let blocks see every position: a model may leave out, from the first block on that stores no keys, those whose logits
    are not asked for (Gemma 4), which is right in the model's own order alone."""
    return args, {name: value for name, value in kwargs.items() if name != "logits_to_keep"}


def _cache_of(arguments: tuple[Arguments, ...]) -> Cache | None:
    values = (value for one in arguments for value in (*one.positional, *one.keyword.values()))
    return next((value for value in values if isinstance(value, Cache)), None)


def _with_cache(arguments: Arguments, main: Cache, own: Cache) -> Arguments:
    positional = tuple(own if value is main else value for value in arguments.positional)
    keyword = {name: own if value is main else value for name, value in arguments.keyword.items()}
    return replace(arguments, positional=positional, keyword=keyword)


def _add_tokens(cache: Cache, depth: int, residual: Tensor) -> None:
    """Let every entry of a cache count the tokens of a residual stream, shaped [batch, seq, d_model], as seen."""
    if cache.layer_class_to_replicate is not None:  # entries that are made when they are first used
        cache.layers.extend(cache.layer_class_to_replicate() for _ in range(depth - len(cache.layers)))
    nothing = residual.new_zeros(residual.shape[0], 1, residual.shape[1], 1)
    for layer in cache.layers:
        if isinstance(layer, CacheLayerMixin):
            layer.update(nothing, nothing)
        if isinstance(layer, LinearAttentionCacheLayerMixin):
            layer.has_previous_state.update(dict.fromkeys(layer.has_previous_state, True))

"""Edits inside a block: attention heads and MLP neurons, ablated one by one by a hook on the output projection.

What an ablated head or neuron gives to the projection is replaced (routes.MODES): by zeros, by its mean over a fixed reference
text, or by what it gave at the same position of another document of that text (`substitutes`). The projection's bias stays.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from depthscope.errors import RouteError, UnsupportedError
from depthscope.models.hooks import hooked
from depthscope.models.projections import Projection, ProjectionFinder
from depthscope.models.substitutes import Substitute, find_substitutes
from depthscope.routes import MEAN, ZERO, Ablated, Step
from depthscope.shapes import TokenIds


class Inside:
    """The heads and neurons of a model's blocks. Nothing is looked for before it is asked for."""

    def __init__(self, finder: ProjectionFinder, reference: Callable[[], TokenIds]) -> None:
        self._finder, self._reference = finder, reference
        self._projections: dict[tuple[str, int], Projection | UnsupportedError] = {}
        self._substitutes: dict[str, dict[int, Substitute]] = {}

    def projection(self, kind: str, block: int) -> Projection:
        """Where the heads or neurons of a block are. Raises UnsupportedError where they cannot be ablated one by one."""
        if (kind, block) not in self._projections:
            try:
                self._projections[kind, block] = self._finder.find(kind, block)
            except UnsupportedError as error:
                self._projections[kind, block] = error
        found = self._projections[kind, block]
        if isinstance(found, UnsupportedError):
            raise UnsupportedError(str(found))
        return found

    def possible(self, kind: str) -> dict[int, Projection]:
        """By block, the projections of a kind, of the blocks that have one."""
        found = {}
        for block in range(self._finder.stack.depth):
            try:
                found[block] = self.projection(kind, block)
            except UnsupportedError:
                continue
        return found

    def substitute(self, kind: str, block: int) -> Substitute:
        """What the heads or neurons of a block give on the reference text. The first call runs the model on it."""
        self.projection(kind, block)
        if kind not in self._substitutes:
            self._substitutes[kind] = find_substitutes(
                self._finder.name, self._finder.stack, self.possible(kind), self._reference()
            )
        return self._substitutes[kind][block]

    def check(self, step: Step) -> None:
        """Raise RouteError for a head or neuron that the block does not have, UnsupportedError where they cannot be ablated.

        What ablation needs is found here, so that it is found in the same circumstances whatever is measured.
        """
        for one in step.inside:
            count = self.projection(one.kind, step.block).count
            if one.index >= count:
                raise RouteError(
                    f"{self._finder.name}: block {step.block} has {one.kind}s 0 … {count - 1}, so {one.kind} {one.index} "
                    "cannot be ablated"
                )
            if one.mode != ZERO:
                self.substitute(one.kind, step.block)

    @contextmanager
    def ablated(self, step: Step, shape: tuple[int, ...]) -> Iterator[None]:
        """While open, what the step ablates is replaced in its block, which is given windows of `shape` [batch, seq]."""
        with ExitStack() as hooks:
            for kind in dict.fromkeys(one.kind for one in step.inside):
                several = [one for one in step.inside if one.kind == kind]
                hook = self._replacing(kind, step.block, several, shape)
                hooks.enter_context(hooked(before=[(self.projection(kind, step.block).module, hook)]))
            yield

    def _replacing(self, kind: str, block: int, several: list[Ablated], shape: tuple[int, ...]) -> Callable[..., Any]:
        """The hook that replaces the projection's input."""
        projection = self.projection(kind, block)

        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            def changed(value: Any) -> Any:
                return self._replaced(value, projection, kind, block, several, shape)

            if args and isinstance(args[0], Tensor):
                return (changed(args[0]), *args[1:]), kwargs
            name = next(name for name, value in kwargs.items() if isinstance(value, Tensor))
            return args, {**kwargs, name: changed(kwargs[name])}

        return hook

    def _replaced(
        self,
        given: Tensor,
        projection: Projection,
        kind: str,
        block: int,
        several: list[Ablated],
        shape: tuple[int, ...],
    ) -> Tensor:
        inputs = given.reshape(*shape, projection.inputs)  # some families flatten windows
        for mode in dict.fromkeys(one.mode for one in several):
            chosen = torch.zeros(projection.count, dtype=torch.bool)
            chosen[[one.index for one in several if one.mode == mode]] = True
            columns = chosen.repeat_interleave(projection.width).to(given.device)
            if mode == ZERO:
                instead: Tensor = given.new_zeros(())
            elif mode == MEAN:
                instead = self.substitute(kind, block).mean.to(given)
            else:
                instead = self.substitute(kind, block).resampled(shape[1]).to(given)
            inputs = torch.where(columns, instead, inputs)
        return inputs.reshape(given.shape)

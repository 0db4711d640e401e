"""Activations of MLP neurons: the numbers a block's output weights are multiplied with.

They are what goes into the last linear map of the MLP (the down projection of a gated MLP), read by a hook while blocks
are replayed. That this map's output is the MLP's output is checked on the loaded model before anything is read.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from depthscope.errors import NumericError, UnsupportedError
from depthscope.models.finite import REMEDY, Named, all_finite, first_row, require_finite_run, window_of_batch
from depthscope.models.hooks import hooked
from depthscope.models.maps import outermost
from depthscope.models.model import Model
from depthscope.models.neurons import mlp_calls
from depthscope.routes import MLP
from depthscope.shapes import TokenIds


@dataclass(frozen=True, slots=True)
class Activations:
    """What one replay of a batch gave."""

    values: Float32[Tensor, "batch positions neurons"]
    """The activations, neurons in the order given to the reader."""
    residual: Float[Tensor, "batch positions d_model"]
    """The residual stream after the last block at the same positions."""


class ActivationReader:
    """Reads given MLP neurons, each a (block, index within the block) pair, at given positions of token windows.

    `neurons` is shaped [neurons, 2] and may repeat none. Raises UnsupportedError where a block's MLP has no single map
    from neurons to output (experts) or the model has no components, and ValueError for a neuron that is not there.
    """

    def __init__(self, model: Model, neurons: Int64[Tensor, "neurons 2"]) -> None:
        self.model = model
        self.neurons = neurons
        blocks = sorted(set(neurons[:, 0].tolist()))
        if not set(blocks) <= set(range(model.depth)):
            raise ValueError(f"expected blocks 0 … {model.depth - 1}, got {blocks}")
        model.require_components()
        self._maps = {block: output_map(model, block) for block in blocks}
        with torch.inference_mode():
            self._check()

    def read(self, ids: TokenIds, positions: Sequence[int], named: Named = window_of_batch) -> Activations:
        """The activations at `positions` (from the end where negative) of every window.

        Raises DataError for token ids that cannot be used and NumericError, with block and window (`named`), for activations or
        residual streams with NaN or infinity.
        """
        self.model.check_ids(ids)
        ids = ids.to(self.model.device)
        values = torch.empty(ids.shape[0], len(positions), len(self.neurons), device=ids.device)
        with torch.inference_mode():
            entry = self.model.stack.enter(ids)
            residual = entry.residual
            for block in range(self.model.depth):
                with self._watched(block, tuple(ids.shape)) as seen:
                    residual = self.model.stack.call(block, residual, entry.arguments)
                if block in self._maps:
                    of_block = self.neurons[:, 0] == block
                    chosen = self.neurons[of_block, 1].to(ids.device)
                    values[:, :, of_block] = seen[0][:, list(positions)][:, :, chosen].float()
        residual = residual[:, list(positions)]
        if not all_finite([residual, values]):
            require_finite_run(self.model, ids, named)
            row = first_row(residual)
            row = first_row(values) if row is None else row
            raise NumericError(
                f"{self.model.name} has NaN or infinity in the activations of MLP neurons, in {named(row or 0)}. {REMEDY}"
            )
        return Activations(values, residual)

    @contextmanager
    def _watched(self, block: int, shape: tuple[int, ...]) -> Iterator[list[Tensor]]:
        """While open, the neurons of the block, shaped [batch, seq, all its neurons], of every call; [] where unwanted."""
        seen: list[Tensor] = []
        if block not in self._maps:
            yield seen
            return

        def keep(_module: nn.Module, args: tuple[Any, ...], _kwargs: Any) -> None:
            given = args[0].to(self.model.device)
            seen.append(given.unflatten(0, shape) if given.ndim == 2 else given)  # some families flatten windows

        with hooked(before=[(self._maps[block], keep)]):
            yield seen

    def _check(self) -> None:
        """Check that each map is called once by its block, and that its output is the MLP's output."""
        entry = self.model.stack.enter(self.model.probe_ids(4))
        residual = entry.residual
        for block in range(self.model.depth):
            mapped: list[Tensor] = []
            written: list[Tensor] = []
            watched = (
                [(self._maps[block], mapped), (self.model.component(MLP, block)[0], written)]
                if block in self._maps
                else []
            )
            with hooked(after=[(module, _keep(into)) for module, into in watched]):
                residual = self.model.stack.call(block, residual, entry.arguments)
            if watched:
                self._require_same(block, mapped, written)

    def _require_same(self, block: int, mapped: list[Tensor], written: list[Tensor]) -> None:
        if len(mapped) != 1 or len(written) != 1 or not torch.equal(mapped[0].flatten(), written[0].flatten()):
            raise UnsupportedError(
                f"{self.model.name}: what the last linear map of block {block}'s MLP gives is not what the MLP gives "
                f"({len(mapped)} calls of the map, {len(written)} of the MLP), so its neurons cannot be read"
            )
        most = neuron_count(self.model, block)
        asked = self.neurons[self.neurons[:, 0] == block, 1]
        if int(asked.min()) < 0 or int(asked.max()) >= most:
            raise ValueError(f"block {block} has neurons 0 … {most - 1}, asked for {asked.tolist()}")


def output_map(model: Model, block: int) -> nn.Module:
    """The map from a block's neurons to its MLP's output, adapters and quantisation included: its inputs are the neurons.

    Raises UnsupportedError for experts, of which a token uses only some, and where there is no such map.
    """
    mlp, *others = model.component(MLP, block)
    if others or any(parameter.ndim == 3 for parameter in mlp.parameters()):
        raise UnsupportedError(
            f"{model.name}: the MLP of block {block} is made of experts, of which a token uses only some, so its neurons "
            "cannot be read one by one"
        )
    calls = mlp_calls(model, block)
    found = outermost(mlp, calls) if mlp in calls else None
    if found is None:
        raise UnsupportedError(f"{model.name}: the MLP of block {block} has no linear map from neurons to its output")
    return found


def neuron_count(model: Model, block: int) -> int:
    """How many neurons a block's MLP has. Raises UnsupportedError as output_map does."""
    return mlp_calls(model, block)[output_map(model, block)].given.shape[-1]


def _keep(into: list[Tensor]):
    def hook(_module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        # Copied: Falcon adds the attention's output into the MLP's, in place.
        into.append((output[0] if isinstance(output, tuple) else output).clone())

    return hook

"""Output projections: the linear map from a component's heads or neurons to what it writes, found by structure and checked.

What a head gives is a slice of the input of the attention's output projection, all slices equally wide; a neuron is one number
of the input of the MLP's. The projection is the outermost linear map whose output is the component's, so that its output is
the sum of what every slice writes, plus its bias. How many heads there are is the number of the model's own eager attention
patterns, and that slice h is head h is tried. In a window made of a few vectors of the residual stream, repeated, a head has as
many different values v_k; so with its pattern A

    z_t = Σ_k m_tk v_k,    m_tk = Σ A_ts over the positions s with vector k

and the slice z must be a combination of the head's own m: there are more positions than vectors, so another head's slice, or
one cut in another order, does not fit. With grouped queries the heads are those of the queries. An attention that does more to
its values than weigh them (an output gate, a norm over heads, a recurrence) does not pass, and is refused.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from depthscope.errors import UnsupportedError
from depthscope.models.block_calls import single_calls
from depthscope.models.components import Components, first_tensor
from depthscope.models.eager import eager_attention, watched_pattern
from depthscope.models.hooks import hooked
from depthscope.models.maps import outermost, rounding
from depthscope.models.stack import BlockStack, Entry
from depthscope.routes import COMPONENT_NAMES, HEAD, HOLDERS, NEURON
from depthscope.shapes import Pattern, TokenIds

VECTORS = 4
"""Different vectors in the window that heads are tried on."""
FEWEST = 3 * VECTORS
"""Positions that such a window has at least."""


@dataclass(frozen=True, slots=True)
class Projection:
    """The output projection of a block's attention or MLP: of its input, head (or neuron) i has the numbers
    `i · width … (i + 1) · width − 1`."""

    module: nn.Module
    count: int
    width: int

    @property
    def inputs(self) -> int:
        """The width of its input."""
        return self.count * self.width


@dataclass(frozen=True, slots=True)
class ProjectionFinder:
    """Finds the projections of a model; `name` and `family` are for messages, `ids` the tokens to try blocks on."""

    name: str
    family: str
    hf: nn.Module
    stack: BlockStack
    components: Components
    ids: TokenIds

    def find(self, kind: str, block: int) -> Projection:
        """The projection of a block's heads or neurons. Raises UnsupportedError where there is none that passes the checks."""
        holder = COMPONENT_NAMES[HOLDERS[kind]]
        parts = self.components.parts[block]
        if HOLDERS[kind] not in parts:
            raise self._refused(kind, block, f"the block has no {holder}")
        modules = parts[HOLDERS[kind]]
        packed = kind == NEURON and any(parameter.ndim == 3 for parameter in modules[0].parameters())
        if len(modules) != 1 or packed:
            raise self._refused(kind, block, f"its {holder} is made of experts, of which a token uses only some")
        with torch.inference_mode(), self.stack.resident(block):
            entry = self.stack.enter(self.ids)
            calls = single_calls(self.stack, block, modules, entry)
            module = outermost(modules[0], calls) if modules[0] in calls else None
            if module is None:
                raise self._refused(kind, block, f"no linear map gives the output of its {holder}")
            given = calls[module].given
            if given.numel() != self.ids.numel() * given.shape[-1]:
                raise self._refused(
                    kind, block, f"the last linear map of its {holder} is not given one vector per position"
                )
            if kind == HEAD:
                return self._of_heads(block, module, entry, given.shape[-1])
        return Projection(module, given.shape[-1], 1)

    def _of_heads(self, block: int, module: nn.Module, entry: Entry, inputs: int) -> Projection:
        length = self.ids.shape[1]
        if length < FEWEST:
            raise self._refused(HEAD, block, f"heads are tried on {FEWEST} tokens, and the context is {length}")
        kinds = repeated(length).to(self.ids.device)
        residual = entry.residual[:, :VECTORS][:, kinds]
        pattern, given = self._under_eager(block, module, residual)
        if pattern is None:
            raise self._refused(HEAD, block, "its attention has no pattern, so heads cannot be checked")
        if inputs % pattern.shape[1]:
            raise self._refused(
                HEAD, block, f"{pattern.shape[1]} heads do not share {inputs} inputs of the projection equally"
            )
        projection = Projection(module, pattern.shape[1], inputs // pattern.shape[1])
        slices = given.reshape(length, projection.count, projection.width)
        away = largest_misfit(pattern[0], slices, kinds)
        if not away <= rounding(given.dtype):  # not `>`: NaN does not fit
            raise self._refused(
                HEAD,
                block,
                f"a slice of the projection's input is not its head's values, weighted by its pattern ({away:.1g})",
            )
        return projection

    def _under_eager(self, block: int, module: nn.Module, residual: Tensor) -> tuple[Pattern | None, Tensor]:
        """The pattern of a block on a residual stream, and the projection's input."""
        seen: list[Tensor] = []
        given: list[Tensor] = []

        def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            given.append(first_tensor(args, kwargs).to(residual.device, copy=True))

        with eager_attention(self.hf):
            entry = replace(self.stack.enter(self.ids), residual=residual)
            watched = watched_pattern(self.stack.blocks[block], tuple(self.ids.shape), seen, residual.device)
            with watched, hooked(before=[(module, keep)]):
                self.stack.call_alone(block, entry)
        return (seen[0] if seen else None), given[-1]

    def _refused(self, kind: str, block: int, why: str) -> UnsupportedError:
        return UnsupportedError(
            f"{self.name} ({self.family}): the {kind}s of block {block} cannot be ablated one by one: {why}"
        )


def repeated(length: int) -> Tensor:
    """Which of VECTORS vectors stands at each position: each at the beginning, then in no regular order."""
    places = torch.arange(length)
    return torch.where(places < VECTORS, places, (places * places // 3 + places // 5) % VECTORS)


def largest_misfit(
    pattern: Float[Tensor, "heads seq seq"], slices: Float[Tensor, "seq heads width"], kinds: Tensor
) -> float:
    """How far slices are from combinations of their head's weights on each vector, as a share of the largest number."""
    weights = pattern.double() @ nn.functional.one_hot(kinds, VECTORS).double()
    wanted = slices.double().transpose(0, 1)
    # On the CPU: least squares of matrices without full rank (a head that sees one vector) need LAPACK's gelsd.
    values = torch.linalg.lstsq(weights.cpu(), wanted.cpu(), driver="gelsd").solution
    misfit = (weights.cpu() @ values - wanted.cpu()).abs().amax((1, 2))
    largest = wanted.cpu().abs().amax((1, 2)).clamp_min(1e-30)
    return float((misfit / largest).max())

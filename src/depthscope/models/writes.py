"""What the components of a block add to the residual stream, in the form in which it is added.

A component's output may be changed before it is added: by a norm (Gemma 2, OLMo 2) or a scale (Granite). The norm is found as
the module that is given the component's output tensor itself, the scale by comparing what was written with how the residual
stream changed. Before anything is read the sum is checked: x + attention + MLP (and whatever else the block has) must be the
block's output. Where a block also scales the stream (Gemma 4), the components add to the scaled stream.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from depthscope.models.components import Components, Parts, is_norm
from depthscope.models.hooks import hooked
from depthscope.models.stack import BlockStack, Entry
from depthscope.models.unembedding import ElementwiseMap, scale_between
from depthscope.routes import ATTN, MLP, Step
from depthscope.shapes import Residual


@dataclass(frozen=True, slots=True)
class Writes:
    """What the components of one block added to the residual stream in one call, each shaped [batch, seq, d_model]."""

    parts: dict[str, Residual]
    """By component, those the block has."""

    @property
    def attention(self) -> Residual:
        """What the attention added."""
        return self.parts[ATTN]

    @property
    def mlp(self) -> Residual:
        """What the MLP added."""
        return self.parts[MLP]

    def rows(self, rows: slice) -> "Writes":
        """Those of some windows."""
        return Writes({kind: written[rows] for kind, written in self.parts.items()})


@dataclass(frozen=True, slots=True)
class Writers:
    """Per block the modules whose outputs, scaled, are added to the residual stream, by component: as many as the component
    has modules, in the same order."""

    parts: tuple[Parts, ...]
    scales: tuple[ElementwiseMap, ...]
    device: torch.device
    """Where the residual stream is; of a model in parts, blocks may be elsewhere."""

    @contextmanager
    def watched(self, block: int) -> Iterator[list[Writes]]:
        """While open, every call of the block appends what it wrote to the list."""
        written: list[Writes] = []
        seen: dict[tuple[str, int], Tensor] = {}
        places = {(kind, i): module for kind, several in self.parts[block].items() for i, module in enumerate(several)}

        def keep(place: tuple[str, int]):
            def hook(_module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
                # Copied: Falcon adds the attention's output into the MLP's, in place.
                seen[place] = self.scales[block](_tensor(output)).to(self.device, copy=True)
                if len(seen) == len(places):
                    # In the order of `places`, not of calls: sums of floats must not depend on which module ran first.
                    written.append(_writes({p: seen[p] for p in places}))
                    seen.clear()

            return hook

        with hooked(after=[(module, keep(place)) for place, module in places.items()]):
            yield written


def _writes(outputs: dict[tuple[str, int], Tensor]) -> Writes:
    """Outputs by component and place among its modules, summed by component."""
    shape = max(outputs.values(), key=lambda output: output.ndim).shape  # OPT's MLP lays positions end to end
    parts: dict[str, Tensor] = {}
    for (kind, _), output in outputs.items():
        parts[kind] = parts[kind] + output.view(shape) if kind in parts else output.view(shape)
    return Writes(parts)


def find_writers(stack: BlockStack, components: Components, entry: Entry) -> Writers | None:
    """The writers of a model; None where stream and components do not sum to the blocks' outputs. `entry`: a batch to try
    on."""
    found: list[Parts] = []
    scales: list[ElementwiseMap] = []
    residual = entry.residual
    for block, parts in enumerate(components.parts):
        own = {
            kind: tuple(_norm_after(stack, block, module, residual, entry) or module for module in several)
            for kind, several in parts.items()
        }
        # Unscaled: the scale is what is looked for.
        plain = Writers((*found, own), (*scales, ElementwiseMap()), residual.device)
        with plain.watched(block) as written:
            after = stack.call(block, residual, entry.arguments)
        scale = _scale(residual, components.carried[block], written, after)
        if scale is None:
            return None
        found.append(own)
        scales.append(scale)
        residual = after
    return Writers(tuple(found), tuple(scales), residual.device)


def adds_exactly(stack: BlockStack, components: Components, writers: Writers, entry: Entry) -> bool:
    """Whether, bit for bit, a block without its MLP gives x + attention and, where the MLP does not read what the attention
    wrote (parallel blocks), a block without its attention gives x + MLP. Then both follow from one run of the whole block."""
    if not components.pairs:
        return False
    residual = entry.residual
    for block in range(stack.depth):
        with writers.watched(block) as written:
            after = stack.call(block, residual, entry.arguments)
        pairs = [(Step(block, (MLP,)), written[0].attention)]
        if components.parallel:
            pairs.append((Step(block, (ATTN,)), written[0].mlp))
        for step, write in pairs:
            with components.silenced(step):
                if not torch.equal(stack.call(block, residual, entry.arguments), residual + write):
                    return False
        residual = after
    return True


def _scale(before: Tensor, carried: float | None, written: list[Writes], after: Tensor) -> ElementwiseMap | None:
    """The scale s for which carried · before + s · (sum of what was written) = after, within rounding; None where there is
    none."""
    # Not written exactly once: a component that the block calls twice, or not at all, has no single output to be added.
    if len(written) != 1 or carried is None:
        return None
    total = torch.stack([part.double() for part in written[0].parts.values()]).sum(0).flatten()
    change = (after.double() - carried * before.double()).flatten()
    ratio = float(total @ change / (total @ total))
    rounding = 16 * torch.finfo(after.dtype).eps * float(torch.maximum(after.abs(), before.abs()).max())
    fits = [scale for scale in scale_between(ratio) if bool(((scale(total) - change).abs() <= rounding).all())]
    return fits[0] if fits else None


def _norm_after(
    stack: BlockStack, block: int, component: nn.Module, residual: Residual, entry: Entry
) -> nn.Module | None:
    """The norm that a component's output goes through before it is added, if there is one."""
    written: list[Tensor] = []
    found: list[nn.Module] = []

    def wrote(_module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        written.append(_tensor(output))

    def reads(module: nn.Module, args: tuple[Any, ...], _kwargs: Any) -> None:
        # By identity: in an untouched sequential block the norm before the next component reads the sum, another tensor.
        if is_norm(module) and args and written and args[0] is written[-1]:
            found.append(module)

    with hooked(before=[(module, reads) for module in stack.blocks[block].modules()], after=[(component, wrote)]):
        stack.call(block, residual, entry.arguments)
    return found[0] if found else None


def _tensor(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple | list) else output

"""What attention and MLP add to the residual stream, as it is added.

A component's output may go through more before it is added: a norm (Gemma 2, OLMo 2), a scale (Granite). The norm is
found by seeing which module reads the component's very output, the scale by comparing what was written with how the
residual stream changed; and the sum is checked, x + attention + MLP being the block's output, before anything is read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from depthscope.models.components import Components, is_norm
from depthscope.models.head import ElementwiseMap, scale_between
from depthscope.models.stack import BlockStack, Entry
from depthscope.routes import Step
from depthscope.shapes import Residual


@dataclass(slots=True)
class Writes:
    """What the components of one block added to the residual stream in one call, shaped [batch, seq, d_model]."""

    attention: Residual
    mlp: Residual


@dataclass(frozen=True, slots=True)
class Writers:
    """Per block the modules whose outputs, scaled, are added to the residual stream."""

    attention: tuple[nn.Module, ...]
    mlp: tuple[nn.Module, ...]
    scale: ElementwiseMap

    @contextmanager
    def watched(self, block: int) -> Iterator[list[Writes]]:
        """While open, every call of the block puts what it wrote behind the others in the list."""
        written: list[Writes] = []
        parts: dict[str, Tensor] = {}

        def keep(part: str):
            def hook(_module: nn.Module, _args: Any, output: Any) -> None:
                # Copied: Falcon adds the attention's output into the MLP's, in place.
                parts[part] = self.scale(_tensor(output)).clone()
                if len(parts) == 2:
                    attention, mlp = parts.pop("attention"), parts.pop("mlp")
                    written.append(Writes(attention, mlp.view_as(attention)))  # OPT's MLP lays positions end to end

            return hook

        handles = [
            self.attention[block].register_forward_hook(keep("attention")),
            self.mlp[block].register_forward_hook(keep("mlp")),
        ]
        try:
            yield written
        finally:
            for handle in handles:
                handle.remove()


def find_writers(stack: BlockStack, components: Components, entry: Entry) -> Writers | None:
    """The writers of a model; None where x + attention + MLP is not what its blocks give. `entry`: a batch to try on."""
    attention, mlp = list(components.attention), list(components.mlp)
    residual = entry.residual
    scales: set[ElementwiseMap] = set()
    for block in range(stack.depth):
        attention[block] = _norm_after(stack, block, attention[block], residual, entry) or attention[block]
        mlp[block] = _norm_after(stack, block, mlp[block], residual, entry) or mlp[block]
        plain = Writers(tuple(attention), tuple(mlp), ElementwiseMap())
        with plain.watched(block) as written:
            after = stack.call(block, residual, entry.arguments)
        scale = _scale(residual, written, after)
        if scale is None:
            return None
        scales.add(scale)
        residual = after
    return Writers(tuple(attention), tuple(mlp), scales.pop()) if len(scales) == 1 else None


def adds_exactly(stack: BlockStack, components: Components, writers: Writers, entry: Entry) -> bool:
    """Whether, bit for bit, a block without its MLP is x + attention, and one without its attention, where that does not
    change what the MLP reads, x + MLP. Then both follow from the block's own run."""
    residual = entry.residual
    for block in range(stack.depth):
        with writers.watched(block) as written:
            after = stack.call(block, residual, entry.arguments)
        pairs = [(Step(block, mlp=False), written[0].attention)]
        if components.parallel:
            pairs.append((Step(block, attention=False), written[0].mlp))
        for step, write in pairs:
            with components.silenced(step):
                if not torch.equal(stack.call(block, residual, entry.arguments), residual + write):
                    return False
        residual = after
    return True


def _scale(before: Tensor, written: list[Writes], after: Tensor) -> ElementwiseMap | None:
    """The scale s for which before + s · (attention + MLP) = after, within rounding; None where there is none."""
    if len(written) != 1:
        return None
    total = (written[0].attention.double() + written[0].mlp.double()).flatten()
    change = (after.double() - before.double()).flatten()
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

    def wrote(_module: nn.Module, _args: Any, output: Any) -> None:
        written.append(_tensor(output))

    def reads(module: nn.Module, args: tuple[Any, ...]) -> None:
        if is_norm(module) and args and written and args[0] is written[-1]:
            found.append(module)

    handles = [component.register_forward_hook(wrote)]
    handles += [module.register_forward_pre_hook(reads) for module in stack.blocks[block].modules()]
    try:
        stack.call(block, residual, entry.arguments)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _tensor(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple | list) else output

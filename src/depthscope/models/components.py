"""Attention and MLP inside a block: where they are, and silencing them.

Silencing replaces a component's output by zero through a forward hook that is always removed. Names are accepted only if
a block with both components silenced passes the residual stream on unchanged, bit for bit, and each alone changes it:
that is what "the block adds attention and MLP to the residual stream" means, and it is checked on the loaded model.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from depthscope.models.families import FAMILIES, Names
from depthscope.models.stack import BlockStack, Entry
from depthscope.routes import Step


@dataclass(frozen=True, slots=True)
class Components:
    """The modules whose outputs are each block's attention and MLP contributions, and how the two are laid out."""

    names: Names
    attention: tuple[nn.Module, ...]
    mlp: tuple[nn.Module, ...]
    parallel: bool
    """Whether attention and MLP read the same residual stream, so that the MLP does not see the attention's output."""

    @contextmanager
    def silenced(self, step: Step) -> Iterator[None]:
        """The step's block with the components the step silences giving zero, for the time of the context."""
        with ExitStack() as undo:
            for kept, modules in ((step.attention, self.attention), (step.mlp, self.mlp)):
                if not kept:
                    undo.callback(modules[step.block].register_forward_hook(_zero).remove)
            yield


def _zero(_module: nn.Module, _args: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)


def find(stack: BlockStack, model_type: str, entry: Entry) -> Components | None:
    """The components of a model, by its family's names or by structure; None where no pair of modules passes the check.

    `entry` is a batch of real tokens to check on.
    """
    listed = FAMILIES.get(model_type)
    candidates = [listed] if listed else []
    candidates += [names for names in _by_structure(stack.blocks[0]) if names != listed]
    residuals = _residuals(stack, entry)
    for names in candidates:
        try:
            attention = tuple(block.get_submodule(names.attention) for block in stack.blocks)
            mlp = tuple(block.get_submodule(names.mlp) for block in stack.blocks)
        except AttributeError:
            continue
        components = Components(names, attention, mlp, parallel=False)
        if all(_adds(stack, components, block, residuals[block], entry) for block in range(stack.depth)):
            parallel = _mlp_ignores_attention(stack, components, residuals[0], entry)
            return Components(names, attention, mlp, parallel)
    return None


def _by_structure(block: nn.Module) -> Iterator[Names]:
    """Pairs of module paths that may be attention and MLP, the outermost first."""
    paths = [name for name, _ in block.named_modules() if name]
    paths.sort(key=lambda path: path.count("."))
    attention = [path for path in paths if "attn" in path.lower() or "attention" in path.lower()]
    others = [path for path in paths if path not in attention and "norm" not in path.lower() and path.count(".") < 2]
    for pair in product(attention[:12], others[:12]):
        yield Names(*pair)


def _residuals(stack: BlockStack, entry: Entry) -> list[Tensor]:
    residuals = [entry.residual]
    for block in range(stack.depth - 1):
        residuals.append(stack.call(block, residuals[-1], entry.arguments))
    return residuals


def _adds(stack: BlockStack, components: Components, block: int, residual: Tensor, entry: Entry) -> bool:
    """Whether the block adds both components to the residual stream and nothing else."""

    def output(attention: bool, mlp: bool) -> Tensor:
        with components.silenced(Step(block, attention, mlp)):
            return stack.call(block, residual, entry.arguments)

    try:
        silent, whole = output(False, False), output(True, True)
        return (
            torch.equal(silent, residual)
            and not torch.equal(output(False, True), whole)
            and not torch.equal(output(True, False), whole)
        )
    except (RuntimeError, TypeError, AttributeError, IndexError):
        return False  # zeros in place of this module's output break the block: not the module we look for


def _mlp_ignores_attention(stack: BlockStack, components: Components, residual: Tensor, entry: Entry) -> bool:
    def mlp_input(attention: bool) -> Tensor:
        read: list[Tensor] = []
        handle = components.mlp[0].register_forward_pre_hook(lambda _m, args: read.append(args[0].clone()))
        try:
            with components.silenced(Step(0, attention=attention)):
                stack.call(0, residual, entry.arguments)
        finally:
            handle.remove()
        return read[0]

    return torch.equal(mlp_input(True), mlp_input(False))

"""Attention and MLP inside a block: where they are, and silencing them.

Silencing puts zeros in the place of a component's output, by a replacement that is always taken back; the component itself
is not computed where what it gives has the plain form that nearly all have. Names are accepted only if
a block with both components silenced passes the residual stream on unchanged, bit for bit, and each alone changes it:
that is what "the block adds attention and MLP to the residual stream" means, and it is checked on the loaded model.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from depthscope.models.families import FAMILIES, Names
from depthscope.models.hooks import replaced_forward
from depthscope.models.stack import BlockStack, Entry
from depthscope.routes import Step


@dataclass(frozen=True, slots=True)
class Output:
    """The form of what a component gives, so that zeros of the same form can be made without computing it.

    `width` is its last dimension, the others are those of the first tensor given to it; `length` is that of the tuple it is
    the first of, the others being None, or 0 where it is not in a tuple.
    """

    width: int
    length: int

    def zeros(self, *args: Any, **kwargs: Any) -> Any:
        """In place of the component's forward."""
        given = _first_tensor(args, kwargs)
        nothing = given.new_zeros(*given.shape[:-1], self.width)
        return (nothing, *(None,) * (self.length - 1)) if self.length else nothing


@dataclass(frozen=True, slots=True)
class Components:
    """The modules whose outputs are each block's attention and MLP contributions, and how the two are laid out."""

    names: Names
    """Module paths inside a block; several, with slashes between them, where blocks differ."""
    attention: tuple[nn.Module, ...]
    mlp: tuple[nn.Module, ...]
    parallel: bool
    """Whether attention and MLP read the same residual stream, so that the MLP does not see the attention's output."""
    outputs: Mapping[nn.Module, Output]
    """The form of what each module gives, where it is a plain one."""

    @contextmanager
    def silenced(self, step: Step) -> Iterator[None]:
        """The step's block with the components the step silences giving zero, for the time of the context."""
        pair = ((step.attention, self.attention[step.block]), (step.mlp, self.mlp[step.block]))
        silent = [module for kept, module in pair if not kept]
        skipped = [module for module in silent if module in self.outputs]
        with (
            _zeroed(*(module for module in silent if module not in self.outputs)),
            replaced_forward(skipped, [self.outputs[module].zeros for module in skipped]),
        ):
            yield


@contextmanager
def _zeroed(*modules: nn.Module) -> Iterator[None]:
    with ExitStack() as undo:
        for module in modules:
            undo.callback(module.register_forward_hook(_zero).remove)
        yield


def _zero(_module: nn.Module, _args: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)


def find(stack: BlockStack, model_type: str, entry: Entry) -> Components | None:
    """The components of a model, by its family's names or by structure; None where a block has no pair that passes.

    Blocks of hybrid families may differ (linear attention here, full attention there): what mixes tokens counts as the
    attention. `entry` is a batch of real tokens to check on.
    """
    residuals = _residuals(stack, entry)
    found: list[tuple[Names, nn.Module, nn.Module]] = []
    for block, module in enumerate(stack.blocks):
        known = [FAMILIES[model_type]] if model_type in FAMILIES else []
        known += dict.fromkeys(names for names, _, _ in found)
        pair = _find_in_block(stack, block, [*known, *_by_structure(module)], residuals[block], entry)
        if pair is None:
            return None
        found.append(pair)
    names = Names(
        *(" / ".join(dict.fromkeys(column)) for column in zip(*(names for names, _, _ in found), strict=True))
    )
    attention, mlp = (tuple(column) for column in zip(*((a, m) for _, a, m in found), strict=True))
    # What a block stores for later blocks is made inside its attention: that has to run even if its output is zeroed.
    skippable = [m for pair in zip(attention, mlp, stack.links, strict=True) if not pair[2].writes for m in pair[:2]]
    outputs = _outputs(stack, skippable, residuals, entry)
    components = Components(names, attention, mlp, parallel=False, outputs=outputs)
    return replace(components, parallel=_mlp_ignores_attention(stack, components, residuals[0], entry))


def _find_in_block(
    stack: BlockStack, block: int, candidates: list[Names], residual: Tensor, entry: Entry
) -> tuple[Names, nn.Module, nn.Module] | None:
    for names in candidates:
        try:
            attention = stack.blocks[block].get_submodule(names.attention)
            mlp = stack.blocks[block].get_submodule(names.mlp)
        except AttributeError:
            continue
        if _adds(stack, block, attention, mlp, residual, entry):
            return names, attention, mlp
    return None


MIXES_TOKENS = re.compile("attn|attention|mixer|mamba|conv|recurrent|temporal|ssm", re.IGNORECASE)


def _by_structure(block: nn.Module) -> list[Names]:
    """Pairs of module paths that may be attention and MLP: the outermost first, and of those the last.

    Norms and modules without weights are never what writes to the residual stream, though zeroing them may look like it.
    """
    paths = [
        name
        for name, module in block.named_modules()
        if name and name.count(".") < 3 and not is_norm(module) and any(True for _ in module.parameters())
    ]
    paths.reverse()
    paths.sort(key=lambda path: path.count("."))
    mixers = [path for path in paths if MIXES_TOKENS.search(path)]
    others = [path for path in paths if path not in mixers and path.count(".") < 2]
    return [Names(*pair) for pair in product(mixers[:12], others[:12])]


def is_norm(module: nn.Module) -> bool:
    """Whether a module's class calls itself a norm."""
    return "norm" in type(module).__name__.lower()


def _residuals(stack: BlockStack, entry: Entry) -> list[Tensor]:
    residuals = [entry.residual]
    for block in range(stack.depth - 1):
        residuals.append(stack.call(block, residuals[-1], entry.arguments))
    return residuals


def _adds(stack: BlockStack, block: int, attention: nn.Module, mlp: nn.Module, residual: Tensor, entry: Entry) -> bool:
    """Whether the block adds the outputs of both modules to the residual stream and nothing else."""

    def output(*silent: nn.Module) -> Tensor:
        with _zeroed(*silent):
            return stack.call(block, residual, entry.arguments)

    try:
        whole = output()
        return (
            torch.equal(output(attention, mlp), residual)
            and not torch.equal(output(attention), whole)
            and not torch.equal(output(mlp), whole)
        )
    except (RuntimeError, TypeError, AttributeError, IndexError):
        return False  # zeros in place of this module's output break the block: not the module we look for


def _outputs(
    stack: BlockStack, modules: Sequence[nn.Module], residuals: list[Tensor], entry: Entry
) -> dict[nn.Module, Output]:
    found: dict[nn.Module, Output] = {}

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        first, *others = output if isinstance(output, tuple) else (output,)
        given = _first_tensor(args, kwargs)
        plain = isinstance(first, Tensor) and all(other is None for other in others)
        if plain and (first.shape[:-1], first.dtype) == (given.shape[:-1], given.dtype):
            found[module] = Output(first.shape[-1], len(others) + 1 if isinstance(output, tuple) else 0)

    handles = [module.register_forward_hook(look, with_kwargs=True) for module in modules]
    try:
        for block, residual in enumerate(residuals):
            stack.call(block, residual, entry.arguments)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return next(given for given in (*args, *kwargs.values()) if isinstance(given, Tensor))


def _mlp_ignores_attention(stack: BlockStack, components: Components, residual: Tensor, entry: Entry) -> bool:
    def mlp_input(attention: bool) -> Tensor:
        read: list[Tensor] = []

        def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            read.append(_first_tensor(args, kwargs).clone())

        handle = components.mlp[0].register_forward_pre_hook(keep, with_kwargs=True)
        try:
            with components.silenced(Step(0, attention=attention)):
                stack.call(0, residual, entry.arguments)
        finally:
            handle.remove()
        return read[0]

    return torch.equal(mlp_input(True), mlp_input(False))

"""Finding the components of every block: by the names of its family, by pairs of likely names, and else by behaviour.

The behaviour looked for is what defines a component. Silence all the modules that write vectors as wide as the residual
stream: the block must pass the stream on, unchanged or times a constant. Then leave out every module without which that
still holds. What remains adds to the stream and nothing else does, however many there are: attention and a state-space
mixer side by side (Falcon-H1), one mixer alone (Nemotron-H), a third part after the MLP (Gemma 4). Which is which is read
off what each does: whether what it gives at one position depends on another, and its name only among several alike.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from depthscope.models.block_calls import calls_of, kinds, writers
from depthscope.models.components import (
    PARALLEL,
    SEQUENTIAL,
    SINGLE,
    Components,
    Output,
    Parts,
    first_tensor,
    is_norm,
    zeroed,
)
from depthscope.models.families import FAMILIES, Names
from depthscope.models.stack import BlockStack, Entry
from depthscope.routes import ATTN, COMPONENTS, MLP, Step


@dataclass(frozen=True, slots=True)
class _Found:
    """The components of one block: paths of modules, and what the block carries on of the stream."""

    paths: Mapping[str, tuple[str, ...]]
    carried: float | None


def find(stack: BlockStack, model_type: str, entry: Entry) -> Components | None:
    """The components of a model; None where a block has none that pass. `entry` is a batch of real tokens to check on.

    Blocks of hybrid families may differ (linear attention here, full attention there): what mixes tokens counts as the
    attention, unless a block has an attention besides.
    """
    residuals = _residuals(stack, entry)
    found: list[_Found] = []
    for block, module in enumerate(stack.blocks):
        known = [FAMILIES[model_type]] if model_type in FAMILIES else []
        known += [Names(one.paths[ATTN][0], one.paths[MLP][0]) for one in found if tuple(one.paths) == (ATTN, MLP)]
        own = _pair(stack, block, [*dict.fromkeys(known), *_likely_pairs(module)], residuals[block], entry)
        own = own or _by_behaviour(stack, block, residuals[block], entry)
        if own is None:
            return None
        found.append(own)
    if len({tuple(one.paths) for one in found}) == 1 and len(found[0].paths) == 1:
        return None  # Mamba: a block is its mixer, which has no parts
    parts = tuple(
        {kind: tuple(map(stack.blocks[block].get_submodule, paths)) for kind, paths in one.paths.items()}
        for block, one in enumerate(found)
    )
    paths = {
        kind: " / ".join(dict.fromkeys(" + ".join(one.paths[kind]) for one in found if kind in one.paths))
        for kind in COMPONENTS
        if any(kind in one.paths for one in found)
    }
    outputs = _outputs(stack, parts, residuals, entry)
    components = Components(parts, paths, tuple(one.carried for one in found), SEQUENTIAL, outputs)
    return replace(components, layout=_layout(stack, components, residuals, entry))


def _pair(stack: BlockStack, block: int, candidates: list[Names], residual: Tensor, entry: Entry) -> _Found | None:
    """The first pair of names of which the block is the sum, with the residual stream, bit for bit: one alone is not."""
    for names in candidates:
        try:
            pair = [stack.blocks[block].get_submodule(path) for path in names]
        except AttributeError:
            continue
        if _carried(stack, block, pair, residual, entry) != 1:
            continue
        alone = [_carried(stack, block, [module], residual, entry) for module in pair]
        if 1 not in alone and _each_matters(stack, block, pair, residual, entry):
            return _Found({ATTN: (names.attention,), MLP: (names.mlp,)}, 1.0)
    return None


MIXES_TOKENS = re.compile("attn|attention|mixer|mamba|conv|recurrent|temporal|ssm", re.IGNORECASE)


def _likely_pairs(block: nn.Module) -> list[Names]:
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


def _by_behaviour(stack: BlockStack, block: int, residual: Tensor, entry: Entry) -> _Found | None:
    """The fewest modules that, all silenced, leave the residual stream times a constant; or those at the top of a block that
    has but norms besides them."""
    calls = calls_of(stack, block, residual, entry)
    modules = stack.blocks[block]
    levels = [writers(modules, calls, level, residual) for level in (1, 2, 3)]
    for paths in levels:
        carried = _carried(stack, block, [modules.get_submodule(path) for path in paths], residual, entry)
        if not paths or carried is None:
            continue
        for path in list(paths):  # in the order they are called: of two in a row the later one writes
            fewer = [other for other in paths if other != path]
            if _carried(stack, block, [modules.get_submodule(other) for other in fewer], residual, entry) == carried:
                paths = fewer
        if paths and _each_matters(stack, block, [modules.get_submodule(path) for path in paths], residual, entry):
            return _Found(kinds(modules, paths, calls), carried)
    top = levels[0]
    silent = [modules.get_submodule(path) for path in top]
    besides = [
        name for name, child in modules.named_children() if name not in top and any(True for _ in child.parameters())
    ]
    if (
        len(top) > 1
        and all(is_norm(modules.get_submodule(name)) for name in besides)
        and _local(stack, block, silent, residual, entry)
        and _each_matters(stack, block, silent, residual, entry)
    ):
        return _Found(kinds(modules, top, calls), None)
    return None


def _residuals(stack: BlockStack, entry: Entry) -> list[Tensor]:
    residuals = [entry.residual]
    for block in range(stack.depth - 1):
        residuals.append(stack.call(block, residuals[-1], entry.arguments))
    return residuals


def _output(
    stack: BlockStack, block: int, silent: Sequence[nn.Module], residual: Tensor, entry: Entry
) -> Tensor | None:
    """The block's output with modules silenced; None where zeros in their place break the block: then they are not it."""
    try:
        with zeroed(*silent):
            return stack.call(block, residual, entry.arguments)
    except (RuntimeError, TypeError, AttributeError, IndexError):
        return None


def _carried(
    stack: BlockStack, block: int, silent: Sequence[nn.Module], residual: Tensor, entry: Entry
) -> float | None:
    """What the block multiplies the residual stream with where the modules are silenced; None where it does more to it."""
    output = _output(stack, block, silent, residual, entry)
    if output is None or output.shape != residual.shape:
        return None
    if torch.equal(output, residual):
        return 1.0
    x, y = residual.detach().double().flatten(), output.detach().double().flatten()
    ratio = float(x @ y / (x @ x))
    rounding = 4 * torch.finfo(residual.dtype).eps * float(x.abs().max()) * ratio
    written = [
        float(f"{ratio:.{digits}g}") for digits in (1, 2, 3, 4, 5, 6, 9)
    ]  # as it was probably written, then as seen
    return next((one for one in written if one > 0 and bool(((y - one * x).abs() <= rounding).all())), None)


def _each_matters(stack: BlockStack, block: int, modules: Sequence[nn.Module], residual: Tensor, entry: Entry) -> bool:
    """Whether silencing any one of the modules changes what the block gives."""
    whole = stack.call(block, residual, entry.arguments)
    outputs = [_output(stack, block, [module], residual, entry) for module in modules]
    return all(output is not None and not torch.equal(output, whole) for output in outputs)


def _local(stack: BlockStack, block: int, silent: Sequence[nn.Module], residual: Tensor, entry: Entry) -> bool:
    """Whether, with the modules silenced, what the block gives at a position follows from the stream there alone."""
    other = residual.clone()
    other[:, 0] += 1
    outputs = [_output(stack, block, silent, x, entry) for x in (residual, other)]
    one, changed = outputs
    return one is not None and changed is not None and bool(one.any()) and torch.equal(one[:, 1:], changed[:, 1:])


def _outputs(
    stack: BlockStack, parts: Sequence[Parts], residuals: list[Tensor], entry: Entry
) -> dict[nn.Module, Output]:
    """The plain forms. What a block stores for later blocks is made inside its attention, which has to run even if its output
    is zeroed: of such blocks none."""
    found: dict[nn.Module, Output] = {}

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        first, *others = output if isinstance(output, tuple) else (output,)
        given = first_tensor(args, kwargs)
        plain = isinstance(first, Tensor) and all(other is None for other in others)
        if plain and (first.shape[:-1], first.dtype) == (given.shape[:-1], given.dtype):
            found[module] = Output(first.shape[-1], len(others) + 1 if isinstance(output, tuple) else 0)

    modules = [
        module
        for own, links in zip(parts, stack.links, strict=True)
        if not links.writes
        for several in own.values()
        for module in several
    ]
    handles = [module.register_forward_hook(look, with_kwargs=True) for module in modules]
    try:
        for block, residual in enumerate(residuals):
            stack.call(block, residual, entry.arguments)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _layout(stack: BlockStack, components: Components, residuals: list[Tensor], entry: Entry) -> str:
    """As the first block that has both an attention and an MLP is laid out."""
    both = [block for block, parts in enumerate(components.parts) if ATTN in parts and MLP in parts]
    if not both:
        return SINGLE
    block = both[0]

    def mlp_input(*silent: str) -> Tensor:
        read: list[Tensor] = []

        def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            read.append(first_tensor(args, kwargs).clone())

        handle = components.parts[block][MLP][0].register_forward_pre_hook(keep, with_kwargs=True)
        try:
            with components.silenced(Step(block, silent)):
                stack.call(block, residuals[block], entry.arguments)
        finally:
            handle.remove()
        return read[0]

    return PARALLEL if torch.equal(mlp_input(), mlp_input(ATTN)) else SEQUENTIAL

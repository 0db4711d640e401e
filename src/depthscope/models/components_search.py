"""Finding the components of every block: by the names of its family, by pairs of likely names, and else by behaviour.

The behaviour looked for is what defines a component. With all modules ablated that write vectors as wide as the residual
stream, the block must pass the stream on, unchanged or times a constant. Then every module that is not needed for this is left
out. What remains adds to the stream and nothing else does, however many there are: attention and a state-space mixer side by
side (Falcon-H1), one mixer alone (Nemotron-H), a third part after the MLP (Gemma 4). Which is which follows from what each
does: whether its output at one position depends on another position. Names decide only among several that mix positions.
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
from depthscope.models.hooks import hooked
from depthscope.models.stack import BlockStack, Entry
from depthscope.routes import ATTN, COMPONENTS, MLP, Step


@dataclass(frozen=True, slots=True)
class _Found:
    """The components of one block: paths of modules, and what the block without them multiplies the stream by."""

    paths: Mapping[str, tuple[str, ...]]
    carried: float | None


def find(stack: BlockStack, model_type: str, entry: Entry) -> Components | None:
    """The components of a model; None where a block has none that pass the checks, which are made on the batch `entry`.

    Blocks of hybrid families may differ (linear attention here, full attention there): what mixes tokens counts as the
    attention, unless the block has another module that is one by name.
    """
    residuals = _residuals(stack, entry)
    found: list[_Found] = []
    for block, module in enumerate(stack.blocks):
        known = [FAMILIES[model_type]] if model_type in FAMILIES else []
        # The blocks before are mostly alike: their names are tried before all pairs of likely ones.
        known += [Names(one.paths[ATTN][0], one.paths[MLP][0]) for one in found if tuple(one.paths) == (ATTN, MLP)]
        own = _pair(stack, block, [*dict.fromkeys(known), *_likely_pairs(module)], residuals[block], entry)
        own = own or _by_behaviour(stack, block, residuals[block], entry)
        if own is None:
            return None
        found.append(own)
    if len({tuple(one.paths) for one in found}) == 1 and len(found[0].paths) == 1:
        return None  # Mamba: every block is one mixer, and ablating it would be dropping the block
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
    """The first pair of names whose outputs, added to the residual stream, are the block's output, bit for bit.

    One of the two alone must not pass: a module that contains both would.
    """
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
    """The fewest modules that, all ablated, leave the residual stream times a constant; or those at the top of a block whose
    other modules are all norms."""
    calls = calls_of(stack, block, residual, entry)
    modules = stack.blocks[block]
    levels = [writers(modules, calls, level, residual) for level in (1, 2, 3)]
    for paths in levels:
        carried = _carried(stack, block, [modules.get_submodule(path) for path in paths], residual, entry)
        if not paths or carried is None:
            continue
        # In the order they are called: where one module feeds another, the first is found unneeded and the last, which
        # writes to the stream, is kept.
        for path in list(paths):
            fewer = [other for other in paths if other != path]
            if _carried(stack, block, [modules.get_submodule(other) for other in fewer], residual, entry) == carried:
                paths = fewer
        if paths and _each_matters(stack, block, [modules.get_submodule(path) for path in paths], residual, entry):
            return _Found(kinds(modules, paths, calls), carried)
    # MiniMax normalises the stream itself inside the block, so no constant is left of it. Then it has to do that
    # position by position, with nothing but norms around the modules taken for components.
    top = levels[0]
    silent = [modules.get_submodule(path) for path in top]
    others = [
        name for name, child in modules.named_children() if name not in top and any(True for _ in child.parameters())
    ]
    if (
        len(top) > 1
        and all(is_norm(modules.get_submodule(name)) for name in others)
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
    """The block's output with modules ablated; None where zeros in their place break the block, so that they are none of its
    components."""
    try:
        with zeroed(*silent):
            return stack.call(block, residual, entry.arguments)
    except (RuntimeError, TypeError, AttributeError, IndexError):
        return None


def _carried(
    stack: BlockStack, block: int, silent: Sequence[nn.Module], residual: Tensor, entry: Entry
) -> float | None:
    """What the block multiplies the residual stream by with the modules ablated; None where it does more to it."""
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
    """Whether ablating any one of the modules changes the block's output."""
    whole = stack.call(block, residual, entry.arguments)
    outputs = [_output(stack, block, [module], residual, entry) for module in modules]
    return all(output is not None and not torch.equal(output, whole) for output in outputs)


def _local(stack: BlockStack, block: int, silent: Sequence[nn.Module], residual: Tensor, entry: Entry) -> bool:
    """Whether, with the modules ablated, the block's output at a position depends on the stream at that position alone."""
    other = residual.clone()
    other[:, 0] += 1
    outputs = [_output(stack, block, silent, x, entry) for x in (residual, other)]
    one, changed = outputs
    return one is not None and changed is not None and bool(one.any()) and torch.equal(one[:, 1:], changed[:, 1:])


def _outputs(
    stack: BlockStack, parts: Sequence[Parts], residuals: list[Tensor], entry: Entry
) -> dict[nn.Module, Output]:
    """The plain forms. None for blocks that store something for later blocks: that is made inside their attention, which has
    to run even where its output is zeroed."""
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
    with hooked(after=[(module, look) for module in modules]):
        for block, residual in enumerate(residuals):
            stack.call(block, residual, entry.arguments)
    return found


def _layout(stack: BlockStack, components: Components, residuals: list[Tensor], entry: Entry) -> str:
    """The layout of the first block that has both an attention and an MLP: parallel if ablating the attention leaves what the
    MLP reads as it was."""
    both = [block for block, parts in enumerate(components.parts) if ATTN in parts and MLP in parts]
    if not both:
        return SINGLE
    block = both[0]

    def mlp_input(*silent: str) -> Tensor:
        read: list[Tensor] = []

        def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            read.append(first_tensor(args, kwargs).clone())

        with hooked(before=[(components.parts[block][MLP][0], keep)]), components.silenced(Step(block, silent)):
            stack.call(block, residuals[block], entry.arguments)
        return read[0]

    return PARALLEL if torch.equal(mlp_input(), mlp_input(ATTN)) else SEQUENTIAL

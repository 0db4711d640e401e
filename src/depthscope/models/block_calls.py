"""The inputs and outputs of a block's modules in one call: which modules may be components, and of which kind."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from depthscope.models.components import first_tensor, is_norm
from depthscope.models.hooks import hooked
from depthscope.models.maps import Called
from depthscope.models.stack import BlockStack, Entry
from depthscope.routes import ATTN, COMPONENTS, MLP, PLE, SSM

ATTENTION = re.compile("attn|attention", re.IGNORECASE)
PER_LAYER = re.compile("per_layer", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    inside: int
    """How many modules of the block were running around it."""


def calls_of(stack: BlockStack, block: int, residual: Tensor, entry: Entry) -> dict[str, Call]:
    """The calls of a block's modules, by path, in the order they begin; of a module called several times the first call."""
    began: dict[str, Call] = {}
    open_: list[str] = []

    def before(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            began.setdefault(name, Call(args, kwargs, None, len(open_)))
            open_.append(name)

        return hook

    def after(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
            open_.remove(name)  # by name: of a module that is called within its own call, either entry will do
            if began[name].output is None:
                began[name] = replace(began[name], output=output)

        return hook

    inner = [(name, module) for name, module in stack.blocks[block].named_modules() if name]
    with hooked(
        before=[(module, before(name)) for name, module in inner],
        after=[(module, after(name)) for name, module in inner],
    ):
        stack.call(block, residual, entry.arguments)
    return began


def single_calls(
    stack: BlockStack, block: int, containers: Sequence[nn.Module], entry: Entry
) -> dict[nn.Module, Called]:
    """The call of every module of these that is called once when the block is, on the embedding of `entry`."""
    seen: dict[nn.Module, list[Called]] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        made = output[0] if isinstance(output, tuple) else output
        if isinstance(made, Tensor) and any(isinstance(value, Tensor) for value in (*args, *kwargs.values())):
            # Cloned: Falcon adds the attention's output into the MLP's, in place.
            seen.setdefault(module, []).append(Called(args, kwargs, made.clone()))

    # Once each: a module that two parents share would be hooked twice, and look as if it was called twice.
    modules = dict.fromkeys(inner for container in containers for inner in container.modules())
    with hooked(after=[(module, keep) for module in modules]):
        stack.call_alone(block, entry)
    return {module: calls[0] for module, calls in seen.items() if len(calls) == 1}


def writers(block: nn.Module, calls: Mapping[str, Call], level: int, residual: Tensor) -> list[str]:
    """Modules at a depth of calls (or above it, where nothing is called inside them) whose output is as wide as the residual
    stream at every position."""
    inner = {name for name in calls for other in calls if other.startswith(f"{name}.")}
    found = []
    for name, call in calls.items():
        module = block.get_submodule(name)
        made = call.output[0] if isinstance(call.output, tuple) else call.output
        # By the number of elements: OPT's MLP lays batch and positions end to end.
        wide = isinstance(made, Tensor) and made.is_floating_point() and made.numel() == residual.numel()
        wide = wide and made.shape[-1] == residual.shape[-1]
        at_level = call.inside == level - 1 or (call.inside < level - 1 and name not in inner)
        if at_level and wide and not is_norm(module) and any(True for _ in module.parameters()):
            found.append(name)
    return found


def kinds(block: nn.Module, paths: Sequence[str], calls: Mapping[str, Call]) -> dict[str, tuple[str, ...]]:
    """Which component each of the modules is: those that mix tokens are the attention, or next to one a state-space mixer."""
    mixers = [path for path in paths if _mixes_tokens(block.get_submodule(path), calls[path])]
    attention = [path for path in mixers if ATTENTION.search(path)] if len(mixers) > 1 else mixers
    attention = attention or mixers[:1]
    others = [path for path in paths if path not in mixers]
    per_layer = [path for path in others if PER_LAYER.search(path)]
    sorted_ = {
        ATTN: attention,
        SSM: [path for path in mixers if path not in attention],
        MLP: [path for path in others if path not in per_layer],
        PLE: per_layer,
    }
    return {kind: tuple(sorted_[kind]) for kind in COMPONENTS if sorted_[kind]}


def _mixes_tokens(module: nn.Module, call: Call) -> bool:
    """Whether a module's output at later positions depends on its input at the first, or on a mapping that blocks share: an
    attention that reads another block's keys (Gemma 4) passes its own input to no other position, and mixes tokens still."""
    if any(isinstance(value, Mapping) for value in (*call.args, *call.kwargs.values())):
        return True
    given = first_tensor(call.args, call.kwargs)
    other = given.clone()
    other.view(-1, given.shape[-1])[0] += 1

    def output(tensor: Tensor) -> Tensor:
        args = tuple(tensor if value is given else value for value in call.args)
        made = module(*args, **{name: tensor if value is given else value for name, value in call.kwargs.items()})
        return (made[0] if isinstance(made, tuple) else made).flatten(0, -2)[1:]

    return not torch.equal(output(given), output(other))

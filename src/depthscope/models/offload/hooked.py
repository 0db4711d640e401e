"""Weights that accelerate's hooks bring in for each call of a module, and that are read at other times too."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn


def devices_of(hf: nn.Module) -> list[str]:
    """The devices of a model in parts, disk among them; empty for any other model."""
    found: Any = getattr(hf, "hf_device_map", None) or {}
    return sorted({str(place) for place in found.values()}) if len(set(map(str, found.values()))) > 1 else []


def kept_elsewhere(module: nn.Module) -> list[tuple[nn.Module, Any]]:
    """The modules inside whose weights accelerate brings in for each call, with the hooks that do."""
    hooks = ((one, hook) for one in module.modules() for hook in _hooks(one))
    return [(one, hook) for one, hook in hooks if getattr(hook, "offload", False)]


def _hooks(module: nn.Module) -> Sequence[Any]:
    hook = getattr(module, "_hf_hook", None)
    return () if hook is None else getattr(hook, "hooks", (hook,))


@contextmanager
def present(module: nn.Module) -> Iterator[None]:
    """While open, the weights of a module are where they are computed with, and stay there between calls."""
    held = kept_elsewhere(module)
    try:
        for one, hook in held:
            hook.pre_forward(one)
            hook.offload = False
        yield
    finally:
        for one, hook in held:
            if not hook.offload:
                hook.offload = True
                hook.post_forward(one, None)

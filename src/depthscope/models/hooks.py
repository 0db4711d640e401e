"""Replacing a module's forward for a while, and putting back exactly what was there.

People patch models by assigning to a module's `forward`, and libraries do (accelerate's offloading). What stood in the
module's own dictionary before is what stands there afterwards.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

_NOTHING = object()


def patched(module: nn.Module) -> bool:
    """Whether somebody has replaced the module's forward, so that its class does not say what it computes."""
    return "forward" in vars(module)


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> Callable[[], None]:
    """Replace a module's forward; hooks around it still run. Returns what puts back the one before."""
    before = vars(module).get("forward", _NOTHING)
    module.forward = forward

    def put_back() -> None:
        if before is _NOTHING:
            vars(module).pop("forward", None)
        else:
            module.forward = before  # pyright: ignore[reportAttributeAccessIssue]

    return put_back


@contextmanager
def replaced_forward(modules: Sequence[nn.Module], forwards: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """The forward of each module replaced for the time of the context."""
    undo: list[Callable[[], None]] = []
    try:
        for module, forward in zip(modules, forwards, strict=True):
            undo.append(replace_forward(module, forward))
        yield
    finally:
        for put_back in reversed(undo):
            put_back()

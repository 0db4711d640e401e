"""Temporary changes to a model: hooks on its modules, and attributes that are replaced. Both are contexts that undo themselves.

An error, or closing a generator that holds one, ends a context as its regular end does, so no hook of ours stays behind. No
other module of depthscope registers hooks; a test enforces that.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from inspect import isdatadescriptor
from typing import Any

from torch import nn

Hooks = Iterable[tuple[nn.Module, Callable[..., Any]]]
"""Modules, each with a function to call. A module may come several times: its functions are called in this order."""

_NOTHING = object()


@contextmanager
def hooked(*, before: Hooks = (), after: Hooks = ()) -> Iterator[None]:
    """While open, functions are called around each call of their modules.

    Those of `before` get (module, args, kwargs) and may return another (args, kwargs); those of `after` get (module, args,
    kwargs, output) and may return another output.
    """
    with ExitStack() as undo:
        for module, function in before:
            undo.callback(module.register_forward_pre_hook(function, with_kwargs=True).remove)
        for module, function in after:
            undo.callback(module.register_forward_hook(function, with_kwargs=True).remove)
        yield


def hook_for_good(module: nn.Module, function: Callable[..., Any]) -> None:
    """Call a function with (module, args, kwargs) before each call of a module, and before all other hooks, as long as the
    module lives: for models that depthscope itself has loaded, never for one that was handed in.
    """
    module.register_forward_pre_hook(function, prepend=True, with_kwargs=True)


@contextmanager
def replaced(holders: Sequence[Any], name: str, values: Sequence[Any]) -> Iterator[None]:
    """While open, the attribute `name` of each holder has another value.

    What stood in a holder's own dictionary before is what stands there afterwards: an attribute that came from its class comes
    from there again. Of modules whose `forward` is replaced the hooks still run.
    """
    # All are read before any is set: setting one may change others (transformers' configurations hand some settings down to
    # the configurations within them). For the same reason they are put back in the order they were set, the outer ones first.
    own = [_own(holder, name) for holder in holders]
    changed: list[Any] = []
    try:
        for holder, value in zip(holders, values, strict=True):
            setattr(holder, name, value)
            changed.append(holder)
        yield
    finally:
        for holder, value in zip(changed, own, strict=False):
            if value is _NOTHING:
                vars(holder).pop(name, None)
            else:
                setattr(holder, name, value)


def patched(module: nn.Module) -> bool:
    """Whether somebody has replaced the module's forward, so that its class does not say what it computes.

    People patch models by assigning to a module's `forward`, and libraries do (accelerate's offloading).
    """
    return "forward" in vars(module)


def _own(holder: Any, name: str) -> Any:
    """What assigning the attribute would overwrite; _NOTHING where it only comes from the class."""
    if isdatadescriptor(getattr(type(holder), name, None)):  # a property, or a slot: never in the dictionary
        return getattr(holder, name, None)
    return vars(holder).get(name, _NOTHING)

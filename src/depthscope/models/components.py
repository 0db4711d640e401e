"""The components of a block, which add to the residual stream: where they are, and ablating them.

Ablating a component (zero ablation) replaces its output by zeros for a while. Where the output has the plain form that nearly
all have, the component is not computed at all. Which modules they are is checked on the loaded model (`components_search`): a
block with all of them ablated passes the residual stream on, and each one alone changes it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from depthscope.models.hooks import hooked, replaced
from depthscope.routes import ATTN, COMPONENTS, MLP, Step

SEQUENTIAL, PARALLEL, SINGLE = "sequential", "parallel", "one component per block"


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
        # new_zeros takes dtype and device from the input, which `_outputs` of components_search has checked to be the output's.
        given = first_tensor(args, kwargs)
        nothing = given.new_zeros(*given.shape[:-1], self.width)
        return (nothing, *(None,) * (self.length - 1)) if self.length else nothing


Parts = Mapping[str, tuple[nn.Module, ...]]
"""Of one block: some of COMPONENTS, with the modules whose outputs are added (an MLP may be experts and a dense part)."""


@dataclass(frozen=True, slots=True)
class Components:
    """The modules whose outputs are each block's components, and how those are laid out."""

    parts: tuple[Parts, ...]
    """A mapping per block, in the order of COMPONENTS."""
    paths: Mapping[str, str]
    """Component -> module paths inside a block; several, with slashes between them, where blocks differ."""
    carried: tuple[float | None, ...]
    """What a block with all of its components ablated multiplies the residual stream by: 1 nearly always; None where the
    stream is normalised on the way (MiniMax), so that the block's output is not a sum."""
    layout: str
    """Whether the MLP reads what the attention wrote (`sequential`) or the same residual stream (`parallel`)."""
    outputs: Mapping[nn.Module, Output]
    """The form of what each module gives, where it is a plain one."""

    @property
    def parallel(self) -> bool:
        """Whether attention and MLP read the same residual stream."""
        return self.layout == PARALLEL

    @property
    def kinds(self) -> tuple[str, ...]:
        """Those that some block has."""
        return tuple(kind for kind in COMPONENTS if any(kind in parts for parts in self.parts))

    @property
    def pairs(self) -> bool:
        """Whether every block is the residual stream plus one attention and one MLP."""
        return all(
            tuple(parts) == (ATTN, MLP) and all(len(modules) == 1 for modules in parts.values()) and carried == 1
            for parts, carried in zip(self.parts, self.carried, strict=True)
        )

    @contextmanager
    def silenced(self, step: Step) -> Iterator[None]:
        """While open, the components that the step ablates give zeros in the step's block."""
        # A hook zeroes an output after it was computed; a replaced forward saves the work, but needs to know the output's form.
        silent = [module for kind in step.silent for module in self.parts[step.block][kind]]
        skipped = [module for module in silent if module in self.outputs]
        with (
            zeroed(*(module for module in silent if module not in self.outputs)),
            replaced(skipped, "forward", [self.outputs[module].zeros for module in skipped]),
        ):
            yield


@contextmanager
def zeroed(*modules: nn.Module) -> Iterator[None]:
    """While open, the modules' outputs are replaced by zeros."""
    with hooked(after=[(module, _zero) for module in modules]):
        yield


def _zero(_module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        # The rest stays: blocks unpack it by length, and attention weights behind the output are not added to the stream.
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)


def is_norm(module: nn.Module) -> bool:
    """Whether a module's class calls itself a norm."""
    return "norm" in type(module).__name__.lower()


def first_tensor(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The first tensor a module was given."""
    return next(given for given in (*args, *kwargs.values()) if isinstance(given, Tensor))

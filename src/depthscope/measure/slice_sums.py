"""What a slice of logits contributes to a next-token distribution: its maximum m, Σ exp(z − m) and Σ (z − m) exp(z − m).

Two forms of one definition, both float32 sums. The plain one is made of torch's own fused passes and is there everywhere.
The compiled one reads each logit twice and writes nothing; torch.compile makes it where there is a compiler, in some
seconds, so it is for work that takes minutes. They differ by float32 rounding.
"""

import inspect
import logging
import warnings
from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float32
from torch import Tensor

from depthscope.shapes import LogitSlice

Column = Float32[Tensor, " tokens"]
SliceSums = Callable[[LogitSlice], tuple[Column, Column, Column]]

COMPILE_FROM = 1e11
"""Logits to be reduced from which compiling pays: on two cores it saves about 0.3 ns of each, and takes about 10 s."""
FEW = 16
"""Up to so many tokens the plain form is as fast, and a compiled one would be made for them alone."""


def plain(logits: LogitSlice) -> tuple[Column, Column, Column]:
    """Maximum, Σ exp(z − m), Σ (z − m) exp(z − m) of each row of [tokens, slice] logits, which may be overwritten.

    softmax is torch's one pass that has a fast vectorised exp on CPUs. Its largest probability is 1 / Σ exp(z − m), so
    nothing else needs an exp.
    """
    highest = logits.amax(-1, keepdim=True).float()
    below = logits.float().sub_(highest)
    probabilities = below.softmax(-1)
    total = probabilities.amax(-1).reciprocal()
    return highest[:, 0], total, probabilities.mul_(below).sum(-1) * total


def _definition(logits: LogitSlice) -> tuple[Column, Column, Column]:
    highest = logits.amax(-1, keepdim=True).float()
    below = logits.float() - highest
    weights = below.exp()
    return highest[:, 0], weights.sum(-1), (weights * below).sum(-1)


def for_work(logits: float, device: str = "cpu") -> tuple[SliceSums, str]:
    """The form for reducing so many logits in all, and why it is the plain one where that is not for want of work."""
    if logits < COMPILE_FROM:
        return plain, ""
    return compiled(device)


@cache
def compiled(device: str = "cpu") -> tuple[SliceSums, str]:
    """The compiled form, tried on the device before it is given out; the plain one, and why, where it cannot be made."""
    # The tests' checks of shapes are wrapped around the definition; a compiler cannot see through them.
    made = torch.compile(inspect.unwrap(_definition), dynamic=True, fullgraph=True)

    def sums(logits: LogitSlice) -> tuple[Column, Column, Column]:
        if logits.shape[0] <= FEW:
            return plain(logits)
        with torch._C.DisableTorchFunction():  # the compiler is not to look at who else answers for torch
            return made(logits)

    logger = logging.getLogger("torch._inductor")
    level = logger.level
    try:
        logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler's own, about torch's insides
            sums(torch.zeros(2 * FEW, 40, device=device))
    except (
        Exception
    ) as error:  # no compiler, no place to write, a compiler too old: whatever it is, there is the plain form
        return plain, f"reductions are not compiled: {type(error).__name__}"
    finally:
        logger.setLevel(level)
    return sums, ""

"""How the passes over the vocabulary are computed: one definition, several forms, equal up to float32 rounding.

A slice of logits contributes its maximum m, Σ exp(z − m), Σ (z − m) exp(z − m) and, if that is free, the
index of its first maximum. The forms:

plain     torch's fused passes; everywhere.
compiled  reads each logit twice and writes nothing; built by torch.compile where there is a compiler, which takes some
          seconds, so it is for work that takes minutes.
triton    reads each logit once (`triton_passes`); on CUDA, where the computations per row of d_model are fused too.

On a CPU an argmax costs more than all the sums, so the forms for CPUs return no index and `divergence` searches the relevant
slices. On an accelerator searching would wait for the device, so the forms for accelerators return it.
"""

import inspect
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from depthscope.shapes import Hidden, LogitSlice, PerTokenIndex

Column = Float32[Tensor, " tokens"]
Place = Int64[Tensor, " tokens"]
SliceSums = Callable[[LogitSlice], tuple[Column, Column, Column, Place | None]]

COMPILE_FROM = 1e11
"""Number of logits from which compiling pays off: on two cores it saves about 0.3 ns per logit, and takes about 10 s."""
FEW = 16
"""Up to this many tokens the plain form is as fast, and a separate compilation would be needed for them."""


RowProducts = Callable[
    [Hidden, Hidden, Tensor, Tensor, PerTokenIndex], tuple[Float64[Tensor, " edited"], Float32[Tensor, " edited"]]
]
"""(own, hidden, Wᵀp, W, targets) -> for each row of `hidden` the cross term (h_p − h_q) · Wᵀp and the next token's product
h_q · W[target], in one read. `hidden` holds the rows of `own`, edited, one or more times in sequence."""
CappedCross = Callable[[LogitSlice, LogitSlice, Float64[Tensor, " tokens"]], Column]
"""(own logits, logits, log normaliser) -> Σ p (z_p − z_q) over a slice, p = exp(z_p − log normaliser), per token."""


@dataclass(frozen=True, slots=True)
class Reductions:
    """One form of all passes; those that are None are computed with torch operations in `divergence`."""

    name: str
    slice_sums: SliceSums
    places: bool = False
    """Whether `slice_sums` returns the index of the maximum."""
    row_products: RowProducts | None = None
    capped_cross: CappedCross | None = None


def _plain(logits: LogitSlice) -> tuple[Column, Column, Column, None]:
    """Maximum, Σ exp(z − m), Σ (z − m) exp(z − m) of each row of [tokens, slice] logits, which may be overwritten.

    softmax is the only torch operation here with a fast vectorised exp on CPUs. Its largest probability is
    1 / Σ exp(z − m), so no other exp is needed.
    """
    highest = logits.amax(-1, keepdim=True).float()
    below = logits.float().sub_(highest)
    probabilities = below.softmax(-1)
    total = probabilities.amax(-1).reciprocal()
    return highest[:, 0], total, probabilities.mul_(below).sum(-1) * total, None


def _plain_with_place(logits: LogitSlice) -> tuple[Column, Column, Column, Place]:
    place = logits.argmax(-1)  # before the sums, which may overwrite
    return *_plain(logits)[:3], place


def _definition(logits: LogitSlice) -> tuple[Column, Column, Column, None]:
    highest = logits.amax(-1, keepdim=True).float()
    below = logits.float() - highest
    weights = below.exp()
    return highest[:, 0], weights.sum(-1), (weights * below).sum(-1), None


def _definition_with_place(logits: LogitSlice) -> tuple[Column, Column, Column, Place]:
    return *inspect.unwrap(_definition)(logits)[:3], logits.argmax(-1)


PLAIN = Reductions("plain", _plain)
PLAIN_WITH_PLACE = Reductions("plain", _plain_with_place, places=True)
DEFINITION = Reductions("by definition", _definition)
DEFINITION_WITH_PLACE = Reductions("by definition", _definition_with_place, places=True)


def reductions_for(device: torch.device, logits: float = 0.0, preferred: str = "triton") -> tuple[Reductions, str]:
    """The form for reducing this many logits in total on a device, and why the preferred form is unavailable, if it is.

    On a CPU the choice is between plain and compiled. On CUDA `preferred` (measured: `sizes`) is tried first.
    """
    if device.type == "cpu":
        return compiled("cpu") if logits >= COMPILE_FROM else (PLAIN, "")
    why = ""
    if device.type == "cuda" and preferred == "triton":
        found, why = fused(str(device))
        if found is not None:
            return found, ""
    if logits >= COMPILE_FROM or preferred == "compiled":
        made, problem = compiled(str(device))
        return made, "; ".join(filter(None, (why, problem)))
    return PLAIN_WITH_PLACE, why


@cache
def compiled(device: str = "cpu") -> tuple[Reductions, str]:
    """The compiled form, tried on the device first; the plain form, and the reason, if it cannot be compiled."""
    on_cpu = torch.device(device).type == "cpu"
    fallback, definition = (PLAIN, _definition) if on_cpu else (PLAIN_WITH_PLACE, _definition_with_place)
    # In tests the definition is wrapped in shape checks, which a compiler cannot trace.
    made = torch.compile(inspect.unwrap(definition), dynamic=True, fullgraph=True)

    def sums(logits: LogitSlice) -> tuple[Column, Column, Column, Place | None]:
        if logits.shape[0] <= FEW:
            return fallback.slice_sums(logits)
        with torch._C.DisableTorchFunction():  # the compiler must not see the torch function mode in use here
            return made(logits)

    logger = logging.getLogger("torch._inductor")
    level = logger.level
    try:
        logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the compiler warns about torch internals
            sums(torch.zeros(2 * FEW, 40, device=device))
    except Exception as error:  # no compiler, an old one, nowhere to write: in any case the plain form works
        return fallback, f"reductions are not compiled: {type(error).__name__}"
    finally:
        logger.setLevel(level)
    return Reductions("compiled", sums, places=not on_cpu), ""


@cache
def fused(device: str) -> tuple[Reductions | None, str]:
    """The Triton form, tested on the device against the plain form; None, and the reason, if it cannot be used."""
    try:
        from depthscope.engine import triton_passes
    except ImportError:
        return None, "triton is not installed"
    form = Reductions("triton", triton_passes.slice_sums, True, triton_passes.row_products, triton_passes.capped_cross)
    try:
        problem = _disagreement(form, device)
    except Exception as error:  # an old driver, compiler or card: in any case the other forms work
        return None, f"triton cannot be used here: {type(error).__name__}"
    return (None, problem) if problem else (form, "")


def _disagreement(form: Reductions, device: str) -> str:
    """How a form differs from the plain one on small random logits; empty if it does not."""
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        logits = (4 * torch.randn(37, 1500, generator=generator)).to(device, dtype)
        for ours, plain in zip(form.slice_sums(logits.clone()), _plain_with_place(logits.clone()), strict=True):
            if ours is None or not torch.allclose(ours.double(), plain.double(), rtol=1e-4, atol=1e-4):
                return f"triton's sums were wrong in a test with {dtype}"
    return ""

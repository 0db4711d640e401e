"""Faster forms of operations that a model's own code asks torch for, on a CPU.

Nothing of a block is re-implemented: its code runs as it is, and while `Kernels` are active two kinds of calls are computed
differently, for every family alike.

Matrix products with the model's weights go to oneDNN with the weights packed, that is rearranged for it once. In float32 that
is 1.2 to 1.4 times as fast as the product torch would call on an AVX-512 machine (the two floors of `make bench`). A token's
result does not depend on how many others are computed with it. Results differ from torch's own within float32 rounding, because
sums are added in another order. The packed copies take as much memory again as the weights they are of, so a model is
packed only if that is at most half of the memory available.

The tanh form of GELU, x · (1 + tanh u) / 2, is computed in float32 as x · σ(2u), the same function: torch has a fast
vectorised exp, and no fast tanh. In other dtypes each of these operations would round, and on an accelerator each would be a
pass over its memory: there torch's fused GELU is used.
"""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, no_type_check

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers.activations import FastGELUActivation, GELUTanh, NewGELUActivation
from transformers.models.bloom.modeling_bloom import BloomGelu

from depthscope.models.hooks import patched, replaced
from depthscope.models.memory import available_memory
from depthscope.models.packed import as_stored

TANH_GELU = (NewGELUActivation, FastGELUActivation, GELUTanh, BloomGelu)
PACKED_DTYPES = (torch.float32, torch.bfloat16)
SHARE = 0.5
"""Share of the available memory that packed weights may take."""
EXPECTED_ROWS = 256
"""The number of rows that oneDNN packs weights for. Measured: from 24 to 2,048 rows it makes no difference."""


class Kernels:
    """The fast forms of one model's operations, used while a `with kernels.active():` is open in the same thread.

    Weights are packed the first time they are multiplied with. Whatever is not the model's own weight in memory (streamed
    blocks, experts' tensors) is multiplied as ever. Weights must not be changed between packing and use: whatever measures
    from beginning to end (a study, `ds.measure`, `RouteMeter.measure`) begins with `forget`.
    """

    def __init__(self, model: nn.Module, unembedding: nn.Module, streamed: Iterable[nn.Module] = ()) -> None:
        """`streamed`: blocks whose weights are not always in memory; they are never packed."""
        passing = {parameter for block in streamed for parameter in block.parameters()}
        weights = [
            parameter
            for parameter in model.parameters()
            if parameter.device.type == "cpu"
            and parameter.dtype in PACKED_DTYPES
            and as_stored(parameter)
            and parameter not in passing
        ]
        self.note = _why_not([weight for weight in weights if weight.dim() == 2])
        """Why weights are not packed; empty where they are."""
        self._stored = set() if self.note else {weight.untyped_storage().data_ptr() for weight in weights}
        self._whole_unembedding = unembedding.weight
        self._packed: dict[tuple[Any, ...], Tensor] = {}
        self._activations: list[nn.Module] = [module for module in model.modules() if isinstance(module, TANH_GELU)]
        self._replaced = ExitStack()
        self._lock, self._users = threading.Lock(), 0
        self._thread = threading.local()

    @contextmanager
    def active(self) -> Iterator[None]:
        """While open, this thread's calls to torch take the fast form. May be opened within itself."""
        if getattr(self._thread, "inside", False):
            yield
            return
        self._thread.inside = True
        self._use(1)
        try:
            # Without packed weights the mode has nothing to do, and would cost a microsecond for each call to torch.
            with (
                _Answers({functional.linear: self._linear, torch.addmm: self._addmm}) if self._stored else nullcontext()
            ):
                yield
        finally:
            self._use(-1)
            self._thread.inside = False

    def _use(self, change: int) -> None:
        """Activations are the model's modules, shared by all threads: the first user replaces them, the last one restores."""
        with self._lock:
            self._users += change
            if self._users == 1 and change > 0:
                # A forward that somebody patched is part of the model that is measured: it stays.
                own = [module for module in self._activations if not patched(module)]
                self._replaced.enter_context(replaced(own, "forward", [tanh_gelu] * len(own)))
            elif self._users == 0:
                self._replaced.close()

    def forget(self) -> None:
        """Pack weights again when they are next used: they may have been changed in place."""
        self._packed.clear()

    # Parameters are named as torch names them: they may be given by name.
    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        ready = self._pack(weight)
        return functional.linear(input, weight, bias) if ready is None else product(input, ready, bias)

    def _addmm(self, input: Tensor, mat1: Tensor, mat2: Tensor, **more: Any) -> Tensor:
        """GPT-2's Conv1D: `input` is its bias and `mat2` its weight, shaped [in, out]."""
        ready = None if more or input.dim() != 1 else self._pack(mat2.T)
        return torch.addmm(input, mat1, mat2, **more) if ready is None else product(mat1, ready, input)

    def _pack(self, weight: Tensor) -> Tensor | None:
        """The packed form of a weight shaped [out, in], or of a run of its rows; None where it is not packed."""
        # By storage, not by identity: models multiply with views of their parameters (transposed, or cut into slices).
        if weight.device.type != "cpu" or not as_stored(weight):
            return None
        if weight.untyped_storage().data_ptr() not in self._stored:
            return None
        if weight is self._whole_unembedding:  # read in slices everywhere that matters; whole, it would be packed twice
            return None
        key = (weight.data_ptr(), weight.shape, weight.stride())
        if key not in self._packed:
            self._packed[key] = packed(weight)
        return self._packed[key]


class _Answers(TorchFunctionMode):
    """Calls other functions in place of some of torch's."""

    def __init__(self, answers: Mapping[Any, Callable[..., Tensor]]) -> None:
        super().__init__()
        self.answers = answers

    @no_type_check  # called for every attribute of a tensor: checks under test cost more than the work, and all is Any
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch in place of `func`."""
        return self.answers.get(func, func)(*args, **(kwargs or {}))


LINEAR, CUBIC = 2 * math.sqrt(2 / math.pi), 2 * math.sqrt(2 / math.pi) * 0.044715
"""2u = LINEAR · x + CUBIC · x³ in the tanh form of GELU (Hendrycks and Gimpel 2016)."""
_LINEAR = torch.tensor(LINEAR)


def tanh_gelu(given: Tensor) -> Tensor:
    """GELU in its tanh form, without gradients."""
    if given.dtype != torch.float32 or given.device.type != "cpu":
        return functional.gelu(given, approximate="tanh")
    doubled = torch.addcmul(_LINEAR, given, given, value=CUBIC)  # of several operations the one with the fewest passes
    return doubled.mul_(given).sigmoid_().mul_(given)


def packed(weight: Tensor) -> Tensor:
    """A weight shaped [out, in] as oneDNN multiplies with it fastest, for `product` alone."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), EXPECTED_ROWS)


def product(given: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """given @ Wᵀ + bias with a packed weight."""
    return torch.ops.mkldnn._linear_pointwise(given, weight, bias, "none", [], "")


def _why_not(weights: list[nn.Parameter]) -> str:
    if not weights:
        return "no float32 or bfloat16 weights in this machine's memory"
    if broken := next((why for dtype in {w.dtype for w in weights} if (why := _broken(dtype))), ""):
        return broken
    asked, there = sum(w.nbytes for w in weights), available_memory()
    if there is not None and asked > SHARE * there:
        return (
            f"packed weights would take {asked / 2**30:.1f} GiB, more than half of the {there / 2**30:.1f} GiB "
            "of memory available"
        )
    return ""


def _broken(dtype: torch.dtype) -> str:
    """Try a small product: builds of torch and processors differ in what they have."""
    generator = torch.Generator().manual_seed(0)
    given, weight = (torch.randn(5, 48, generator=generator).to(dtype) for _ in range(2))
    try:
        ours = product(given, packed(weight))
    except (AttributeError, RuntimeError, NotImplementedError):
        return f"this build of torch has no packed {dtype} products for this processor".replace("torch.", "", 1)
    close = torch.allclose(ours.float(), (given.float() @ weight.float().T), rtol=0.02, atol=0.1)
    return "" if close else "packed products came out wrong when tried"

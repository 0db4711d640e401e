"""Linear maps as they act: what analysis of weights may read.

A stored weight need not be what the module computes with: quantised weights are packed, adapters add to them, people patch
modules. So the weight of anything but an untouched torch layer is measured, by feeding the module unit vectors, and every
weight is checked on the module's own input before it is used.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from depthscope.errors import UnsupportedError
from depthscope.models.hooks import patched
from depthscope.models.packed import EIGHT_BITS, as_stored, rounds_input

UNIT_VECTORS = 1024
"""Fed to a module at once."""


def rounding(dtype: torch.dtype) -> float:
    """The largest error of a computation in a dtype that is taken for rounding, as a share of its largest output."""
    return {torch.float64: 1e-9, torch.float32: 1e-4}.get(dtype, 0.02)


def allowed_error(module: nn.Module, given: Tensor) -> float:
    """The same for a module on its input: more where the module rounds the input (`packed`)."""
    own = rounding(given.dtype)
    return max(own, EIGHT_BITS) if rounds_input(module, given.shape[-1], given.dtype) else own


@dataclass(frozen=True, slots=True)
class LinearMap:
    """y = W x + b."""

    weight: Float[Tensor, "out in"]
    bias: Float[Tensor, " out"] | None


@dataclass(frozen=True, slots=True)
class Called:
    """A module's call: what it was given and what came out."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor

    @property
    def given(self) -> Tensor:
        """The first tensor it was given."""
        return next(value for value in (*self.args, *self.kwargs.values()) if isinstance(value, Tensor))


def plain(module: nn.Module) -> bool:
    """Whether a module computes with its `weight` as it stands: torch's Linear or GPT-2's Conv1D, and nothing on top."""
    if not isinstance(module, nn.Linear | Conv1D) or type(module) not in (nn.Linear, Conv1D):
        return False
    touched = patched(module) or module._forward_hooks or module._forward_pre_hooks
    return not touched and as_stored(module.weight)


@torch.inference_mode()
def linear_map(module: nn.Module, called: Called) -> LinearMap:
    """The map a module computes, checked on one of its calls.

    Raises UnsupportedError where it is not linear in its input, or its output is not what its weight gives.
    """
    if plain(module):
        layer: Any = module
        weight = layer.weight.detach()
        found = LinearMap(
            weight.T if isinstance(module, Conv1D) else weight, None if layer.bias is None else layer.bias
        )
    else:
        found = by_unit_vectors(module, called.given)
    ours = called.given.float() @ found.weight.float().T + (0 if found.bias is None else found.bias.float())
    allowed = allowed_error(module, called.given) * max(float(called.output.abs().max()), 1e-6)
    if ours.shape != called.output.shape or not float((ours - called.output.float()).abs().max()) <= allowed:
        raise UnsupportedError(
            f"{type(module).__name__}: its weights times its input are not its output, so they cannot be read"
        )
    return found


def by_unit_vectors(module: nn.Module, given: Tensor) -> LinearMap:
    """What a linear module does to each unit vector, and to zero. `given`: a tensor of the width, dtype and device it takes."""
    width = given.shape[-1]
    rounded = rounds_input(module, width, given.dtype)
    # f(0) is the bias, and is taken off every column: W is all that is linear.
    zero = module(given.new_zeros(1, width))[0]
    columns = []
    for start in range(0, width, UNIT_VECTORS):
        units = given.new_zeros(min(UNIT_VECTORS, width - start), width)
        units[torch.arange(len(units)), torch.arange(start, start + len(units))] = 1
        made = module(units)
        # Steps between −128 and 127 round 1 down and −1 up in size: half of the difference has neither error.
        columns.append((made - module(-units)) / 2 if rounded else made - zero)
    return LinearMap(torch.cat(columns).T, zero)


def outermost(module: nn.Module, calls: Mapping[nn.Module, Called]) -> nn.Module | None:
    """The outermost module in `module`, or itself, that has the same output and is linear: for an MLP the map from neurons to
    output, adapters included. `calls`: a call of every module that was called once. None where there is none.
    """
    whole = calls[module].output.flatten()
    for candidate in module.modules():
        # Dropout and other modules without parameters pass their input on, so they have the MLP's output too.
        if candidate not in calls or not any(True for _ in candidate.parameters()):
            continue
        if torch.equal(calls[candidate].output.flatten(), whole) and is_linear(candidate, calls[candidate]):
            return candidate
    return None


@torch.inference_mode()
def is_linear(module: nn.Module, called: Called) -> bool:
    """Whether a module of one argument is linear: f(x) − f(0) doubles and adds up with its input."""
    if plain(module):
        return True
    if len(called.args) + len(called.kwargs) != 1:
        return False
    x = called.given
    try:
        zero = module(torch.zeros_like(x)).float()
        # Another input made of the same numbers: of the same size, and not a multiple.
        at, twice, other = (module(given).float() - zero for given in (x, 2 * x, x.flip(-1)))
        both = module(x + x.flip(-1)).float() - zero
    except (RuntimeError, TypeError, AttributeError, IndexError):
        return False
    allowed = 4 * allowed_error(module, x) * max(float(both.abs().max()), float(at.abs().max()), 1e-6)
    return float((twice - 2 * at).abs().max()) <= allowed and float((both - at - other).abs().max()) <= allowed


@torch.inference_mode()
def neurons_first(mlp: nn.Module, name: str, called: Called) -> bool:
    """Whether the experts' parameter `name` is [experts, neurons, d_model] and not [experts, d_model, neurons].

    Decided by the MLP's output with a single index of the second axis left: one direction of the residual stream, or the whole
    row of one neuron.
    """
    weight = mlp.get_parameter(name)
    one = torch.zeros_like(weight)
    one[:, 0] = 1
    others = {n: torch.zeros_like(p) for n, p in mlp.named_parameters() if n != name and _writes(n, p, called)}
    made = _given(mlp, {name: one, **others}, called) - _given(mlp, {name: torch.zeros_like(weight), **others}, called)
    return bool((made[..., 1:] != 0).any())


@torch.inference_mode()
def writes_with(mlp: nn.Module, names: list[str], called: Called) -> bool:
    """Whether these parameters, and nothing else, carry an MLP's neurons to its output: the output is linear in them, and the
    same for every token once they are zero."""
    own = {name: mlp.get_parameter(name).detach() for name in names}
    zero = _given(mlp, {name: torch.zeros_like(weight) for name, weight in own.items()}, called)
    # What is left may be a bias of each expert, which differs between tokens that go to different experts (gpt_oss).
    if not bool((zero.flatten(0, -2) == zero.flatten(0, -2)[:1]).all()):
        biases = {n: torch.zeros_like(p) for n, p in mlp.named_parameters() if n.endswith("bias")}
        if bool(_given(mlp, {name: torch.zeros_like(w) for name, w in own.items()} | biases, called).any()):
            return False
    other = {name: weight.flip(-1) for name, weight in own.items()}
    both = {name: weight + other[name] for name, weight in own.items()}
    first, second, sums = (_given(mlp, weights, called).float() - zero.float() for weights in (own, other, both))
    allowed = 4 * rounding(called.output.dtype) * max(float(first.abs().max()), float(second.abs().max()), 1e-6)
    return float((sums - first - second).abs().max()) <= allowed


def _writes(name: str, parameter: Tensor, called: Called) -> bool:
    """Whether a matrix may write to the residual stream: one of its sides is as wide."""
    return parameter.ndim in (2, 3) and "down" in name and called.output.shape[-1] in parameter.shape


def _given(mlp: nn.Module, parameters: dict[str, Tensor], called: Called) -> Tensor:
    output = functional_call(mlp, parameters, called.args, called.kwargs)
    return output[0] if isinstance(output, tuple) else output

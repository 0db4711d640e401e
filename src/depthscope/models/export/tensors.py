"""The tensors of an exported model: which of the model's own each is, and what is done to it on the way.

A block's tensors keep their names but for its number. What lies around the blocks stays as it is; a table with a part for each
layer (Gemma 4's per-layer inputs) gets the parts of the layers that are there. An ablated component is one whose output weights
and biases are zero: which parameters those are is found by trying, and believed only where the block then gives, bit for bit,
what it gives with the component's output replaced by zeros. Of an ablated head or neuron the weights are zero that the output
projection multiplies it with.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from transformers.core_model_loading import revert_weight_conversion
from transformers.pytorch_utils import Conv1D

from depthscope.errors import UnsupportedError
from depthscope.models.configuration import model_errors
from depthscope.models.export.target import Target
from depthscope.models.maps import plain
from depthscope.models.model import Model
from depthscope.models.quiet import quiet
from depthscope.models.stack import residual_of
from depthscope.models.state import copied
from depthscope.routes import ZERO, Step

State = dict[str, Tensor]
Zeros = tuple[int, tuple[int, ...]] | None
"""What of a parameter becomes zero: these places on an axis; None for all of it."""


@dataclass(frozen=True, slots=True)
class Part:
    """Tensors of the export that are written together: a block, or all that lies around the blocks.

    `names`: name in the export -> name in the model's state_dict.
    """

    block: int | None
    names: Mapping[str, str]
    zeroed: Mapping[str, Zeros] = field(default_factory=dict)
    """Names in the export of parameters that become zero, entirely or in part."""
    size: int = 0
    """Bytes in the model's own dtypes."""


def parts_of(model: Model, target: Target, steps: Sequence[Step]) -> list[Part]:
    """The parts of the export of a route with these visits, in the order they are written.

    Raises UnsupportedError where the export would have tensors that the model has not, or has them in another shape.
    """
    own, expected = model.hf.state_dict(), target.model.state_dict()
    tied = {name for name, source in target.model.all_tied_weights_keys.items() if source in expected}
    left_out = tied | set(getattr(model.hf, "_keys_to_ignore_on_save", None) or ())
    around, blocks = {}, [dict[str, str]() for _ in steps]
    for name in expected:
        place, rest = _place(name, model.stack.path)
        source = name if place is None else f"{model.stack.path}.{steps[place].block}.{rest}"
        if source not in own:
            raise UnsupportedError(
                f"{model.name} ({model.family}) cannot be exported on this route: the export would need {name}, and the model "
                f"has no {source}"
            )
        if name not in left_out:
            (around if place is None else blocks[place])[name] = source
    _check_read(model, own, {source for names in (around, *blocks) for source in names.values()}, steps)
    parts = [Part(None, around, size=_size(own, around))]
    for place, (step, names) in enumerate(zip(steps, blocks, strict=True)):
        zeroed = {f"{model.stack.path}.{place}.{name}": zeros for name, zeros in zeroed_parameters(model, step).items()}
        there = {name: zeros for name, zeros in zeroed.items() if name in names}
        parts.append(Part(step.block, names, there, _size(own, names)))
        if zeroed.keys() - names.keys():
            raise UnsupportedError(
                f"{model.name} ({model.family}): {step.name} cannot be exported, because the weights that would become zero "
                "are shared with other blocks"
            )
    return parts


def read_part(model: Model, target: Target, part: Part, order: Sequence[int], dtype: torch.dtype) -> State:
    """The tensors of a part, on the CPU, in the dtype they are written in."""
    with nullcontext() if part.block is None else model.stack.resident(part.block):
        own = model.hf.state_dict()  # taken inside `resident`: before, a streamed block's parameters are empty
        return {
            name: _read(model, own[source], target, part, name, order, dtype) for name, source in part.names.items()
        }


def _read(
    model: Model, own: Tensor, target: Target, part: Part, name: str, order: Sequence[int], dtype: torch.dtype
) -> Tensor:
    tensor = own.detach()
    if name in target.tables:
        tensor = _of_layers(model, tensor, target.tables[name], order)
    if tensor.shape != target.shapes[name]:
        raise UnsupportedError(
            f"{model.name} ({model.family}) cannot be exported on this route: {name} is {list(own.shape)} in the model, and "
            "has another shape in a model with these layers"
        )
    tensor = _with_zeros(tensor, part.zeroed[name]) if name in part.zeroed else tensor
    written = _in_dtype(tensor.cpu(), dtype)
    # Of a streamed block the memory is used for the next one.
    return written.clone() if model.stack.streamed and written.data_ptr() == own.data_ptr() else written


def _in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in a smaller dtype where that loses nothing, as where a bfloat16 checkpoint was loaded in float32."""
    if not tensor.is_floating_point() or dtype.itemsize >= tensor.dtype.itemsize:
        return tensor
    smaller = tensor.to(dtype)
    return smaller if torch.equal(smaller.to(tensor.dtype), tensor) else tensor


def _of_layers(model: Model, table: Tensor, axis: int, order: Sequence[int]) -> Tensor:
    """A table with one part for each layer, with the parts of `order` in place of its own."""
    each = table.shape[axis] // model.depth
    return torch.cat([table.narrow(axis, layer * each, each) for layer in order], axis)


def zeroed_parameters(model: Model, step: Step) -> dict[str, Zeros]:
    """Names, within a block, of parameters that are zero in the export because the visit ablates something, and what of them.

    The fewest are taken: of an ablated component the last module that gives its output, or else all of it; of heads and
    neurons the columns of their output projection. Raises UnsupportedError where the block then does not compute what the
    ablated block does, bit for bit, and for heads and neurons that are not replaced by zeros.
    """
    if step.whole:
        return {}
    found: dict[str, Zeros] = {}
    with torch.inference_mode(), model.stack.resident(step.block):
        trial = _Trial(model, step.block)
        for kind in step.silent:
            wanted = trial.silenced(Step(step.block, (kind,)))
            choices = (dict.fromkeys(names) for names in _choices(model, step.block, kind))
            found |= next((names for names in choices if torch.equal(trial.with_zeros(names), wanted)), {})
        found |= _of_projections(model, step)
        if not torch.equal(trial.with_zeros(found), trial.silenced(step)):
            raise UnsupportedError(
                f"{model.name} ({model.family}): {step.name} cannot be exported, because the block with these weights at zero "
                "does not compute what it computes without them. Drop the whole block, or keep them"
            )
    return found


def _of_projections(model: Model, step: Step) -> dict[str, Zeros]:
    """The weights that the output projections multiply ablated heads and neurons with."""
    if replaced := [one for one in step.inside if one.mode != ZERO]:
        raise UnsupportedError(
            f"{step.name} cannot be exported: {replaced[0].mode} ablation replaces numbers by others, which no weight of the "
            "model holds. Expected heads and neurons dropped (zero ablation)"
        )
    found: dict[str, Zeros] = {}
    for kind in dict.fromkeys(one.kind for one in step.inside):
        projection = model.inside.projection(kind, step.block)
        if not plain(projection.module):
            raise UnsupportedError(
                f"{model.name} ({model.family}): {step.name} cannot be exported, because the output projection of its {kind}s "
                f"is {type(projection.module).__name__}, whose weights cannot be set to zero one by one"
            )
        name = next(n for n, one in model.stack.blocks[step.block].named_modules() if one is projection.module)
        inputs = [
            one.index * projection.width + number
            for one in step.inside
            if one.kind == kind
            for number in range(projection.width)
        ]
        found[f"{name}.weight"] = (0 if isinstance(projection.module, Conv1D) else 1, tuple(inputs))
    return found


def _with_zeros(tensor: Tensor, zeros: Zeros) -> Tensor:
    if zeros is None:
        return torch.zeros_like(tensor)
    axis, places = zeros
    return tensor.index_fill(axis, torch.tensor(places, device=tensor.device), 0)


def _choices(model: Model, block: int, kind: str) -> Iterator[frozenset[str]]:
    """Sets of parameters of a component: those of one module in it, from the last one on, and finally all."""
    modules = model.component(kind, block)
    paths = [
        next(name for name, one in model.stack.blocks[block].named_modules() if one is module) for module in modules
    ]
    if len(modules) == 1:
        for name, inner in reversed(list(modules[0].named_modules(prefix=paths[0]))):
            if own := frozenset(f"{name}.{key}" for key, _ in inner.named_parameters(recurse=False)):
                yield own
    pairs = zip(paths, modules, strict=True)
    yield frozenset(name for path, module in pairs for name, _ in module.named_parameters(prefix=path))


class _Trial:
    """One block on the embedding of some tokens, with a component ablated or with parameters at zero."""

    def __init__(self, model: Model, block: int) -> None:
        self.model, self.block = model, block
        self.entry = model.stack.enter(model.probe_ids())
        self.state = copied(self.entry.state)
        for source in range(block):
            if model.stack.links[source].writes:
                model.stack.call(source, self.entry.residual, self.entry.arguments, self.state)

    def silenced(self, step: Step) -> Tensor:
        """The block's output on a visit that ablates components."""
        return self.model.visit(step, self.entry.residual, self.entry.arguments, copied(self.state))

    def with_zeros(self, zeroed: Mapping[str, Zeros]) -> Tensor:
        """The block's output with parameters at zero; the model itself is not changed."""
        module = self.model.stack.blocks[self.block]
        zeros = {name: _with_zeros(value, zeroed[name]) for name, value in module.named_parameters() if name in zeroed}
        own = self.entry.arguments[self.block]
        keyword: dict[str, Any] = {**own.keyword, **copied(self.state)}
        if own.residual_keyword:
            output = functional_call(module, zeros, own.positional, {**keyword, "hidden_states": self.entry.residual})
        else:
            output = functional_call(module, zeros, (self.entry.residual, *own.positional), keyword)
        return residual_of(output)


def _place(name: str, path: str) -> tuple[int | None, str]:
    """The block that a tensor's name lies in, None where it lies in none, and the name within the block."""
    if not name.startswith(f"{path}."):
        return None, name
    number, _, rest = name.removeprefix(f"{path}.").partition(".")
    return (int(number), rest) if number.isdecimal() and rest else (None, name)


def _check_read(model: Model, own: Mapping[str, Tensor], read: set[str], steps: Sequence[Step]) -> None:
    """Raise UnsupportedError for tensors of the model, other than those of dropped blocks, that the export leaves out."""
    visited = {None, *(step.block for step in steps)}
    known = read | set(getattr(model.hf, "all_tied_weights_keys", {}))
    known |= set(getattr(model.hf, "_keys_to_ignore_on_save", None) or ())
    unread = [name for name in own if name not in known and _place(name, model.stack.path)[0] in visited]
    if unread:
        raise UnsupportedError(
            f"{model.name} ({model.family}) cannot be exported on this route: the export would lack {', '.join(unread[:3])}"
            f"{f' and {len(unread) - 3} more' if len(unread) > 3 else ''}, which the model has. They may be shared between "
            "layers, whose first is gone or elsewhere, or be no part of transformers' model of the family"
        )


def as_stored(model: Model, tensors: State) -> State:
    """The tensors as checkpoints of the family name and keep them (experts one by one, for instance), which is how the model's
    own were read."""
    with (
        model_errors(f"the weights of {model.name} ({model.family}) cannot be written in the form they are read in"),
        quiet(),
    ):
        return revert_weight_conversion(model.hf, tensors)


def _size(own: Mapping[str, Tensor], names: Mapping[str, str]) -> int:
    return sum(own[source].numel() * own[source].dtype.itemsize for source in names.values())

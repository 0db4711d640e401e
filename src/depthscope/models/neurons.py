"""The MLP neurons of a block: the weights that carry them to the residual stream, a row each.

For a dense MLP they come from the outermost linear map whose output is the MLP's output, adapters and quantisation included.
For experts they are the rows of every expert's output weights and of the shared experts, which all tokens go through; which
parameters those are, and which axis counts neurons, is tried on the module itself.
"""

import re

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from depthscope.errors import UnsupportedError
from depthscope.models.block_calls import single_calls
from depthscope.models.maps import Called, linear_map, neurons_first, outermost, plain, writes_with
from depthscope.models.model import Model
from depthscope.models.packed import packed
from depthscope.routes import MLP


def neuron_rows(model: Model, block: int) -> list[Tensor]:
    """What the MLP writes with, each [neurons, d_model] or [experts, neurons, d_model], in the model's own dtype: one for a
    dense MLP; for experts the routed ones, then the shared ones. Where experts and a dense part are modules of their own, those
    of one after the other."""
    calls = mlp_calls(model, block)
    return [rows for mlp in model.component(MLP, block) for rows in module_rows(model, block, mlp, calls)]


def module_rows(model: Model, block: int, mlp: nn.Module, calls: dict[nn.Module, Called]) -> list[Tensor]:
    """The same for one of the modules that make up a block's MLP, given the calls of `mlp_calls`."""
    if mlp not in calls:
        raise UnsupportedError(f"{model.name}: the MLP of block {block} is not called once by its block")
    if (found := outermost(mlp, calls)) is not None:
        try:
            return [linear_map(found, calls[found]).weight.T]
        except UnsupportedError as error:
            raise UnsupportedError(f"{model.name}: the MLP of block {block}: {error}") from error
    return _rows_of_experts(model, block, mlp, calls[mlp])


def _rows_of_experts(model: Model, block: int, mlp: nn.Module, called: Called) -> list[Tensor]:
    width = model.unembedding.weight.shape[1]
    if any(map(packed, mlp.modules())):
        raise UnsupportedError(
            f"{model.name}: the MLP of block {block} is quantised, and no linear map gives its output, so it has no weights "
            "that can be read"
        )
    experts = [name for name, p in mlp.named_parameters() if p.ndim == 3 and "down" in name and "bias" not in name]
    always = [
        (f"{name}.weight", module)
        for name, module in mlp.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and OUTPUT.search(name) and _linear_width(module) == width
    ]
    if not experts and not always:
        raise UnsupportedError(f"{model.name}: the MLP of block {block} has no weights with one row per neuron")
    try:
        complete = writes_with(mlp, [*experts, *(name for name, _ in always)], called)
        rows = [
            weight if neurons_first(mlp, name, called) else weight.transpose(1, 2)
            for name in experts
            for weight in [mlp.get_parameter(name).detach()]
        ]
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise UnsupportedError(f"{model.name}: the experts of block {block} cannot be read ({error})") from error
    if not complete or not all(plain(module) for _, module in always):
        raise UnsupportedError(
            f"{model.name}: the MLP of block {block} writes with more than {', '.join(experts) or 'its linear maps'}, so the "
            "rows that can be read are not all of its neurons"
        )
    return rows + [linear_weight(module) for _, module in always]


OUTPUT = re.compile(r"(^|\.)(down_proj|w2|fc2|c_proj|output_linear|wo|dense_4h_to_h|linear_fc2)$")
"""Names of the linear maps that carry the neurons of an expert to the residual stream."""


def linear_weight(module: nn.Linear | Conv1D) -> Tensor:
    """A row per input: [in, out], however the layer stores it (Conv1D as it is, Linear transposed)."""
    weight = module.weight.detach()
    return weight if isinstance(module, Conv1D) else weight.T


def _linear_width(module: nn.Linear | Conv1D) -> int:
    return linear_weight(module).shape[1]


def mlp_calls(model: Model, block: int) -> dict[nn.Module, Called]:
    """One call of every module of a block's MLP that is called once, on real tokens."""
    with torch.inference_mode():
        return single_calls(model.stack, block, model.component(MLP, block), model.stack.enter(model.probe_ids(8)))

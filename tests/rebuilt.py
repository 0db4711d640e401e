"""The naive definitions: models rebuilt by hand, run by transformers' own forward. Nothing of depthscope but loading."""

import copy
import re

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

COMPONENT_OUTPUTS = {
    "attention": r"^(attn|attention|self_attn|self_attention)\.(.*\.)?(c_proj|o_proj|out_proj|dense)\.(weight|bias)$",
    "mlp": r"^((mlp|ffn)\.(.*\.)?(c_proj|down_proj|down_proj_bias|dense_4h_to_h|fc2|fc_out|dense)|fc2)(\.(weight|bias))?$",
}
"""Parameters of a block that a component writes to the residual stream with: zeroed, the component is silent."""


def block_list(model: PreTrainedModel) -> tuple[nn.Module, str]:
    """The module that holds the list of blocks, and the list's name."""
    depth = model.config.num_hidden_layers
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == depth:
                return module, name
    raise AssertionError("no list of blocks")


def with_order(model: PreTrainedModel, order: list[int]) -> PreTrainedModel:
    """The model with the blocks `order` in place of its own; per-layer entries of its configuration go with them."""
    rebuilt = copy.deepcopy(model)
    holder, name = block_list(rebuilt)
    blocks = getattr(holder, name)
    setattr(holder, name, nn.ModuleList([blocks[i] for i in order]))
    if vars(rebuilt.config).get("layer_types"):  # Mamba computes it from the depth
        rebuilt.config.layer_types = [model.config.layer_types[i] for i in order]
    rebuilt.config.num_hidden_layers = len(order)
    return rebuilt


def without_component(model: PreTrainedModel, layer: int, component: str) -> PreTrainedModel:
    """The model with one component's output weights and biases set to zero in one block."""
    rebuilt = copy.deepcopy(model)
    holder, name = block_list(rebuilt)
    zeroed = []
    with torch.no_grad():
        for parameter_name, parameter in getattr(holder, name)[layer].named_parameters():
            if re.match(COMPONENT_OUTPUTS[component], parameter_name):
                parameter.zero_()
                zeroed.append(parameter_name)
    assert zeroed, f"no output of {component} found in {type(model).__name__}"
    return rebuilt


def without_inputs(model: PreTrainedModel, layer: int, component: str, inputs: slice | list[int]) -> PreTrainedModel:
    """The model with the output weights of some of a component's inputs (heads or neurons) at zero in one block."""
    rebuilt = copy.deepcopy(model)
    block = getattr(*block_list(rebuilt))[layer]
    zeroed = []
    with torch.no_grad():
        for name, module in block.named_modules():
            if re.match(COMPONENT_OUTPUTS[component], f"{name}.weight"):
                weight = module.weight if type(module).__name__ == "Conv1D" else module.weight.T
                weight[inputs] = 0
                zeroed.append(name)
    assert len(zeroed) == 1, f"output of {component} in {type(model).__name__}: {zeroed}"
    return rebuilt


@torch.no_grad()
def logits_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    return model(input_ids=ids, use_cache=False).logits

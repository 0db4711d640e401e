"""Neuron activations are what the MLP's output weights are multiplied with, over all families."""

import re

import pytest
import torch
from families import DEPTH, tiny_model
from rebuilt import COMPONENT_OUTPUTS
from torch import nn

from depthscope.errors import DataError, NumericError, UnsupportedError
from depthscope.models.activations import ActivationReader
from depthscope.models.load import load

IDS = torch.arange(1, 37).reshape(3, 12) * 31 % 97
EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss")


def output_weights(model, block):
    """W_out [neurons, d_model] and bias of a block's MLP, by the names of its parameters."""
    named = dict(model.stack.blocks[block].named_parameters())
    found = {n.rsplit(".", 1)[-1]: p.detach() for n, p in named.items() if re.match(COMPONENT_OUTPUTS["mlp"], n)}
    weight = found["weight"] if model.family == "gpt2" else found["weight"].T
    return weight, found.get("bias", torch.zeros(weight.shape[1]))


def every_neuron(model):
    widths = [output_weights(model, block)[0].shape[0] for block in range(DEPTH)]
    return torch.tensor([(block, i) for block in range(DEPTH) for i in range(widths[block])])


def mlp_outputs(model, ids):
    """What each block's MLP module gives in transformers' own forward, and the logits."""
    outputs = []
    handles = [
        module.register_forward_hook(lambda _m, _a, out: outputs.append(out.clone().reshape(*ids.shape, -1)))
        for block in range(model.depth)
        for module in model.component("mlp", block)
    ]
    with torch.inference_mode():
        logits = model.hf(input_ids=ids, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return outputs, logits


def test_activations_times_output_weights_are_the_mlps_output(tiny):
    if tiny.components is None:
        with pytest.raises(UnsupportedError, match="no separate attention and MLP"):
            ActivationReader(tiny, torch.tensor([[0, 0]]))
        return
    if tiny.family in EXPERTS:
        with pytest.raises(UnsupportedError, match="experts"):
            ActivationReader(tiny, torch.tensor([[1, 0]]))
        return
    positions = [2, -1]
    expected, logits = mlp_outputs(tiny, IDS)
    neurons = every_neuron(tiny)
    read = ActivationReader(tiny, neurons).read(IDS, positions)
    for block in range(DEPTH):
        weight, bias = output_weights(tiny, block)
        given = read.values[:, :, neurons[:, 0] == block] @ weight + bias
        torch.testing.assert_close(given, expected[block][:, positions], atol=1e-4, rtol=1e-4)
    with torch.inference_mode():
        from_residual = tiny.unembedding.logits(tiny.unembedding.hidden(read.residual))
    torch.testing.assert_close(from_residual, logits[:, positions].flatten(0, 1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi", "llama", "qwen2", "opt"])
def test_neurons_come_in_the_order_asked_for_and_leave_no_hook(tiny_of, family):
    model = tiny_of(family)
    every = every_neuron(model)
    everything = ActivationReader(model, every).read(IDS, [-1]).values
    at_random = torch.randperm(len(every), generator=torch.Generator().manual_seed(3))[:9]
    some = ActivationReader(model, every[at_random]).read(IDS, [-1]).values
    assert torch.equal(some, everything[:, :, at_random])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())


def test_a_gated_neuron_is_gate_times_up(tiny_of):
    model = tiny_of("llama")
    seen = []
    mlp = model.stack.blocks[2].mlp
    handle = mlp.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    values = ActivationReader(model, torch.tensor([[2, 5], [2, 40]])).read(IDS, [3]).values
    handle.remove()
    x = seen[-1][:, 3].clone()
    with torch.no_grad():
        expected = nn.functional.silu(x @ mlp.gate_proj.weight.T) * (x @ mlp.up_proj.weight.T)
    torch.testing.assert_close(values[:, 0], expected[:, [5, 40]])


@pytest.mark.parametrize("neuron", [(4, 0), (-1, 0), (1, 128), (1, -1)])
def test_a_neuron_that_is_not_there_is_named(tiny_of, neuron):
    with pytest.raises(ValueError, match=r"expected blocks 0 … 3|has neurons 0 … 127"):
        ActivationReader(tiny_of("gpt2"), torch.tensor([neuron]))


def test_a_map_that_is_never_called_is_not_taken_for_the_output(tiny_of):
    model = load(tiny_model("llama"))
    mlp, asked = model.stack.blocks[1].mlp, torch.tensor([[1, 0], [1, 47]])
    expected = ActivationReader(tiny_of("llama"), asked).read(IDS, [-1])
    mlp.afterwards = nn.Linear(32, 32)
    assert torch.equal(ActivationReader(model, asked).read(IDS, [-1]).values, expected.values)
    assert not mlp._forward_hooks


def test_an_mlp_whose_last_map_is_not_its_output_is_refused():
    model = load(tiny_model("llama"))
    mlp = model.stack.blocks[1].mlp
    mlp.forward = lambda x: type(mlp).forward(mlp, x).relu()
    with pytest.raises(UnsupportedError, match="block 1 has no linear map from neurons to its output"):
        ActivationReader(model, torch.tensor([[1, 0]]))
    assert not mlp._forward_hooks


def test_unusable_ids_and_broken_weights_are_told(tiny_of):
    reader = ActivationReader(tiny_of("gpt2"), torch.tensor([[0, 0]]))
    with pytest.raises(DataError, match="outside the vocabulary"):
        reader.read(torch.tensor([[1, 97]]), [-1])
    model = load(tiny_model("gpt2"))
    reader = ActivationReader(model, torch.tensor([[0, 0]]))
    with torch.no_grad():
        model.stack.blocks[3].mlp.c_fc.weight[0, 0] = float("nan")
    with pytest.raises(NumericError, match="NaN or infinity"):
        reader.read(IDS, [-1])

"""Law 8: weight processing leaves the predictions as they were, over all families."""

import copy
import re

import pytest
import torch
from families import DEPTH, FAMILIES, WITHOUT_COMPONENTS, tiny_model
from rebuilt import COMPONENT_OUTPUTS, block_list, logits_of
from torch import nn

from depthscope.errors import UnsupportedError
from depthscope.models.load import load
from depthscope.models.weights import centres_writing, mlp_output_weights, norm_affine, normalised, unembedding

IDS = torch.arange(1, 29).reshape(2, 14) * 31 % 97
CONV1D = {"gpt2"}
EXPERTS = {"mixtral", "qwen3_moe", "gpt_oss"}
NORM_AFTER_MLP = ["gemma2", "gemma3_text", "olmo2"]
LAYER_NORM = [
    "gpt2",
    "gpt_neox",
    "phi",
    "opt",
    "bloom",
    "falcon",
    "gptj",
    "gpt_neo",
    "stablelm",
    "cohere",
    "starcoder2",
    "mpt",
]
ADDS_ITS_ROWS = [f for f in FAMILIES if f not in {*WITHOUT_COMPONENTS, *EXPERTS, *NORM_AFTER_MLP}]


def spread_norms(model):
    """Norm scales and shifts away from 1 and 0, where random models have them, so that folding can be told."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() or "ln_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return load(model)


@pytest.fixture(params=FAMILIES)
def spread(request):
    return spread_norms(tiny_model(request.param))


def test_folded_and_centred_unembedding_gives_the_models_predictions(spread):
    weight, bias = unembedding(spread)
    residual = torch.randn(3, 5, 32) * 4 + 1
    norm = spread.head.modules[-1]
    with torch.inference_mode():
        expected = spread.head.unembedding(spread.head.hidden(residual)).log_softmax(-1)
    found = normalised(residual, norm_affine(norm, 32).centring).flatten(0, 1) @ weight.T + bias
    torch.testing.assert_close(found.log_softmax(-1), expected, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(weight.mean(0), torch.zeros(32), atol=1e-5, rtol=0)


def test_writing_is_centred_in_layer_norm_models_only(tiny):
    assert centres_writing(tiny) == (tiny.family in LAYER_NORM)


@pytest.mark.parametrize("family", LAYER_NORM)
def test_centred_writing_changes_no_logit(family):
    """All that blocks write, centred: in LayerNorm models nothing is read from the direction taken out."""
    spread = spread_norms(tiny_model(family))
    centred = copy.deepcopy(spread.hf)
    holder, name = block_list(centred)
    with torch.no_grad():
        for block in getattr(holder, name):
            for key, parameter in block.named_parameters():
                if any(re.match(pattern, key) for pattern in COMPONENT_OUTPUTS.values()):
                    axis = -1 if spread.family in CONV1D or parameter.ndim == 1 else 0
                    parameter.sub_(parameter.mean(axis, keepdim=True))
    assert any(not torch.equal(a, b) for a, b in zip(centred.parameters(), spread.hf.parameters(), strict=True))
    torch.testing.assert_close(logits_of(centred, IDS), logits_of(spread.hf, IDS), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ADDS_ITS_ROWS)
def test_output_weights_are_what_a_neuron_adds_to_the_residual_stream(family):
    """A neuron's w_out is the change of the block's output when its activation changes, centred where that is unseen."""
    model = spread_norms(tiny_model(family))
    rows = mlp_output_weights(model, 1)
    linear = [m for m in model.components.mlp[1].modules() if hasattr(m, "weight") and m.weight.ndim == 2][-1]
    entry = model.stack.enter(IDS[:1, :4])
    outputs = []
    for nudge in (0.0, 1.0):
        handle = linear.register_forward_pre_hook(
            lambda _m, args, n=nudge: (args[0] + n * torch.eye(rows.shape[0])[7],)
        )
        with torch.inference_mode():
            outputs.append(model.stack.call(1, entry.residual, entry.arguments))
        handle.remove()
    change = (outputs[1] - outputs[0])[0, -1]
    if centres_writing(model):
        change = change - change.mean()
    scale = model.hf.config.residual_multiplier if family == "granite" else 1.0
    torch.testing.assert_close(change, rows[7] * scale, atol=1e-4, rtol=1e-3)


def test_experts_are_counted_one_after_the_other():
    for family, orientation in (("mixtral", lambda w: w.transpose(1, 2)), ("gpt_oss", lambda w: w)):
        model = load(tiny_model(family))
        weights = model.stack.blocks[2].mlp.experts.down_proj.detach()
        expected = orientation(weights).flatten(0, 1)
        assert torch.equal(mlp_output_weights(model, 2), expected)
        assert expected.shape == (4 * 48, 32)


@pytest.mark.parametrize("family", NORM_AFTER_MLP)
def test_a_norm_after_the_mlp_is_folded_in(family):
    model = spread_norms(tiny_model(family))
    block = model.stack.blocks[1]
    plus_one = 1 if family.startswith("gemma") else 0
    expected = block.mlp.down_proj.weight.detach().T * (block.post_feedforward_layernorm.weight.detach() + plus_one)
    torch.testing.assert_close(mlp_output_weights(model, 1), expected)


@pytest.mark.parametrize("width", [4, 33])
def test_norms_are_read_by_what_they_do(width):
    torch.manual_seed(0)
    layer_norm, rms_norm = nn.LayerNorm(width), nn.RMSNorm(width)
    with torch.no_grad():
        for parameter in (*layer_norm.parameters(), *rms_norm.parameters()):
            parameter.copy_(torch.randn(width))
    found = norm_affine(layer_norm, width)
    assert found.centring
    torch.testing.assert_close(found.scale, layer_norm.weight.detach())
    torch.testing.assert_close(found.shift, layer_norm.bias.detach(), atol=1e-6, rtol=1e-5)
    found = norm_affine(rms_norm, width)
    assert not found.centring
    torch.testing.assert_close(found.scale, rms_norm.weight.detach())
    torch.testing.assert_close(found.shift, torch.zeros(width))
    with pytest.raises(UnsupportedError, match="Tanh is neither a LayerNorm nor an RMSNorm"):
        norm_affine(nn.Tanh(), width)


def test_every_block_has_its_weights(tiny):
    if tiny.components is None:
        with pytest.raises(UnsupportedError, match="no separate attention and MLP"):
            mlp_output_weights(tiny, 0)
        return
    assert len({mlp_output_weights(tiny, block).shape for block in range(DEPTH)}) == 1

"""Law 8: weight processing leaves the predictions as they were, over all families."""

import copy
import re

import pytest
import torch
from families import DEPTH, FAMILIES, WITHOUT_COMPONENTS, tiny_model
from rebuilt import COMPONENT_OUTPUTS, block_list, logits_of
from torch import nn

from depthscope.errors import UnsupportedError
from depthscope.models import weights
from depthscope.models.load import load
from depthscope.models.weights import (
    centres_writing,
    mlp_output_weights,
    norm_affine,
    normalised,
    reading_weights,
    require_mlp_output_weights,
    unembedding,
)

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
    norm = spread.unembedding.modules[-1]
    with torch.inference_mode():
        expected = spread.unembedding.linear(spread.unembedding.hidden(residual)).log_softmax(-1)
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
    linear = [m for m in model.component("mlp", 1)[0].modules() if hasattr(m, "weight") and m.weight.ndim == 2][-1]
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
    torch.testing.assert_close(change, rows[7], atol=1e-4, rtol=1e-3)


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


def test_as_they_are_weights_are_the_models_own(spread):
    weight, bias = unembedding(spread, processed=False)
    assert torch.equal(weight, spread.unembedding.weight)
    assert torch.equal(
        bias, torch.zeros(97) if spread.unembedding.linear.bias is None else spread.unembedding.linear.bias
    )
    if spread.components is None:
        with pytest.raises(UnsupportedError, match="no separate MLP"):
            require_mlp_output_weights(spread)
        return
    require_mlp_output_weights(spread)
    rows = mlp_output_weights(spread, 1, processed=False)
    stored = [p for p in spread.stack.blocks[1].parameters() if p.numel() == rows.numel()]
    assert any(torch.equal(rows.flatten().sort()[0], p.flatten().sort()[0]) for p in stored)
    if spread.family in LAYER_NORM:
        assert not torch.equal(rows, mlp_output_weights(spread, 1))


def test_a_row_that_is_not_of_the_residual_stream_is_refused(monkeypatch):
    model = load(tiny_model("llama"))
    monkeypatch.setattr(weights, "neuron_rows", lambda _model, block: [torch.zeros(48, 31 if block == 2 else 32)])
    with pytest.raises(UnsupportedError, match="block 2 writes rows of 31 numbers, expected 32"):
        require_mlp_output_weights(model)


READS_WITH = {
    "gpt2": ("attn.c_attn", "mlp.c_fc"),
    "gpt_neox": ("attention.query_key_value", "mlp.dense_h_to_4h"),
    "phi": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1"),
    "phi3": ("self_attn.qkv_proj", "mlp.gate_up_proj"),
    "opt": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "fc1"),
    "bloom": ("self_attention.query_key_value", "mlp.dense_h_to_4h"),
    "falcon": ("self_attention.query_key_value", "mlp.dense_h_to_4h"),
    "gptj": ("attn.q_proj", "attn.k_proj", "attn.v_proj", "mlp.fc_in"),
    "gpt_neo": ("attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj", "mlp.c_fc"),
    "starcoder2": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.c_fc"),
    "mpt": ("attn.Wqkv", "ffn.up_proj"),
    "mamba": ("mixer.in_proj",),
    **dict.fromkeys(EXPERTS, ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.experts.gate_up_proj")),
}
GATED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")


def seen_by(model, block, paths):
    """What modules of a block are given first and what they make, when the block runs on real tokens."""
    seen = {}

    def watch(path):
        def keep(_module, args, kwargs, output):
            seen[path] = (next(v for v in (*args, *kwargs.values()) if isinstance(v, torch.Tensor)), output)

        return model.stack.blocks[block].get_submodule(path).register_forward_hook(keep, with_kwargs=True)

    handles = [watch(path) for path in paths]
    with torch.inference_mode():
        entry = model.stack.enter(IDS)
        residual = entry.residual
        for earlier in range(block):
            residual = model.stack.call(earlier, residual, entry.arguments)
        model.stack.call(block, residual, entry.arguments)
    for handle in handles:
        handle.remove()
    return residual, seen


def test_reading_weights_give_the_modules_own_output_from_the_residual_stream(spread):
    """Query, key, value, MLP input and gate, from the stream before their norm: attention's is the block's own input."""
    found = reading_weights(spread, 1)
    assert set(found) == set(READS_WITH.get(spread.family, GATED))
    linear = {path: reading for path, reading in found.items() if not path.endswith("experts.gate_up_proj")}
    norms = {reading.norm for reading in found.values() if reading.norm is not None}
    residual, seen = seen_by(spread, 1, [*linear, *norms])
    for path, reading in linear.items():
        read, _ = seen[reading.norm or path]
        if path.split(".")[0] in ("attn", "attention", "self_attn", "self_attention", "mixer"):
            assert torch.equal(read, residual), path
        output = seen[path][1]
        torch.testing.assert_close(reading(read).reshape(output.shape), output, atol=2e-3, rtol=1e-3)
        if reading.centring:
            torch.testing.assert_close(reading.weight.mean(1), torch.zeros(len(reading.weight)), atol=1e-6, rtol=0)
        assert reading.centring == (spread.family in LAYER_NORM and reading.norm is not None)


def test_experts_read_the_residual_stream_with_all_their_features():
    for family in ("mixtral", "qwen3_moe", "gpt_oss"):
        model = spread_norms(tiny_model(family))
        reading = reading_weights(model, 2)["mlp.experts.gate_up_proj"]
        _, seen = seen_by(model, 2, ["mlp.experts", "post_attention_layernorm"])
        experts, given = model.stack.blocks[2].mlp.experts, seen["mlp.experts"][0].flatten(0, -2)
        for_each = experts.gate_up_proj.detach() if family == "gpt_oss" else experts.gate_up_proj.detach().mT
        expected = torch.cat([given @ weight for weight in for_each], dim=1)
        if family == "gpt_oss":
            expected = expected + experts.gate_up_proj_bias.detach().flatten()
        torch.testing.assert_close(
            reading(seen["post_attention_layernorm"][0].flatten(0, -2)), expected, atol=1e-3, rtol=1e-3
        )


@pytest.mark.parametrize("family", [f for f in FAMILIES if f not in {*EXPERTS, "olmo2"}])
def test_a_model_with_folded_and_centred_reading_weights_predicts_the_same(family):
    """All blocks: norms made plain, their scale and shift put into what reads them. None that reads is left out."""
    model = spread_norms(tiny_model(family))
    folded = load(copy.deepcopy(model.hf))
    with torch.no_grad():
        for block in range(model.depth):
            own = folded.stack.blocks[block]
            for path, reading in reading_weights(model, block).items():
                module = own.get_submodule(path)
                module.weight.copy_(reading.weight.T if family in CONV1D else reading.weight)
                if module.bias is not None or reading.bias.any():
                    module.bias = nn.Parameter(reading.bias)
                norm = own.get_submodule(reading.norm)
                norm.weight.fill_(0.0 if family.startswith("gemma") else 1.0)
                if getattr(norm, "bias", None) is not None:
                    norm.bias.zero_()
    assert not all(torch.equal(a, b) for a, b in zip(folded.hf.parameters(), model.hf.parameters(), strict=False))
    torch.testing.assert_close(
        logits_of(folded.hf, IDS).log_softmax(-1), logits_of(model.hf, IDS).log_softmax(-1), atol=2e-3, rtol=1e-3
    )

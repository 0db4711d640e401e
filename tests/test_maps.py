"""Law 12: every weight that analysis reads gives, on the module's own input, the module's own output."""

import copy

import families
import pytest
import torch
from families import EXPERTS, LLAMA, SLIDING, WITHOUT_COMPONENTS, tiny_model
from rebuilt import logits_of
from torch import nn

import depthscope as ds
from depthscope.errors import UnsupportedError
from depthscope.models.activations import ActivationReader, neuron_count, output_map
from depthscope.models.load import load
from depthscope.models.maps import outermost
from depthscope.models.neurons import mlp_calls
from depthscope.models.weights import mlp_output_weights, reading_weights, require_mlp_output_weights

IDS = torch.arange(1, 29).reshape(2, 14) * 31 % 97
NARROW = LLAMA | EXPERTS | SLIDING | {
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "intermediate_size"), 4),
    **dict.fromkeys(("n_routed_experts", "moe_num_experts", "num_key_value_heads"), 4),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("n_group", "topk_group", "interleave_moe_layer_step"), 1),
    **dict.fromkeys(("moe_k", "moe_topk"), 2),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "head_dim", "v_head_dim", "intermediate_size_mlp"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim"), 4),
}  # fmt: skip
"""So few neurons that their rows cannot span the residual stream by chance."""
WITH_SHARED = ("qwen2_moe", "qwen3_next", "deepseek_v2", "glm4_moe", "ernie4_5_moe", "hunyuan_v1_moe", "dots1", "afmoe",
               "exaone_moe", "llama4_text")  # fmt: skip
WITHOUT_SHARED = ("mixtral", "qwen3_moe", "gpt_oss", "olmoe", "phimoe")


def made(family, **changes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(families.SHAPES, family, NARROW)
        hf = tiny_model(family, **changes)
    with torch.no_grad():  # what an expert's bias writes depends on the routing, and is no neuron's
        for name, parameter in hf.named_parameters():
            if "down_proj_bias" in name:
                parameter.zero_()
    return hf


def left_over(model, block):
    """The share of what the MLP writes that lies outside the rows that were read."""
    rows = mlp_output_weights(model, block, processed=False).double()
    seen = []
    handle = model.component("mlp", block)[0].register_forward_hook(
        lambda _module, _args, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    ds.logits(model, IDS)
    handle.remove()
    written = seen[0].double().flatten(0, -2)
    found = torch.linalg.lstsq(rows.T, written.T).solution
    return float((rows.T @ found - written.T).norm() / written.norm())


@pytest.mark.parametrize("family", [*WITH_SHARED, *WITHOUT_SHARED])
def test_the_rows_read_span_what_experts_write(family):
    model = load(made(family))
    require_mlp_output_weights(model)
    counts = {len(mlp_output_weights(model, block)) for block in range(model.depth)}
    assert max(counts) == 20 if family in WITH_SHARED else counts == {16}, "4 experts of 4, and the shared one"
    assert max(counts) < 32
    assert max(left_over(model, block) for block in range(model.depth)) < 1e-5


@pytest.mark.parametrize("family", ["llama4_text", "gpt_oss", "mixtral"])
def test_which_way_experts_lie_is_seen_where_both_sides_are_equally_wide(family):
    model = load(made(family, moe_intermediate_size=32, intermediate_size=32, num_experts=1, num_local_experts=1,
                      num_experts_per_tok=1))  # fmt: skip
    for name, parameter in model.component("mlp", 1)[0].named_parameters():
        if parameter.ndim == 3 and name.endswith("down_proj"):
            with torch.no_grad():
                parameter.zero_()
                by_row = family in ("gpt_oss", "llama4_text")
                parameter[:, 3, :] = torch.arange(32.0) if by_row else 0.0
                if not by_row:
                    parameter[:, :, 3] = torch.arange(32.0)
    assert torch.equal(mlp_output_weights(model, 1, processed=False)[3], torch.arange(32.0))


def test_experts_that_write_with_more_than_can_be_read_are_refused():
    hf = made("mixtral")
    block = hf.model.layers[1].mlp

    class More(type(block)):
        def forward(self, hidden_states):
            return super().forward(hidden_states) + self.secret(hidden_states)

    block.__class__ = More
    block.secret = nn.Linear(32, 32)
    with pytest.raises(UnsupportedError, match="block 1 writes with more than"):
        require_mlp_output_weights(load(hf))


@pytest.mark.parametrize("family", [f for f in families.FAMILIES if f not in WITHOUT_COMPONENTS])
def test_the_map_from_neurons_to_output_is_the_mlps(tiny_of, family):
    model = tiny_of(family)
    require_mlp_output_weights(model)
    for block in range(model.depth):
        mlp, calls = model.component("mlp", block)[0], mlp_calls(model, block)
        found = outermost(mlp, calls)
        if found is None:
            continue  # experts
        rows = mlp_output_weights(model, block, processed=False)
        bias = getattr(found, "bias", None)
        expected = calls[found].given @ rows + (0 if bias is None else bias)
        torch.testing.assert_close(expected, calls[mlp].output.view_as(expected), rtol=1e-4, atol=1e-4)


class Adapted(nn.Module):
    """A linear layer with a low-rank adapter on it, laid out as adapter libraries do."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.lora_A, self.lora_B = (
            nn.Linear(base.in_features, 3, bias=False),
            nn.Linear(3, base.out_features, bias=False),
        )

    def forward(self, x):
        return self.base_layer(x) + 2.0 * self.lora_B(self.lora_A(x))

    def merged(self):
        merged = copy.deepcopy(self.base_layer)
        with torch.no_grad():
            merged.weight += 2.0 * self.lora_B.weight @ self.lora_A.weight
        return merged


class Packed(nn.Linear):
    """A linear layer whose weight is stored as bytes, two numbers in one, as quantising libraries do."""

    def __init__(self, base):
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None)
        self.scale = float(base.weight.detach().abs().max() / 7)
        codes = ((base.weight.detach() / self.scale).round() + 8).to(torch.uint8).flatten()
        self.weight = nn.Parameter(codes[::2] * 16 + codes[1::2], requires_grad=False)
        self.bias = base.bias

    def dense(self):
        codes = torch.stack([self.weight // 16, self.weight % 16], -1).flatten().float() - 8
        return (codes * self.scale).view(self.out_features, self.in_features)

    def forward(self, x):
        return nn.functional.linear(x, self.dense(), self.bias)


@pytest.mark.parametrize("kind", [Adapted, Packed])
def test_adapters_and_packed_weights_are_read_as_they_act(kind):
    hf = tiny_model("llama")
    for layer in hf.model.layers:
        layer.mlp.down_proj, layer.mlp.up_proj = kind(layer.mlp.down_proj), kind(layer.mlp.up_proj)
        layer.self_attn.q_proj = kind(layer.self_attn.q_proj)
    dense = copy.deepcopy(hf)
    for module in list(dense.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Adapted):
                setattr(module, name, child.merged())
            elif isinstance(child, Packed):
                plain = nn.Linear(child.in_features, child.out_features, bias=False)
                plain.weight.data = child.dense()
                setattr(module, name, plain)
    model, expected = load(hf), load(dense)
    torch.testing.assert_close(logits_of(hf, IDS), logits_of(dense, IDS), rtol=1e-4, atol=1e-4)
    require_mlp_output_weights(model)
    assert neuron_count(model, 1) == neuron_count(expected, 1) == 48
    assert output_map(model, 1) is hf.model.layers[1].mlp.down_proj
    for block in range(4):
        for processed in (True, False):
            ours, theirs = (mlp_output_weights(one, block, processed) for one in (model, expected))
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        ours, theirs = reading_weights(model, block), reading_weights(expected, block)
        assert list(ours) == list(theirs)
        for path, read in theirs.items():
            torch.testing.assert_close(ours[path].weight, read.weight, rtol=1e-4, atol=1e-5)
    asked = torch.tensor([[1, 0], [1, 47]])
    values = [ActivationReader(one, asked).read(IDS, [-1]).values for one in (model, expected)]
    torch.testing.assert_close(values[0], values[1], rtol=1e-4, atol=1e-4)
    if kind is Packed:
        assert model.facts.parameters == expected.facts.parameters
        assert model.facts.stored < model.facts.parameters


@pytest.mark.parametrize("inside", [True, False])
def test_a_weight_that_is_not_what_the_module_computes_with_is_refused(inside):
    """A patch that bends the map, before or after it: neither W x of the stored weight nor anything linear."""
    hf = tiny_model("llama")
    down = hf.model.layers[1].mlp.down_proj
    bent = (lambda x: type(down).forward(down, x.relu())) if inside else (lambda x: type(down).forward(down, x).relu())
    down.forward = bent
    with pytest.raises(UnsupportedError, match="block 1 writes with more than"):
        require_mlp_output_weights(load(hf))

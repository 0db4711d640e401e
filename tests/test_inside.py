"""Edits inside a block: heads and neurons ablated one by one, against models with slices of their output weights at zero."""

import re

import pytest
import torch
from families import DEPTH, FAMILIES, HYBRIDS, tiny_model
from rebuilt import COMPONENT_OUTPUTS, block_list, logits_of, without_inputs

import depthscope as ds
from depthscope.engine.generation import generate_tokens
from depthscope.engine.measure_routes import RouteMeter
from depthscope.errors import RouteError, UnsupportedError
from depthscope.models.load import load
from depthscope.models.projections import VECTORS, largest_misfit, repeated
from depthscope.models.substitutes import drawn_documents
from depthscope.routes import Route

IDS = torch.arange(1, 29).reshape(2, 14) * 31 % 97
HEADS, HEAD_WIDTH = 4, 8
EXPERTS = {"mixtral", "qwen3_moe", "gpt_oss"}
DENSE = [family for family in FAMILIES if family not in EXPERTS | {"mamba"}]


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "mamba"])
def test_a_dropped_head_is_the_model_with_its_output_weights_zeroed(tiny_of, family):
    model = tiny_of(family)
    own = ds.logits(model, IDS)
    for layer, heads in ((0, [1]), (DEPTH - 1, [3]), (2, [0, 2])):
        inputs = [head * HEAD_WIDTH + i for head in heads for i in range(HEAD_WIDTH)]
        expected = logits_of(without_inputs(model.hf, layer, "attention", inputs), IDS)
        found = ds.logits(model, IDS, ds.drop_head(layer, *heads))
        assert torch.allclose(found, expected, atol=1e-5)
        assert not torch.allclose(found, own, atol=1e-5)


@pytest.mark.parametrize("family", DENSE)
def test_a_dropped_neuron_is_the_model_with_its_output_weights_zeroed(tiny_of, family):
    model = tiny_of(family)
    for layer, neurons in ((1, [7]), (3, [0, 5, 47])):
        expected = logits_of(without_inputs(model.hf, layer, "mlp", neurons), IDS)
        assert torch.allclose(ds.logits(model, IDS, ds.drop_neuron(layer, *neurons)), expected, atol=1e-5)


def naive(model, layer, component, inputs, mode):
    """Logits of a plain forward with these inputs of the output projection replaced by a hook of the test's own."""
    block = getattr(*block_list(model.hf))[layer]
    (projection,) = (
        one for name, one in block.named_modules() if re.match(COMPONENT_OUTPUTS[component], f"{name}.weight")
    )
    reference, seen = model.reference_ids(), []
    handle = projection.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    logits_of(model.hf, reference)
    handle.remove()
    given = seen[0].view(*reference.shape, -1)
    if mode == "mean":
        instead = given.double().mean((0, 1)).float().expand(IDS.shape[1], -1)
    else:
        documents = drawn_documents(*reference.shape)
        instead = torch.stack([given[documents[t], t] for t in range(IDS.shape[1])])

    def replace(_module, args):
        changed = args[0].clone().view(*IDS.shape, -1)
        changed[..., inputs] = instead[:, inputs]
        return (changed.view(args[0].shape),)

    handle = projection.register_forward_pre_hook(replace)
    logits = logits_of(model.hf, IDS)
    handle.remove()
    return logits


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "opt", "gemma2", "cohere"])
def test_mean_and_resample_ablation_take_their_values_from_the_reference_text(tiny_of, family):
    model = tiny_of(family)
    head = list(range(2 * HEAD_WIDTH, 3 * HEAD_WIDTH))
    for edit, component, inputs, mode in (
        (ds.mean_ablate_head(1, 2), "attention", head, "mean"),
        (ds.resample_ablate_head(1, 2), "attention", head, "resample"),
        (ds.mean_ablate_neuron(2, 3, 4), "mlp", [3, 4], "mean"),
        (ds.resample_ablate_neuron(2, 3, 4), "mlp", [3, 4], "resample"),
    ):
        layer = 1 if component == "attention" else 2
        expected = naive(model, layer, component, inputs, mode)
        found = ds.logits(model, IDS, edit)
        assert torch.allclose(found, expected, atol=1e-5), edit.name
        assert not torch.allclose(found, ds.logits(model, IDS), atol=1e-5)


def test_one_visit_may_ablate_in_several_ways(tiny_of):
    model = tiny_of("llama")
    mixed = ds.drop_head(1, 0) | ds.mean_ablate_head(1, 3) | ds.drop_neuron(1, 5) | ds.drop_ssm(1)
    with pytest.raises(RouteError, match="no state-space mixer"):
        ds.logits(model, IDS, mixed)
    mixed = ds.drop_head(1, 0) | ds.mean_ablate_head(1, 3) | ds.drop_neuron(1, 5)
    one = ds.logits(model, IDS, mixed)
    assert torch.equal(one, ds.logits(model, IDS, ds.parse_route(mixed(Route.own(DEPTH)).name, DEPTH)))
    every = ds.logits(model, IDS, ds.drop_head(1, 0, 1, 2, 3))
    assert torch.allclose(every, ds.logits(model, IDS, ds.drop_attn(1)), atol=1e-6)  # no bias in llama's projection
    gpt2 = tiny_of("gpt2")
    assert not torch.allclose(
        ds.logits(gpt2, IDS, ds.drop_head(1, 0, 1, 2, 3)), ds.logits(gpt2, IDS, ds.drop_attn(1)), atol=1e-3
    )


def test_numbers_do_not_depend_on_the_batch_or_on_what_else_is_measured(tiny_of):
    model = tiny_of("qwen3")
    own = Route.own(DEPTH)
    edits = [ds.drop_head(1, 2), ds.mean_ablate_head(1, 2), ds.resample_ablate_neuron(2, 3), ds.drop_attn(1)]
    routes = [edit(own) for edit in edits]
    ids, targets = IDS[:, :-1], IDS[:, 1:]
    together = RouteMeter(model, routes).measure(ids, targets)
    for place, route in enumerate(routes):
        for row in range(2):
            alone = RouteMeter(model, [route]).measure(ids[row : row + 1], targets[row : row + 1])
            assert torch.allclose(alone["kl"][1], together["kl"][place + 1, row : row + 1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_generation_with_caches_is_generation_without(tiny_of, family):
    model = tiny_of(family)
    route = (ds.drop_head(1, 2) | ds.mean_ablate_neuron(2, 3) | ds.swap(0))(Route.own(DEPTH))
    cached, not_cached = (generate_tokens(model, route, IDS[:1], tokens=6, use_cache=use) for use in (True, False))
    assert torch.equal(cached, not_cached)
    with pytest.raises(UnsupportedError, match="depends on the position"):
        generate_tokens(model, ds.resample_ablate_head(1, 2)(Route.own(DEPTH)), IDS[:1], tokens=2)


def test_the_model_is_left_as_it_was(tiny_of):
    model = tiny_of("gpt2")
    before = logits_of(model.hf, IDS)
    ds.logits(model, IDS, ds.resample_ablate_head(0, 1) | ds.drop_neuron(1, 3))
    assert torch.equal(before, logits_of(model.hf, IDS))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.hf.modules())


def test_what_a_model_does_not_have_is_refused_by_name(tiny_of):
    for family, edit, error, says in (
        ("gpt2", ds.drop_head(1, 4), RouteError, "block 1 has heads 0 … 3, so head 4 cannot be ablated"),
        ("gpt2", ds.drop_neuron(1, 128), RouteError, "block 1 has neurons 0 … 127"),
        ("mamba", ds.drop_head(1, 0), UnsupportedError, "no separate attention and MLP"),
        ("mixtral", ds.drop_neuron(1, 0), UnsupportedError, "neurons of block 1 .* made of experts"),
    ):
        with pytest.raises(error, match=says):
            ds.logits(tiny_of(family), IDS, edit)
    minimax = load(tiny_model("minimax"))
    with pytest.raises(UnsupportedError, match=r"heads of block 0 .* has no pattern"):
        ds.logits(minimax, IDS, ds.drop_head(0, 0))
    assert ds.logits(minimax, IDS, ds.drop_head(1, 0)).shape == (2, 14, 97)


def test_slices_that_are_not_heads_do_not_fit(tiny_of):
    generator = torch.Generator().manual_seed(0)
    kinds = repeated(32)
    pattern = (
        torch.randn(3, 32, 32, generator=generator)
        .tril()
        .masked_fill(~torch.ones(32, 32).tril().bool(), -1e9)
        .softmax(-1)
    )
    values = torch.randn(3, VECTORS, 5, generator=generator)[:, kinds]
    slices = (pattern @ values).transpose(0, 1)
    assert largest_misfit(pattern, slices, kinds) < 1e-5
    assert largest_misfit(pattern, slices.roll(1, 1), kinds) > 1e-2
    assert largest_misfit(pattern, slices.reshape(32, 5, 3).transpose(1, 2), kinds) > 1e-2
    assert largest_misfit(pattern, slices * slices[:, :1].sigmoid(), kinds) > 1e-2


def test_hybrids_have_heads_where_their_blocks_have_attention():
    model = load(tiny_model("granitemoehybrid"))
    assert sorted(model.inside.possible("head")) == [1, 3]
    assert set(HYBRIDS) >= {"granitemoehybrid"}

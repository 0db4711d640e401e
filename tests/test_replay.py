"""Law 3: for every family, each route's logits equal a plain forward of the model rebuilt that way. Here: bit for bit."""

import pytest
import torch
from families import DEPTH, FAMILIES, HYBRIDS, WITHOUT_COMPONENTS, tiny_model
from rebuilt import logits_of, with_order, without_component

import depthscope as ds
from depthscope.errors import UnsupportedError
from depthscope.models.load import load
from depthscope.models.verify import verify

IDS = torch.arange(1, 29).reshape(2, 14) * 31 % 97


def test_the_model_itself(tiny):
    assert torch.equal(ds.logits(tiny, IDS), logits_of(tiny.hf, IDS))


@pytest.mark.parametrize("layer", range(DEPTH - 1))
def test_swap_is_the_model_with_its_blocks_permuted(tiny, layer):
    order = list(range(DEPTH))
    order[layer], order[layer + 1] = order[layer + 1], order[layer]
    assert torch.equal(ds.logits(tiny, IDS, ds.swap(layer)), logits_of(with_order(tiny.hf, order), IDS))


@pytest.mark.parametrize("layer", range(DEPTH))
def test_drop_is_the_model_without_the_block(tiny, layer):
    order = [block for block in range(DEPTH) if block != layer]
    assert torch.equal(ds.logits(tiny, IDS, ds.drop(layer)), logits_of(with_order(tiny.hf, order), IDS))


def test_any_order_is_the_model_with_its_blocks_in_that_order(tiny):
    for edit, order in (
        (ds.reverse(), [3, 2, 1, 0]),
        (ds.repeat(1, 2), [0, 1, 1, 2, 2, 3]),
        (ds.drop(1, 2), [0, 3]),
        (ds.exchange(0, 3), [3, 1, 2, 0]),
        (ds.repeat_range(1, 2), [0, 1, 2, 1, 2, 3]),
        (ds.repeat_middle(0, 2), [1, 1, 1, 3]),
    ):
        assert torch.equal(ds.logits(tiny, IDS, edit), logits_of(with_order(tiny.hf, order), IDS)), edit.name


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in WITHOUT_COMPONENTS])
@pytest.mark.parametrize("component", ["attention", "mlp"])
def test_silencing_is_the_model_with_the_components_output_weights_zeroed(tiny_of, family, component):
    model = tiny_of(family)
    edit = {"attention": ds.drop_attn, "mlp": ds.drop_mlp}[component]
    for layer in range(DEPTH):
        expected = logits_of(without_component(model.hf, layer, component), IDS)
        assert torch.equal(ds.logits(model, IDS, edit(layer)), expected)
        assert not torch.equal(expected, logits_of(model.hf, IDS))


@pytest.mark.parametrize("family", [*FAMILIES, *HYBRIDS])
def test_half_precision(family):
    """What a family computes in float32 all the same, such as Mamba's residual stream, is converted where its own code does."""
    model = load(tiny_model(family, dtype=torch.bfloat16))
    assert torch.equal(ds.logits(model, IDS), logits_of(model.hf, IDS))
    if family in FAMILIES:
        for edit, order in ((ds.swap(1), [0, 2, 1, 3]), (ds.drop(2), [0, 1, 3]), (ds.repeat(0), [0, 0, 1, 2, 3])):
            assert torch.equal(ds.logits(model, IDS, edit), logits_of(with_order(model.hf, order), IDS)), edit.name


def test_parallel_is_the_mean_of_the_outputs(tiny):
    entry = tiny.stack.enter(IDS)
    with torch.inference_mode():
        first = tiny.stack.call(0, entry.residual, entry.arguments)
        middle = torch.stack([tiny.stack.call(block, first, entry.arguments) for block in (1, 2)]).mean(0)
        expected = tiny.unembedding.logits(tiny.unembedding.hidden(tiny.stack.call(3, middle, entry.arguments)))
        again = torch.stack([tiny.stack.call(block, middle, entry.arguments) for block in (1, 2)]).mean(0)
        looped = tiny.unembedding.logits(tiny.unembedding.hidden(tiny.stack.call(3, again, entry.arguments)))
    assert torch.equal(ds.logits(tiny, IDS, ds.parallel(1, 2)).flatten(0, 1), expected)
    assert torch.equal(ds.logits(tiny, IDS, ds.loop(1, 2, 2)).flatten(0, 1), looped)


def test_nothing_of_the_model_is_changed(tiny):
    before = logits_of(tiny.hf, IDS)
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in tiny.hf.modules()]
    ds.logits(tiny, IDS, ds.swap(1))
    if tiny.components is not None:
        ds.logits(tiny, IDS, ds.drop_attn(1) | ds.drop_mlp(2))
    assert hooks == [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in tiny.hf.modules()]
    assert not any("forward" in module.__dict__ for module in tiny.hf.modules())
    assert torch.equal(before, logits_of(tiny.hf, IDS))


def test_an_error_inside_a_block_leaves_no_hook_behind(gpt2):
    entry = gpt2.stack.enter(gpt2.probe_ids())
    with pytest.raises((RuntimeError, IndexError)):
        gpt2.visit(ds.drop_attn(0)(ds.Route.own(12)).visits[0], torch.zeros(1, 1, 3), entry.arguments)
    assert all(not module._forward_hooks for block in range(12) for module in gpt2.component("attn", block))


def test_verify_passes_and_says_so(tiny):
    checks = {check.name: check for check in verify(tiny)}
    assert all(check.passed for check in checks.values())
    assert checks["replay"].difference == 0


@pytest.mark.parametrize("family", WITHOUT_COMPONENTS)
def test_a_model_without_components_refuses_component_edits_only(tiny_of, family):
    model = tiny_of(family)
    assert ds.logits(model, IDS, ds.swap(0)).shape == (2, 14, 97)
    with pytest.raises(UnsupportedError, match="no separate attention and MLP"):
        ds.logits(model, IDS, ds.drop_attn(0))


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in WITHOUT_COMPONENTS])
def test_components_are_found_by_structure_too(tiny_of, family, monkeypatch):
    from depthscope.models import components_search

    model = tiny_of(family)
    monkeypatch.setattr(components_search, "FAMILIES", {})
    found = components_search.find(model.stack, family, model.stack.enter(IDS))
    assert found is not None
    assert found.parallel == model.components.parallel


PARALLEL = {"gpt_neox", "phi", "falcon", "gptj", "cohere"}
SEQUENTIAL_LAYER_NORM = {"gpt2", "opt", "bloom", "gpt_neo", "stablelm", "starcoder2", "mpt"}


def test_layout_and_norm_are_read_from_the_model(tiny):
    expected = (
        "unknown" if tiny.family in WITHOUT_COMPONENTS else "parallel" if tiny.family in PARALLEL else "sequential"
    )
    assert tiny.facts.layout == expected
    assert tiny.facts.norm == ("LayerNorm" if tiny.family in PARALLEL | SEQUENTIAL_LAYER_NORM else "RMSNorm")

"""Laws 11 and 13: a route's numbers are its own, and the model measured is the model handed in, left as it was."""

import random
from types import MethodType

import families
import pytest
import torch
from families import DEPTH, LLAMA, SLIDING, tiny_model
from rebuilt import logits_of
from test_measure_routes import ROUNDING, routes_for, tokens
from test_sweep import save  # noqa: F401 - the same folders

import depthscope as ds
from depthscope.engine.measure_routes import Pieces, RouteMeter
from depthscope.errors import RouteError, UnsupportedError
from depthscope.experiments.sweep import layer_edits, runnable
from depthscope.models.load import load
from depthscope.models.patterns import attention_patterns
from depthscope.models.verify import verify

IDS = torch.arange(1, 29).reshape(2, 14) * 31 % 97
SHARED_KEYS = LLAMA | SLIDING | {
    "num_hidden_layers": 6,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
    "num_kv_shared_layers": 2,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 97,
    "global_head_dim": 8,
}  # fmt: skip
"""Blocks 4 and 5 read the keys and values of blocks 2 and 3."""


@pytest.fixture(scope="module")
def shared_keys():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(families.SHAPES, "gemma4_text", SHARED_KEYS)
        return load(tiny_model("gemma4_text"))


def test_a_routes_numbers_do_not_depend_on_what_it_is_measured_with(tiny):
    check_independence(tiny, routes_for(tiny), seed=sum(map(ord, tiny.family)))


@pytest.mark.parametrize("seed", range(4))
def test_nor_where_blocks_share_keys_and_values(shared_keys, seed):
    every, refused = runnable(layer_edits(["swap", "drop"], shared_keys.depth), shared_keys)
    assert set(refused) == {"drop(2)", "drop(3)"}
    check_independence(shared_keys, [edit.route for edit in every], seed)


def check_independence(model, routes, seed):
    ids, targets = tokens(model, 3, 12)
    generator = random.Random(seed)
    chosen = generator.sample(range(len(routes)), generator.randint(2, len(routes)))
    together = generator.choice([1, 50, 100, 10_000])
    meter = RouteMeter(model, [routes[i] for i in chosen], Pieces(together=together, tokens=generator.choice([12, 36])))
    measured = meter.measure(ids, targets)
    allowed = ROUNDING.get(model.family, 1e-5)
    for place, i in enumerate(chosen):
        alone = RouteMeter(model, [routes[i]]).measure(ids, targets)
        for name in ("kl", "entropy", "loss"):
            ours, own = getattr(measured, name)[place + 1], getattr(alone, name)[1]
            torch.testing.assert_close(ours, own, atol=allowed, rtol=allowed, msg=f"{name} of {routes[i].name}")


def by_hand(hf, ids, order):
    """The blocks in an order, called by hand with what the model gives each and one fresh mapping of keys and values."""
    given = {}
    handles = [
        block.register_forward_pre_hook(
            lambda _module, args, kwargs, i=i: given.__setitem__(i, (args, kwargs)), with_kwargs=True
        )
        for i, block in enumerate(hf.model.layers)
    ]
    with torch.no_grad():
        hf.model(input_ids=ids, use_cache=False, output_hidden_states=True)
        for handle in handles:
            handle.remove()
        residual, mapping = given[0][0][0], type(given[0][1]["shared_kv_states"])()
        for block in order:
            args, kwargs = given[block]
            residual = hf.model.layers[block](residual, *args[1:], **{**kwargs, "shared_kv_states": mapping})
        logits = hf.lm_head(hf.model.norm(residual))
    cap = hf.config.final_logit_softcapping
    return logits if cap is None else torch.tanh(logits / cap) * cap


def test_each_route_has_the_keys_and_values_of_its_own_blocks(shared_keys):
    model = shared_keys
    assert torch.equal(ds.logits(model, IDS), by_hand(model.hf, IDS, range(6)))
    orders = {ds.swap(0): [1, 0, 2, 3, 4, 5], ds.swap(2): [0, 1, 3, 2, 4, 5], ds.drop(0): [1, 2, 3, 4, 5]}
    orders |= {ds.drop(4): [0, 1, 2, 3, 5], ds.repeat(2, 3): [0, 1, 2, 2, 3, 3, 4, 5]}
    for edit, order in orders.items():
        assert torch.equal(ds.logits(model, IDS, edit), by_hand(model.hf, IDS, order)), edit.name


def test_a_route_without_the_block_that_stores_keys_is_refused_by_name(shared_keys):
    with pytest.raises(
        RouteError, match=r"block 4 reads shared_kv_states\['sliding_attention'\], which block 2 stores"
    ):
        ds.logits(shared_keys, IDS, ds.drop(2))
    with pytest.raises(RouteError, match="expected a route that visits it before block 5"):
        RouteMeter(shared_keys, [ds.reverse()(ds.Route.own(6))])


def test_a_study_leaves_out_such_layers_and_says_so(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(
            families.SHAPES, "gemma4_text", SHARED_KEYS | {"vocab_size": 4096, "vocab_size_per_layer_input": 4096}
        )
        shelf = ds.load("bookshelf-gpt2")
        model = load(tiny_model("gemma4_text", vocab_size=4096), tokenizer=shelf.tokenizer)
    settings = {"experiments": ["sweep"], "edits": ["swap", "drop"], "window": 20, "progress": False}
    study = ds.study(model, ds.corpus(tokens=200), out=tmp_path / "run", **settings)
    table = study.table("sweep")
    assert sorted(table.filter(table["edit"] == "drop")["layer"].unique().to_list()) == [0, 1, 4, 5]
    assert "which block 2 stores" in study.run.manifest.not_done["drop(2)"]


class Writes(torch.nn.Module):
    """A block that adds to the residual stream in place."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, hidden_states, *args, **kwargs):
        return hidden_states.add_(1.0)


def test_a_block_that_writes_into_what_it_is_given_is_refused():
    hf = tiny_model("llama")
    hf.model.layers[1] = Writes(hf.model.layers[1])
    with pytest.raises(UnsupportedError, match=r"block 1 writes into what it is given \(the residual stream"):
        load(hf)


def louder(self, *args, **kwargs):
    """What people assign to a module's forward."""
    output = type(self).forward(self, *args, **kwargs)
    return (output[0] * 1.5, *output[1:]) if isinstance(output, tuple) else output * 1.5


def patches(hf, model):
    """Modules that people patch: a block, an attention, an MLP, a module deep inside, the stack around them."""
    inside = next(m for m in model.stack.blocks[2].modules() if not list(m.children()) and list(m.parameters()))
    modules = [model.stack.blocks[2], inside, hf.base_model]
    if model.components is not None:
        modules += [model.component("attn", 1)[0], model.component("mlp", 1)[0]]
    return modules


def test_a_patched_model_is_measured_as_patched_and_stays_so(tiny):
    expected_unpatched = logits_of(tiny.hf, IDS)
    hf = tiny_model(tiny.family)
    for module in patches(hf, load(hf)):
        if module is hf.base_model:
            continue  # its output is an object with several fields
        module.forward = MethodType(louder, module)
    patched = {name: vars(module)["forward"] for name, module in hf.named_modules() if "forward" in vars(module)}
    own = logits_of(hf, IDS)
    assert not torch.equal(own, expected_unpatched), "the patches matter"
    model = load(hf)
    assert all(check.passed for check in verify(model))
    assert torch.equal(ds.logits(model, IDS), own)
    edits = [ds.swap(1), ds.drop(2)] + ([ds.drop_mlp(1), ds.drop_attn(1)] if model.components is not None else [])
    for edit in edits:
        ds.logits(model, IDS, edit)
    with torch.inference_mode():
        list(attention_patterns(model, IDS))
    measured = RouteMeter(model, [edit(ds.Route.own(DEPTH)) for edit in edits]).measure(IDS, IDS)
    assert torch.isfinite(measured.kl).all()
    loss = torch.nn.functional.cross_entropy(own.flatten(0, 1), IDS.flatten(), reduction="none").view_as(IDS)
    torch.testing.assert_close(measured.loss[0], loss, atol=1e-3, rtol=1e-4)
    still = {name: vars(module)["forward"] for name, module in hf.named_modules() if "forward" in vars(module)}
    assert still == patched
    assert torch.equal(logits_of(hf, IDS), own)

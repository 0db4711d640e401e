"""Law 4 across paths: packed products, compiled sums and shared components change no number beyond rounding."""

import math
import threading

import pytest
import torch
from test_sweep import save
from torch.nn import functional

import depthscope as ds
from depthscope.cli.summary import print_summary
from depthscope.edit_registry import sweeps
from depthscope.engine import measure_routes
from depthscope.engine.baseline import Keep
from depthscope.engine.measure_routes import Pieces, RouteMeter
from depthscope.errors import MemoryShortError
from depthscope.experiments.sweep import layer_edits, possible_edits
from depthscope.models import kernels
from depthscope.models.kernels import TANH_GELU, Kernels
from depthscope.models.load import load
from depthscope.models.model import Model
from depthscope.routes import Route, Step


def routes_of(model: Model) -> list[Route]:
    return [edit.route for edit in layer_edits(possible_edits(list(sweeps()), model)[0], model.depth)]


def text_of(model: Model, windows: int = 2, length: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(0, model.unembedding.vocabulary, (windows, length), generator=torch.Generator().manual_seed(3))
    return ids, ids.roll(-1, 1)


def without_kernels(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "available_memory", lambda: 1)
    model.__dict__["kernels"] = Kernels(model.hf, model.unembedding.linear)
    model.kernels._activations.clear()


def test_fast_kernels_change_no_number_beyond_rounding(tiny, monkeypatch):
    text, routes = text_of(tiny), routes_of(tiny)
    assert tiny.kernels.note == ""
    fast = RouteMeter(tiny, routes).measure(*text)
    assert tiny.kernels._packed, "no weight was packed"
    without_kernels(tiny, monkeypatch)
    assert "more than half" in tiny.kernels.note
    plain = RouteMeter(tiny, routes).measure(*text)
    assert not tiny.kernels._packed
    torch.testing.assert_close(fast.kl, plain.kl, rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(fast.entropy, plain.entropy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fast.loss, plain.loss, rtol=1e-5, atol=1e-4)
    assert (fast.agreement == plain.agreement).float().mean() > 0.99  # two logits may be equal up to rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_product_does_not_depend_on_what_is_computed_with_it(dtype):
    if why := kernels._broken(dtype):
        pytest.skip(why)
    given, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((300, 96), (130, 96), (130,)))
    ready = kernels.packed(weight)
    whole = kernels.product(given, ready, bias)
    torch.testing.assert_close(whole, functional.linear(given, weight, bias))
    for rows in (1, 7, 64):
        parts = torch.cat([kernels.product(part, ready, bias) for part in given.split(rows)])
        assert torch.equal(parts, whole)


def test_gelu_is_its_definition():
    x = torch.cat([torch.linspace(-30, 30, 60_001), torch.tensor([-1e30, 1e30, 0.0])])
    u = math.sqrt(2 / math.pi) * (x.double() + 0.044715 * x.double() ** 3)
    torch.testing.assert_close(kernels.tanh_gelu(x).double(), x.double() * torch.sigmoid(2 * u), rtol=1e-5, atol=1e-7)
    for given in (x.double(), x.bfloat16()):
        torch.testing.assert_close(kernels.tanh_gelu(given), functional.gelu(given, approximate="tanh"))
    tokens = x[:57_600].view(-1, 64)  # torch computes what does not fill a vector register in another way
    parts = torch.cat([kernels.tanh_gelu(part) for part in tokens.split(7)])
    assert torch.equal(parts, kernels.tanh_gelu(tokens)), "a token depends on others"


def test_what_the_kernels_change_is_changed_back(gpt2):
    activations = [module for module in gpt2.hf.modules() if isinstance(module, TANH_GELU)]
    assert activations
    linear = functional.linear
    seen = []

    def elsewhere() -> None:
        seen.append(functional.linear is linear)
        with gpt2.measuring():
            seen.append(all("forward" in vars(module) for module in activations))

    def failing() -> None:
        with gpt2.measuring(), gpt2.measuring():
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            assert all("forward" in vars(module) for module in activations), "another thread took ours away"
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        failing()
    assert seen == [True, True]
    assert not any("forward" in vars(module) for module in activations)
    before = len(gpt2.kernels._packed)
    functional.linear(torch.ones(1, gpt2.unembedding.weight.shape[1]), gpt2.unembedding.weight[:5].detach())
    assert len(gpt2.kernels._packed) == before


def test_weights_changed_in_place_are_seen(tmp_path):
    model = load(save("gpt2", tmp_path / "model"))
    text, routes = text_of(model), routes_of(model)[:4]
    before = RouteMeter(model, routes).measure(*text)
    model.component("mlp", 1)[0].c_fc.weight.data.mul_(0.5)
    changed = RouteMeter(model, routes).measure(*text)
    assert not torch.equal(before.loss[0], changed.loss[0])
    fresh = RouteMeter(load(model.hf), routes).measure(*text)
    assert torch.equal(changed.kl, fresh.kl)
    assert torch.equal(changed.loss, fresh.loss)


def test_products_may_be_asked_for_by_name(gpt2):
    weight = gpt2.hf.transformer.h[0].mlp.c_fc.weight
    given, bias = torch.randn(3, weight.shape[0]), torch.randn(weight.shape[1])
    expected = given @ weight + bias
    with gpt2.measuring():
        torch.testing.assert_close(functional.linear(input=given, weight=weight.T, bias=bias), expected)
        torch.testing.assert_close(torch.addmm(input=bias, mat1=given, mat2=weight), expected)
        torch.testing.assert_close(torch.addmm(bias, given, weight, beta=2.0), expected + bias)


def test_weights_that_are_not_the_models_are_not_kept(gpt2):
    with gpt2.measuring():
        before = len(gpt2.kernels._packed)
        functional.linear(torch.ones(2, 8), torch.ones(3, 8))
        assert len(gpt2.kernels._packed) == before


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma2", "opt"])
def test_what_follows_from_the_own_run_is_bit_for_bit_what_the_block_gives(tiny_of, family):
    model = tiny_of(family)
    assert model.shares_components
    text, routes = text_of(model), routes_of(model)
    shared = RouteMeter(model, routes)
    assert shared.keep
    alone = RouteMeter(model, routes)
    alone.keep = Keep.NOTHING
    one, other = shared.measure(*text), alone.measure(*text)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_silenced_component_is_not_computed(gpt2):
    calls = []
    handles = [
        module.register_forward_hook(lambda *_: calls.append(1)) for module in gpt2.component("mlp", 3)[0].children()
    ]
    try:
        with torch.inference_mode():
            entry = gpt2.stack.enter(text_of(gpt2)[0])
            gpt2.visit(Step(3, ("mlp",)), entry.residual, entry.arguments)
            assert not calls
            gpt2.visit(Step(3, ("attn",)), entry.residual, entry.arguments)
            assert calls
    finally:
        for handle in handles:
            handle.remove()


def test_what_does_not_fit_is_measured_in_halves(gpt2, monkeypatch):
    text, routes = text_of(gpt2, windows=5), routes_of(gpt2)[:6]
    whole = RouteMeter(gpt2, routes).measure(*text)
    real = measure_routes.compare

    def with_little_memory(head, base, hidden, targets):
        if len(targets) > 2 * 12:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
        return real(head, base, hidden, targets)

    monkeypatch.setattr(measure_routes, "compare", with_little_memory)
    meter = RouteMeter(gpt2, routes, Pieces(together=1))
    halves = meter.measure(*text)
    assert meter.halved == 2  # 5 windows in 2 and 3, the 3 in 1 and 2
    torch.testing.assert_close(halves.kl, whole.kl, rtol=1e-5, atol=2e-6)
    assert torch.equal(halves.agreement, whole.agreement)


def test_a_window_that_does_not_fit_is_said_so(gpt2, monkeypatch):
    def no_memory(*_arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(measure_routes, "compare", no_memory)
    with pytest.raises(MemoryShortError, match="one window of 12 tokens: expected a shorter"):
        RouteMeter(gpt2, routes_of(gpt2)[:2]).measure(*text_of(gpt2))


def test_other_errors_are_not_taken_for_a_want_of_memory(gpt2, monkeypatch):
    def broken(*_arguments):
        raise RuntimeError("something else")

    monkeypatch.setattr(measure_routes, "compare", broken)
    with pytest.raises(RuntimeError, match="something else"):
        RouteMeter(gpt2, routes_of(gpt2)[:2]).measure(*text_of(gpt2))


def test_a_run_says_how_it_was_computed_and_what_was_begun_otherwise(tmp_path, monkeypatch, capsys):
    model = load(save("llama", tmp_path / "model"))
    settings = {"experiments": ["sweep"], "edits": ["drop"], "window": 20, "progress": False}
    made = ds.study(model, ds.corpus(tokens=200), out=tmp_path / "run", **settings).run
    assert made.manifest.kernels == {"products": "packed", "sums": "plain"}
    print_summary(made, ["sweep"])
    assert "packed" not in capsys.readouterr().out, "what is as it should be is not worth a line"
    made.update(status="running")
    without_kernels(model, monkeypatch)
    resumed = ds.study(model, ds.corpus(tokens=200), out=tmp_path / "run", **settings).run
    assert resumed.manifest.kernels["products"].startswith("plain: packed weights would take 0.0 GiB, more than half")
    assert resumed.manifest.earlier_kernels == [{"products": "packed", "sums": "plain"}]
    print_summary(resumed, ["sweep"])
    assert "products: plain: packed weights would take" in " ".join(capsys.readouterr().out.split())

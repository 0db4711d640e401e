"""Law 5 for every form of the passes over the vocabulary, and what an accelerator needs: no waiting, sizes as data."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from test_kernels import routes_of, text_of
from torch.utils._python_dispatch import TorchDispatchMode

from depthscope.engine import reductions, sizes
from depthscope.engine.baseline import Baseline
from depthscope.engine.measure_routes import Pieces, RouteMeter
from depthscope.engine.reductions import (
    DEFINITION,
    DEFINITION_WITH_PLACE,
    PLAIN,
    PLAIN_WITH_PLACE,
    compiled,
    reductions_for,
)
from depthscope.engine.sizes import ACCELERATOR, CPU, Card, nearest, sizes_for

CPU_DEVICE, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def fresh():
    """Forms are made once per process; these tests make them under other conditions."""
    compiled.cache_clear()
    reductions.fused.cache_clear()
    yield
    compiled.cache_clear()
    reductions.fused.cache_clear()


def test_every_form_gives_the_definition():
    made, why = compiled()
    forms = [PLAIN, PLAIN_WITH_PLACE, DEFINITION_WITH_PLACE, *([] if why else [made])]
    for dtype in (torch.float32, torch.bfloat16):
        for shape in ((40, 300), (700, 41), (3, 20)):
            logits = (5 * torch.randn(*shape)).to(dtype)
            exact = logits.double()
            below = exact - exact.amax(-1, keepdim=True)
            expected = (exact.amax(-1), below.exp().sum(-1), (below * below.exp()).sum(-1))
            for form in forms:
                *sums, place = form.slice_sums(logits.clone())
                assert (place is not None) == form.places
                assert place is None or torch.equal(place, logits.argmax(-1))
                for ours, theirs in zip(sums, expected, strict=True):
                    assert ours.dtype == torch.float32
                    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


def test_sums_are_compiled_for_long_work_alone(monkeypatch):
    monkeypatch.setattr(reductions, "compiled", lambda _device: (DEFINITION, "made for the test"))
    assert reductions_for(CPU_DEVICE, 1e9) == (PLAIN, "")
    assert reductions_for(CPU_DEVICE, 1e12) == (DEFINITION, "made for the test")


def test_without_a_compiler_there_are_the_plain_sums(monkeypatch, fresh):
    def no_compiler(*_args, **_options):
        raise OSError("no compiler")

    monkeypatch.setattr(reductions.torch, "compile", lambda _function, **_options: no_compiler)
    assert compiled() == (PLAIN, "reductions are not compiled: OSError")


def test_without_triton_an_accelerator_still_never_waits(monkeypatch, fresh):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "depthscope.engine.triton_passes", raising=False)
    assert reductions_for(CUDA) == (PLAIN_WITH_PLACE, "triton is not installed")
    monkeypatch.setattr(reductions, "compiled", lambda _device: (DEFINITION, ""))
    assert reductions_for(CUDA, 1e12) == (DEFINITION, "triton is not installed")
    assert reductions_for(CUDA, preferred="compiled") == (DEFINITION, "")


def test_kernels_that_come_out_wrong_are_not_used(monkeypatch, fresh):
    def off_by_one(logits):
        highest, total, weighted, place = PLAIN_WITH_PLACE.slice_sums(logits)
        return highest, total, weighted, place + 1

    class Passes:
        slice_sums = staticmethod(off_by_one)
        row_products = capped_cross = None

    import depthscope.statistics

    monkeypatch.setitem(sys.modules, "depthscope.engine.triton_passes", Passes)
    monkeypatch.setattr(depthscope.statistics, "triton_passes", Passes, raising=False)
    found, why = reductions.fused("cpu")
    assert found is None
    assert "wrong in a test" in why


def test_every_form_gives_the_same_measures(tiny):
    text, routes = text_of(tiny), routes_of(tiny)
    plain = RouteMeter(tiny, routes, Pieces(slice_width=40)).measure(*text)
    for form in (PLAIN_WITH_PLACE, DEFINITION):
        other = RouteMeter(tiny, routes, Pieces(reductions=form, slice_width=40)).measure(*text)
        assert torch.equal(other.kl[0], torch.zeros_like(other.kl[0]))
        assert torch.equal(other.agreement, plain.agreement)
        torch.testing.assert_close(plain.kl, other.kl, rtol=1e-5, atol=2e-6)


class Waits(TorchDispatchMode):
    """Counts the operations that make a program wait for an accelerator: whatever comes back as a number or a size."""

    NAMES = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "unique", "item", "_unique2")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        bools = name == "index" and any(isinstance(i, torch.Tensor) and i.dtype == torch.bool for i in args[1])
        if name in self.NAMES or bools:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


EXPERTS_WAIT = {"mixtral", "qwen3_moe", "gpt_oss"}
"""transformers' own code for experts may count the tokens of each."""


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in EXPERTS_WAIT])
@pytest.mark.parametrize("together", [1, 10_000])
def test_measuring_routes_never_waits_for_the_device(tiny_of, family, together):
    model = tiny_of(family)
    ids, targets = text_of(model)
    meter = RouteMeter(model, routes_of(model), Pieces(together=together, reductions=PLAIN_WITH_PLACE))
    meter.measure(ids, targets)
    with model.measuring():
        baseline = Baseline(model, ids, targets, keep=meter.keep, reductions=PLAIN_WITH_PLACE)
        _ = baseline.reference  # checked for NaN and infinity, which waits, once for all routes
        with Waits() as waits:
            measured = meter.on_device(baseline)
    assert waits.seen == []
    assert bool((measured.kl[1:] > 0).any())


def test_waiting_is_noticed(gpt2):
    """The forms for CPUs do search; so the count above can fail."""
    ids, targets = text_of(gpt2)
    with gpt2.measuring(), Waits() as waits:
        RouteMeter(gpt2, routes_of(gpt2)[:1]).on_device(Baseline(gpt2, ids, targets))
    assert "nonzero" in waits.seen


TRITON = """
import sys
import torch
sys.path[:0] = sys.argv[1:]
from test_divergence import MAPS, head_of
from depthscope.engine import reductions
from depthscope.engine.divergence import compare, reference

form, why = reductions.fused("cpu")
assert form is not None, why
for dtype in (torch.float32, torch.bfloat16):
    for columns in (1, 37, 2048, 4100):
        logits = torch.randint(-4, 4, (5, columns)).to(dtype) * 2.5  # many ties
        logits[0, -1], logits[1] = 30, -3
        exact = logits.double()
        below = exact - exact.amax(-1, keepdim=True)
        highest, total, weighted, place = form.slice_sums(logits)
        assert torch.equal(highest.double(), exact.amax(-1))
        torch.testing.assert_close(total.double(), below.exp().sum(-1), rtol=1e-5, atol=0)
        torch.testing.assert_close(weighted.double(), (below * below.exp()).sum(-1), rtol=1e-5, atol=1e-6)
        assert torch.equal(place, exact.argmax(-1))
bad = torch.zeros(2, 40)
bad[0, 3], bad[1, 3] = torch.nan, torch.inf
assert not torch.isfinite(form.slice_sums(bad)[1] + form.slice_sums(bad)[2]).any(), "NaN and infinity show"
for logit_map in MAPS:
    for dtype in (torch.float32, torch.bfloat16):
        head = head_of(48, 230, True, logit_map, 5.0, dtype)
        own, edited = torch.randn(6, 48).to(dtype), torch.randn(12, 48).to(dtype)
        edited[:6] = own
        targets = torch.randint(0, 230, (6,))
        plain, fused = (
            compare(head, reference(head, own, 100, form), edited, targets) for form in (reductions.PLAIN, form)
        )
        assert bool((fused.kl[:6] == 0).all())
        assert torch.equal(fused.agreement, plain.agreement)
        for name in ("kl", "entropy", "loss"):
            torch.testing.assert_close(getattr(fused, name), getattr(plain, name), rtol=1e-5, atol=2e-5)
print("triton as defined")
"""


def test_the_triton_kernels_give_their_definitions():
    pytest.importorskip("triton", reason="triton is made for Linux on x86-64 and Arm alone")
    tests = Path(__file__).parent
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TRITON, str(tests)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "triton as defined\n", done.stderr


H100 = {"name": "NVIDIA H100 80GB HBM3", "memory": 79.2, "multiprocessors": 132, "capability": 9.0}
T4 = {"name": "Tesla T4", "memory": 14.7, "multiprocessors": 40, "capability": 7.5}


def entry(card, *widths):
    made = {"together": 8, "rows": 9, "slice_width": 10, "reductions": "triton"}
    return {"card": card, "sizes": [{"width": width, "tokens": width + 1, **made} for width in widths]}


def test_a_card_takes_the_sizes_of_the_nearest_that_was_measured():
    table = [entry(H100, 768, 4096), entry(T4, 768)]
    assert nearest(table, Card(**H100), 1024).tokens == 769
    assert nearest(table, Card(**H100), 5120).tokens == 4097
    h200 = Card("NVIDIA H200", 140.0, 132, 9.0)
    assert nearest(table, h200, 4096) == nearest(table, Card(**H100), 4096)
    assert nearest(table, Card("Tesla V100", 16.0, 80, 7.0), 4096) == nearest(table[1:], Card(**T4), 4096)


def test_sizes_follow_the_device_and_a_cpu_keeps_its_own(gpt2, monkeypatch):
    assert sizes_for(CPU_DEVICE, 768) == CPU
    assert sizes_for(torch.device("mps"), 768) == ACCELERATOR
    with gpt2.measuring():
        assert Baseline(gpt2, *text_of(gpt2)).reference.slice_width == CPU.slice_width


def test_the_table_of_cards_can_be_read():
    for one in json.loads(sizes.CARDS.read_text()):
        card = Card(**one["card"])
        for of_width in one["sizes"]:
            assert nearest([one], card, of_width["width"]).tokens == of_width["tokens"]


def test_several_routes_share_one_reference(tiny):
    """Routes that end in one call are compared with the baseline's tokens without copies of them."""
    text, routes = text_of(tiny), routes_of(tiny)
    one = RouteMeter(tiny, routes, Pieces(together=1)).measure(*text)
    many = RouteMeter(tiny, routes, Pieces(together=10_000)).measure(*text)
    for name in ("kl", "entropy", "loss"):
        torch.testing.assert_close(getattr(one, name), getattr(many, name), atol=5e-4, rtol=1e-4)

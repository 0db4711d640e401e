"""Law 5 for the measures over the vocabulary, and law 1: the unedited route has KL exactly 0."""

import naive
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from depthscope.engine.divergence import _TopToken, compare, measure_baseline, reference
from depthscope.models.unembedding import ElementwiseMap, Unembedding

MAPS = [
    ElementwiseMap(),
    ElementwiseMap("multiply", 0.25),
    ElementwiseMap("divide", 3.0),
    ElementwiseMap("softcap", 5.0),
]


def head_of(
    width: int, vocabulary: int, bias: bool, logit_map: ElementwiseMap, scale: float, dtype=torch.float32
) -> Unembedding:
    head = object.__new__(Unembedding)
    torch.manual_seed(0)
    head.linear = torch.nn.Linear(width, vocabulary, bias=bias).to(dtype).requires_grad_(False)
    head.linear.weight.mul_(scale)
    head.modules, head.map = [], logit_map
    return head


@given(
    st.integers(1, 600),
    st.integers(2, 300),
    st.integers(1, 320),
    st.booleans(),
    st.sampled_from(MAPS),
    st.sampled_from([0.1, 1.0, 20.0]),
)
@settings(max_examples=60, deadline=None)
def test_measures_equal_their_naive_definitions(tokens, vocabulary, slice_width, bias, logit_map, scale):
    head = head_of(16, vocabulary, bias, logit_map, scale)
    own, edited = torch.randn(2, tokens, 16)
    targets = torch.randint(0, vocabulary, (tokens,))
    with torch.inference_mode():
        base = reference(head, own, slice_width)
        measured = compare(head, base, edited, targets)
        expected = naive.measures(head.logits(own), head.logits(edited), targets)
        baseline = naive.measures(head.logits(own), head.logits(own), targets)
        itself = measure_baseline(head, base, targets)
    for name, value in expected.items():
        torch.testing.assert_close(getattr(measured, name).double(), value, atol=3e-5, rtol=1e-5, msg=name)
    torch.testing.assert_close(itself.entropy.double(), baseline["entropy"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(itself.loss.double(), baseline["loss"], atol=3e-5, rtol=1e-5)


@pytest.mark.parametrize("logit_map", MAPS, ids=lambda m: m.kind)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_distribution_against_itself_has_kl_exactly_zero(logit_map, dtype):
    head = head_of(32, 5000, True, logit_map, 10.0, dtype)
    hidden = torch.randn(700, 32).to(dtype)
    targets = torch.zeros(700, dtype=torch.int64)
    with torch.inference_mode():
        measured = compare(head, reference(head, hidden), hidden.clone(), targets)
    assert torch.equal(measured.kl, torch.zeros(700))
    assert bool(measured.agreement.all())


def test_of_equally_likely_tokens_the_lowest_id_is_the_top_one():
    head = head_of(4, 9, False, ElementwiseMap(), 1.0)
    head.linear.weight.zero_()
    found = reference(head, torch.randn(3, 4), slice_width=2).own
    assert found.top.tolist() == [0, 0, 0]
    torch.testing.assert_close(found.entropy, torch.full((3,), 9.0).double().log())


@given(
    st.integers(1, 60), st.integers(1, 40), st.sampled_from([1, 7, 16, 64]), st.sampled_from([1, 2, 5]), st.booleans()
)
@settings(max_examples=80, deadline=None)
def test_agreement_with_many_ties_and_masked_logits_is_that_of_an_argmax(tokens, vocabulary, width, levels, masked):
    """Slices in which one row is searched, some are or all, whose logits are left as they were for what reads them next."""
    logits = torch.randint(levels, (tokens, vocabulary)).float()
    if masked:
        logits[:, ::3] = -torch.inf
    top = torch.where(torch.rand(tokens) < 0.5, logits.argmax(-1), torch.randint(vocabulary, (tokens,)))
    searched = _TopToken(top, width)
    maxima = []
    for index, part in enumerate(logits.split(width, 1)):
        kept = part.clone()
        searched.look(index, part)
        assert torch.equal(part, kept)
        maxima.append(part.amax(-1))
    assert torch.equal(searched.agrees(torch.stack(maxima).max(0).indices), logits.argmax(-1) == top)


def test_extreme_logits_stay_finite():
    head = head_of(8, 300, False, ElementwiseMap(), 1e4)
    own, edited = torch.randn(2, 50, 8)
    targets = torch.zeros(50, dtype=torch.int64)
    measured = compare(head, reference(head, own, 64), edited, targets)
    expected = naive.measures(head.logits(own), head.logits(edited), targets)
    for name in ("kl", "entropy", "loss"):
        torch.testing.assert_close(getattr(measured, name).double(), expected[name], atol=1e-2, rtol=1e-4, msg=name)


def test_padding_tokens_with_no_probability_do_no_harm():
    head = head_of(8, 64, True, ElementwiseMap(), 1.0)
    head.linear.bias[60:] = -1e4
    own, edited = torch.randn(2, 20, 8)
    targets = torch.zeros(20, dtype=torch.int64)
    measured = compare(head, reference(head, own, 7), edited, targets)
    expected = naive.measures(head.logits(own), head.logits(edited), targets)
    torch.testing.assert_close(measured.kl.double(), expected["kl"], atol=1e-5, rtol=1e-5)


def test_the_legend_of_shapes_is_enforced():
    head = head_of(8, 64, False, ElementwiseMap(), 1.0)
    with pytest.raises(Exception, match="Type-check error"):
        reference(head, torch.randn(2, 3, 8))

"""The noise floor against plain forwards of the model in both dtypes."""

import copy

import pytest
import torch
from families import WITHOUT_COMPONENTS, tiny_model
from rebuilt import logits_of

from depthscope.models.load import load
from depthscope.models.noise_floor import noise_floor

IDS = torch.arange(1, 41).reshape(2, 20) * 31 % 90


@pytest.mark.parametrize(
    "family", ["gpt2", "gpt_neox", "phi", "llama", "qwen2", "gemma2", "granite", "falcon", "cohere", "mamba"]
)
def test_half_precision_against_float32(family):
    half = tiny_model(family, dtype=torch.bfloat16)
    found = noise_floor(load(half), IDS)
    assert (found.dtype, found.finer, found.tokens) == ("bfloat16", "float32", 20)
    own = logits_of(half, IDS[:1]).double().log_softmax(-1)
    exact = logits_of(copy.deepcopy(half).float(), IDS[:1]).double().log_softmax(-1)
    naive = float((exact.exp() * (exact - own)).sum(-1).mean())
    assert naive > 0
    assert found.kl == pytest.approx(naive, rel=0.25, abs=1e-7)  # rotary angles are the half-precision model's own here


def test_float32_is_far_below_what_matters(tiny):
    found = noise_floor(tiny, IDS)
    if tiny.family in WITHOUT_COMPONENTS and found is None:
        return
    if found is not None:  # some families fix a dtype in the middle of a block
        assert 0 <= found.kl < 1e-6


def test_most_families_have_a_floor():
    found = {
        family: noise_floor(load(tiny_model(family)), IDS) for family in ("gpt2", "gpt_neox", "llama", "gemma2", "opt")
    }
    assert all(floor is not None for floor in found.values())


def test_nothing_is_finer_than_float64():
    assert noise_floor(load(tiny_model("gpt2", dtype=torch.float64)), IDS) is None

"""Attention patterns are the model's own: rows of shares, causal, and what transformers returns on eager attention."""

import copy
from contextlib import closing

import pytest
import torch
from families import DEPTH, WITHOUT_COMPONENTS, tiny_model
from torch import nn

from depthscope.models.load import load
from depthscope.models.patterns import attention_patterns, has_patterns

IDS = torch.arange(1, 25).reshape(2, 12) * 31 % 97
HEADS = 4
SINKS = ("gpt_oss",)


def own_residuals(model, ids):
    entry = model.stack.enter(ids)
    residuals = [entry.residual]
    for block in range(model.depth - 1):
        residuals.append(model.stack.call(block, residuals[-1], entry.arguments))
    return residuals


@torch.inference_mode()
def patterns_of(model, ids=IDS, residuals=None):
    return list(attention_patterns(model, ids, residuals))


@torch.inference_mode()
def transformers_own(model, ids=IDS):
    eager = copy.deepcopy(model.hf)
    for module in eager.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = "eager"
    return eager(input_ids=ids, use_cache=False, output_attentions=True).attentions


def test_patterns_are_those_of_transformers(tiny):
    found = patterns_of(tiny)
    if tiny.family in WITHOUT_COMPONENTS:
        assert found == [None] * DEPTH
        return
    for pattern, expected in zip(found, transformers_own(tiny), strict=True):
        assert pattern.shape == (2, HEADS, 12, 12)
        assert torch.equal(pattern, expected)


def test_patterns_of_given_residual_streams_are_those_of_the_own_run(tiny):
    with torch.inference_mode():
        residuals = own_residuals(tiny, IDS)
    for given, own in zip(patterns_of(tiny, residuals=residuals), patterns_of(tiny), strict=True):
        assert (given is None) == (own is None) == (tiny.family in WITHOUT_COMPONENTS)
        if own is not None:
            torch.testing.assert_close(given, own, atol=1e-4, rtol=1e-3)


def test_rows_are_shares_over_what_was_read_already(tiny):
    for pattern in patterns_of(tiny):
        if pattern is None:
            continue
        assert bool((pattern >= 0).all())
        assert torch.equal(pattern.triu(1), torch.zeros_like(pattern))
        rows = pattern.sum(-1)
        if tiny.family in SINKS:
            assert bool((rows < 1).all())
        else:
            torch.testing.assert_close(rows, torch.ones_like(rows), atol=1e-5, rtol=0)


def test_another_residual_stream_gives_another_pattern(tiny_of):
    model = tiny_of("llama")
    with torch.inference_mode():
        residuals = own_residuals(model, IDS)
        residuals[2] = residuals[2].flip(1)
    changed = [
        not torch.equal(a, b) for a, b in zip(patterns_of(model, residuals=residuals), patterns_of(model), strict=True)
    ]
    assert changed[2]
    torch.testing.assert_close(patterns_of(model, residuals=residuals)[3], patterns_of(model)[3], atol=1e-4, rtol=1e-3)


def backends(hf: nn.Module):
    return [m.config._attn_implementation for m in hf.modules() if hasattr(m, "config")]


def test_the_attention_backend_is_left_as_it_was(tiny_of):
    model = tiny_of("gpt2")
    before = backends(model.hf)
    assert "sdpa" in before
    patterns_of(model)
    assert backends(model.hf) == before
    with torch.inference_mode(), closing(attention_patterns(model, IDS)) as patterns:
        next(patterns)
        assert set(backends(model.hf)) == {"eager"}
    assert backends(model.hf) == before
    with torch.inference_mode(), pytest.raises(IndexError):
        list(attention_patterns(model, IDS, []))
    assert backends(model.hf) == before
    assert not any(m._forward_hooks for m in model.stack.blocks[0].modules())


def test_blocks_with_patterns_are_told(tiny):
    with torch.inference_mode():
        assert has_patterns(tiny) == [tiny.family not in WITHOUT_COMPONENTS] * DEPTH


def test_a_batch_as_large_as_its_sequences_confuses_nothing(tiny_of):
    square = torch.arange(16).reshape(4, 4)
    for pattern, expected in zip(
        patterns_of(tiny_of("gpt2"), square), transformers_own(tiny_of("gpt2"), square), strict=True
    ):
        assert torch.equal(pattern, expected)


def test_the_embedded_models_patterns_are_those_of_transformers(shelf):
    ids = shelf.probe_ids(32)
    for pattern, expected in zip(patterns_of(shelf, ids), transformers_own(shelf, ids), strict=True):
        assert torch.equal(pattern, expected)


def test_half_precision_patterns_are_read_too():
    model = load(tiny_model("llama", dtype=torch.bfloat16))
    assert all(pattern.dtype == torch.bfloat16 for pattern in patterns_of(model))

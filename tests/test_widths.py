"""Heads, neurons and experts are those of the weights, whatever a family's configuration calls them."""

import pytest
from families import WIDTH, WITHOUT_COMPONENTS, tiny_model
from torch import nn

from depthscope.models.components import SEQUENTIAL, Components
from depthscope.models.model import Model
from depthscope.models.widths import widths

FOUR_TIMES = {"gpt2", "bloom", "falcon", "gptj", "gpt_neo", "mpt"}
EXPERTS = {"mixtral": 48, "qwen3_moe": 24, "gpt_oss": 48}
"""Neurons of an expert: some families have a width of their own for it, others the dense one's."""
ALL_THEIR_OWN = {"gpt2", "gpt_neox", "phi", "phi3", "opt", "bloom", "gptj", "gpt_neo", "stablelm", "mpt"}


def test_widths_are_those_of_the_weights(tiny):
    facts, family = tiny.facts, tiny.family
    found = (facts.heads, facts.kv_heads, facts.head_width, facts.mlp_width, facts.experts)
    if family in WITHOUT_COMPONENTS:
        assert found == (None,) * 5
        return
    kv_heads = 4 if family in ALL_THEIR_OWN else 1 if family == "falcon" else 2
    width = 4 * WIDTH if family in FOUR_TIMES else EXPERTS.get(family, 48)
    assert found == (4, kv_heads, WIDTH // 4, width, 4 if family in EXPERTS else None)


def test_experts_kept_as_modules_are_counted_and_shared_ones_are_not():
    expert = lambda neurons: nn.Sequential(nn.Linear(8, neurons), nn.Linear(neurons, 8))  # noqa: E731
    mlp = nn.Module()
    mlp.experts = nn.ModuleList(expert(6) for _ in range(3))
    mlp.shared_expert = expert(20)
    parts = {"attn": (nn.Identity(),), "mlp": (mlp,)}
    components = Components((parts,), {}, (1.0,), SEQUENTIAL, {})
    found = widths(type("Config", (), {"num_attention_heads": 2})(), components, 8)
    assert found == {"heads": 2, "kv_heads": 2, "head_width": 4, "mlp_width": 6, "experts": 3}


@pytest.mark.parametrize("heads", [None, [4, 2], 0, True])
def test_a_configuration_without_a_number_of_heads_gives_none(heads):
    config = type("Config", (), {"num_attention_heads": heads, "num_key_value_heads": 2, "head_dim": 8})()
    assert set(widths(config, None, 8).values()) == {None}


def test_heads_need_not_share_the_residual_stream_s_width():
    model = Model(tiny_model("llama", head_dim=16), None, "tiny")
    assert (model.facts.head_width, model.facts.d_model) == (16, WIDTH)

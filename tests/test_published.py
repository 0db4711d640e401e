"""SmolLM2-135M, from its package: a slice of the laws on a published model. Skipped where the package cannot be had."""

import numpy as np
import pytest
import torch
from gguf import GGUFReader, quants
from gguf_files import halves
from transformers import LlamaForCausalLM

import depthscope as ds
from depthscope.data.corpus import Corpus
from depthscope.errors import ModelError
from depthscope.models.load import load
from depthscope.models.packages import get_named
from depthscope.models.verify import verify

pytestmark = [pytest.mark.published, pytest.mark.xdist_group("published")]
NAME = "smollm2-135m"
TEXT = "It was the 25th of December 1843, and the café's owner didn't say:\n  «¡Feliz Navidad!» 🎄"
PIECES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""llama.cpp's name of each part of a block -> transformers' one."""


@pytest.fixture(scope="module")
def path():
    try:
        return get_named(NAME)
    except ModelError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def smollm2(path):
    return load(NAME, dtype="float32", verify=False)


def test_replay_reproduces_it_bit_for_bit(smollm2):
    assert all(check.passed for check in verify(smollm2))
    assert (smollm2.depth, smollm2.family, str(smollm2.gguf)) == (30, "llama", "dequantised from Q4_1")


def test_its_logits_are_those_of_a_conversion_with_the_gguf_package_alone(smollm2, path):
    own = LlamaForCausalLM(smollm2.hf.config)
    weights = {}
    for tensor in GGUFReader(path).tensors:
        name = _name(tensor.name)
        weights[name] = torch.from_numpy(
            np.array(halves(name, quants.dequantize(tensor.data, tensor.tensor_type), own))
        )
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    own.load_state_dict(weights)
    ids = smollm2.probe_ids(12)
    with torch.inference_mode():
        torch.testing.assert_close(smollm2.hf(input_ids=ids).logits, own.eval()(input_ids=ids).logits, rtol=0, atol=0)


def _name(stored: str) -> str:
    if not stored.startswith("blk."):
        return {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}[stored]
    _, block, part, end = stored.split(".")
    return f"model.layers.{block}.{PIECES[part]}.{end}"


def test_its_tokenizer_reads_and_writes_any_text(smollm2):
    ids = smollm2.tokenize(TEXT)
    assert smollm2.tokenizer.decode(ids) == TEXT
    assert len(ids) < len(TEXT)
    assert smollm2.tokenize("<|im_start|>") == [1]


def test_it_predicts_prose_and_an_empty_edit_changes_nothing(smollm2):
    found = ds.measure(
        smollm2, Corpus(tokens=512), ["swap(14) | swap(14)", "drop(14)"], ["kl", "loss"], window=256, progress=False
    )
    values = {(row["edit"], row["metric"]): row["mean"] for row in found.iter_rows(named=True)}
    assert 2.5 < values["none", "loss"] < 4.5  # 3.6 on 15,000 tokens
    assert values["none", "kl"] == values["swap(14) | swap(14)", "kl"] == 0
    assert 0.01 < values["drop(14)", "kl"] < 2

"""Components are what adds to the residual stream, however many a block has; each can be silenced, and their writes sum."""

import numpy as np
import polars as pl
import pytest
import torch
from families import DEPTH, HYBRIDS, tiny_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

import depthscope as ds
from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline, Keep
from depthscope.errors import RouteError, UnsupportedError
from depthscope.experiments.norms import Norms
from depthscope.experiments.similarity import Similarity
from depthscope.experiments.sweep import Sweep, possible_edits
from depthscope.models.load import load
from depthscope.models.maps import Called
from depthscope.models.model import Model
from depthscope.models.neurons import mlp_calls, neuron_rows
from depthscope.models.patterns import pattern_heads
from depthscope.models.weights import mlp_output_weights
from depthscope.routes import COMPONENTS

pytestmark = pytest.mark.filterwarnings("ignore:.*is not installed")
IDS = torch.arange(1, 29).reshape(2, 14) * 31 % 97

EXPECTED = {
    "falcon_h1": [{"attn": ["self_attn"], "ssm": ["mamba"], "mlp": ["feed_forward"]}] * 4,
    "granitemoehybrid": [
        {"attn": ["mamba"], "mlp": ["block_sparse_moe", "shared_mlp"]},
        {"attn": ["self_attn"], "mlp": ["block_sparse_moe", "shared_mlp"]},
    ]
    * 2,
    "nemotron_h": [{"attn": ["mixer"]}, {"attn": ["mixer"]}, {"attn": ["mixer"]}, {"mlp": ["mixer"]}],
    "gemma4_text": [{"attn": ["self_attn"], "mlp": ["mlp"], "ple": ["per_layer_projection"]}] * 4,
    "minimax": [{"attn": ["self_attn"], "mlp": ["mlp"]}] * 4,
}


def unknowing_tokenizer(*known):
    """A tokenizer that maps all words but these to one id, as one does that lacks a text's script."""
    words = WordLevel({"?": 7, **{word: 8 + i for i, word in enumerate(known)}}, unk_token="?")
    tokenizer = Tokenizer(words)
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


SUMS = [family for family in EXPECTED if family != "minimax"]
"""MiniMax normalises the stream inside its blocks."""


@pytest.fixture(scope="module")
def hybrid():
    made = {}

    def of(family):
        if family not in made:
            hf = tiny_model(family)
            for block in hf.model.layers if family == "gemma4_text" else ():
                block.layer_scalar.fill_(0.7)
            made[family] = load(hf)
        return made[family]

    return of


@pytest.mark.parametrize("family", EXPECTED)
def test_every_component_is_found(hybrid, family):
    model = hybrid(family)
    paths = [{name: path for path, name in block.named_modules() if path} for block in model.stack.blocks]
    found = [
        {kind: [own[module] for module in several] for kind, several in parts.items()}
        for own, parts in zip(paths, model.components.parts, strict=True)
    ]
    assert found == EXPECTED[family]


@pytest.mark.parametrize("family", EXPECTED)
def test_a_silenced_component_is_the_model_with_that_output_zero(hybrid, family):
    model = hybrid(family)
    for block in range(DEPTH):
        for kind, modules in model.components.parts[block].items():
            handles = [
                module.register_forward_hook(
                    lambda _m, _a, out: (out[0] * 0, *out[1:]) if isinstance(out, tuple) else out * 0
                )
                for module in modules
            ]
            with torch.inference_mode():
                expected = model.hf(input_ids=IDS, use_cache=False).logits
            for handle in handles:
                handle.remove()
            assert torch.equal(ds.logits(model, IDS, f"drop_{kind}({block})"), expected)
            assert not torch.equal(ds.logits(model, IDS), expected)


@pytest.mark.parametrize("family", SUMS)
def test_a_block_is_the_stream_and_what_its_components_write(hybrid, family):
    model = hybrid(family)
    with model.measuring():
        baseline = Baseline(model, IDS, IDS, keep=Keep.WRITES)
    for block, written in enumerate(baseline.writes):
        assert tuple(written.parts) == tuple(kind for kind in COMPONENTS if kind in EXPECTED[family][block])
        total = model.components.carried[block] * baseline.residuals[block] + sum(written.parts.values())
        torch.testing.assert_close(total, baseline.residuals[block + 1], rtol=1e-4, atol=1e-4)
    silent = " | ".join(f"drop_{kind}({block})" for block in range(DEPTH) for kind in model.components.parts[block])
    with torch.inference_mode():
        residual = baseline.entry.residual * torch.tensor(model.components.carried).prod()
        expected = model.unembedding.logits(model.unembedding.hidden(residual)).unflatten(0, IDS.shape)
    torch.testing.assert_close(ds.logits(model, IDS, silent), expected, rtol=1e-4, atol=1e-4)


def test_a_sweep_does_what_each_block_has(hybrid):
    for family, kinds in (
        ("falcon_h1", ["drop_attn", "drop_mlp", "drop_ssm"]),
        ("nemotron_h", ["drop_attn", "drop_mlp"]),
    ):
        model = hybrid(family)
        possible, not_done = possible_edits(None, model)
        assert (possible, not_done) == (["swap", "drop", *kinds], {})
        sweep = Sweep(model, 14, possible)
        rows = pl.DataFrame([(edit.kind, edit.layer) for edit in sweep.edits], schema=["edit", "layer"], orient="row")
        for kind in kinds:
            layers = [i for i, parts in enumerate(EXPECTED[family]) if kind.removeprefix("drop_") in parts]
            assert rows.filter(pl.col("edit") == kind)["layer"].to_list() == layers
    model = hybrid("nemotron_h")
    assert possible_edits(["drop", "drop_ple"], model) == (["drop"], {"drop_ple": "no block has a per-layer input"})
    with pytest.raises(UnsupportedError, match="no block has a per-layer input"):
        possible_edits(["drop_ple"], model)
    with pytest.raises(RouteError, match=r"drop_mlp\(0\) cannot be done, because block 0 has no MLP"):
        ds.logits(model, IDS, "drop_mlp(0)")


def test_what_needs_an_attention_and_an_mlp_is_refused_by_name(hybrid):
    with pytest.raises(UnsupportedError, match="block 0 has no MLP, only attention"):
        Norms(hybrid("nemotron_h"))
    with pytest.raises(
        UnsupportedError, match="a block's output is not the residual stream plus what self_attn and mlp"
    ):
        Norms(hybrid("minimax"))


def test_a_block_that_is_one_mixer_has_no_parts():
    """Zamba 2's shared attention writes into what the mixer reads, not into the residual stream."""
    assert load(tiny_model("zamba2")).components is None


def test_experts_and_a_dense_part_are_one_mlp_whose_neurons_are_read(hybrid):
    model = hybrid("granitemoehybrid")
    assert sum(rows.flatten(0, -2).shape[0] for rows in neuron_rows(model, 1)) == 4 * 48 + 24
    assert all(isinstance(call, Called) for call in mlp_calls(model, 1).values())


@pytest.fixture(scope="module")
def unequal():
    """Gemma 4 whose late blocks take the keys of early ones, and have MLPs twice as wide for it."""
    kinds = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
    return tiny_model("gemma4_text", num_kv_shared_layers=2, use_double_wide_mlp=True, layer_types=kinds)


@pytest.mark.parametrize("stream", ["memory", "no", "yes"])
def test_blocks_of_unequal_width_that_share_keys_are_taken_apart(unequal, stream, tmp_path):
    if stream == "memory":
        model = load(unequal)
    else:
        unequal.save_pretrained(tmp_path)
        model = load(tmp_path, stream=stream)
    assert model.components.paths == {"attn": "self_attn", "mlp": "mlp", "ple": "per_layer_projection"}
    rows = [mlp_output_weights(model, block) for block in range(DEPTH)]
    assert [own.shape for own in rows] == [(48, 32), (48, 32), (96, 32), (96, 32)]
    weight = unequal.model.layers[3].mlp.down_proj.weight.detach().T
    norm = unequal.model.layers[3].post_feedforward_layernorm.weight.detach()
    torch.testing.assert_close(rows[3], weight * norm)


def test_similarity_gives_each_swap_the_keys_it_reads(unequal):
    """Block 2 reads what 1 stores: swapped, it would have nothing to read, so that swap has no rows."""
    model = load(unequal)
    similarity = Similarity(model)
    assert sorted({row[0] for row in similarity.rows.names}) == [0, 2]
    with model.measuring():
        baseline = Baseline(model, IDS, IDS, keep=Keep.WRITES)
        read = similarity.read(
            baseline, Windows(np.ones((2, 15), np.int32), np.arange(2), np.zeros(2, np.int64), "none")
        )
    assert read.height == 2 * len(similarity.rows.names)


def test_all_families_are_tried():
    assert set(HYBRIDS) == {*EXPECTED, "zamba2"}


@pytest.mark.parametrize("known", [(), ("was", "the")], ids=["one id", "three ids"])
def test_probe_ids_differ_whatever_the_tokenizer_gives(tiny_of, known):
    model = load(tiny_of("gpt2").hf, tokenizer=unknowing_tokenizer(*known))
    for length in (2, 4, 8, 32):
        found = model.probe_ids(length)
        assert found.shape == (1, length)
        assert found.unique().numel() > 0.8 * length


def test_a_tokenizer_that_gives_one_id_hides_no_attention(tiny):
    """Over families: components and patterns are found as without a tokenizer."""
    model = load(tiny.hf, tokenizer=unknowing_tokenizer())
    assert pattern_heads(model) == pattern_heads(tiny)
    if tiny.components is None:
        assert model.components is None
        return
    assert (model.components.paths, model.components.layout) == (tiny.components.paths, tiny.components.layout)
    assert model.components.carried == tiny.components.carried
    assert [*map(set, model.components.parts)] == [*map(set, tiny.components.parts)]


def test_one_repeated_id_would_mislead(monkeypatch):
    """The law above can fail: on one id the experts of a hybrid are taken for a state-space mixer."""
    hf = tiny_model("granitemoehybrid")
    known = load(hf, tokenizer=unknowing_tokenizer()).components.paths
    assert known == load(hf).components.paths
    monkeypatch.setattr(Model, "probe_ids", lambda self, length=32: torch.full((1, length), 7))
    assert load(hf).components.paths != known

import json
import shutil

import pytest
import torch
from families import tiny_model
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from depthscope.api.prompt import logits
from depthscope.errors import DepthscopeError, ModelError, NumericError, UnsupportedError, VerificationError
from depthscope.models import verify
from depthscope.models.load import load
from depthscope.models.located import EMBEDDED, embedded


@pytest.fixture
def saved(tmp_path):
    """A folder with a tiny GPT-2, and a way to change its config.json."""
    tiny_model("gpt2").save_pretrained(tmp_path / "model")

    class Saved:
        path = tmp_path / "model"

        def edit(self, **changes):
            file = self.path / "config.json"
            config = json.loads(file.read_text()) | changes
            file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    return Saved()


def test_embedded_models_are_named():
    assert embedded() == ["bookshelf-gpt2", "bookshelf-neox"]
    assert all((EMBEDDED / name / "model.safetensors").stat().st_size <= 24 * 2**20 for name in embedded())


def test_a_folder_gives_the_model_that_was_saved(saved):
    loaded = load(saved.path)
    expected = tiny_model("gpt2").state_dict()
    assert loaded.hf.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.hf.state_dict().items())
    assert (loaded.depth, loaded.context, loaded.tokenizer) == (4, 64, None)


def test_dtype_and_hash(saved):
    full, half, again = load(saved.path), load(saved.path, dtype="bfloat16"), load(saved.path)
    assert half.unembedding.weight.dtype == torch.bfloat16
    assert full.weight_hash() == again.weight_hash() != half.weight_hash()


def test_native_code_is_used_where_a_config_also_names_code_of_its_own(saved):
    saved.edit(auto_map={"AutoModelForCausalLM": "modeling_evil.Evil"})
    (saved.path / "modeling_evil.py").write_text("raise SystemExit('ran code from the model folder')")
    assert load(saved.path).depth == 4


def refuse(saved, error: type[DepthscopeError] = ModelError, **keywords) -> str:
    with pytest.raises(error) as caught:
        load(saved.path, **keywords)
    assert "\n" not in str(caught.value) or error is VerificationError
    return str(caught.value)


def test_a_folder_without_config(saved):
    (saved.path / "config.json").unlink()
    assert "holds no config.json" in refuse(saved)


def test_a_config_that_is_not_json(saved):
    (saved.path / "config.json").write_text("{")
    assert "is not JSON" in refuse(saved)


def test_a_config_that_names_no_model(saved):
    saved.edit(model_type=None)
    assert "names no model_type" in refuse(saved)


def test_a_config_that_asks_for_remote_code(saved):
    saved.edit(model_type="evil", auto_map={"AutoConfig": "configuration_evil.Evil"})
    (saved.path / "configuration_evil.py").write_text("raise SystemExit('ran code from the model folder')")
    said = refuse(saved)
    assert "model_type 'evil' is not one transformers" in said
    assert "asks for code from its repository (auto_map), which is never run" in said


def test_a_config_that_names_attention_code_on_a_hub(saved):
    saved.edit(_attn_implementation="somebody/kernels")
    assert "would fetch and run code" in refuse(saved)


def test_pickled_weights_only(saved):
    (saved.path / "model.safetensors").unlink()
    (saved.path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    assert "weights only as pickle (pytorch_model.bin)" in refuse(saved)


def test_no_weights(saved):
    (saved.path / "model.safetensors").unlink()
    assert "has no weights: expected model.safetensors" in refuse(saved)


def test_damaged_weights(saved):
    file = saved.path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    assert "cannot be loaded" in refuse(saved)


def test_weights_that_lack_tensors(saved):
    saved.edit(n_layer=6)
    assert "lack 24 tensors the model needs (they would be random): transformer.h.4" in refuse(saved)


@pytest.mark.parametrize(
    "other",
    [
        lambda: BertForMaskedLM(
            BertConfig(num_hidden_layers=1, hidden_size=16, num_attention_heads=2, intermediate_size=16)
        ),
        lambda: T5ForConditionalGeneration(T5Config(num_layers=1, d_model=16, d_kv=4, d_ff=16, num_heads=2)),
    ],
    ids=["bert", "t5"],
)
def test_what_is_not_a_causal_language_model(saved, other):
    shutil.rmtree(saved.path)
    other().save_pretrained(saved.path)
    assert "is not a causal language model: it is a" in refuse(saved)


def test_nan_weights_are_named():
    hf = tiny_model("llama")
    with torch.no_grad():
        hf.model.layers[2].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(NumericError, match=r"weights with NaN or infinity: model.layers.2.mlp.up_proj.weight"):
        load(hf)


def test_a_tokenizer_larger_than_the_embedding(saved):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / "bookshelf-gpt2" / name, saved.path)
    assert "makes token 4020 of plain English, but the model has 97 only" in refuse(saved)


def test_unknown_names(saved):
    assert "no model folder at ./nowhere" in _refused("./nowhere")
    assert (
        "no model 'no-such-model': expected a model by name (bookshelf-gpt2, bookshelf-neox, smollm2-135m"
        in _refused("no-such-model")
    )
    assert "unknown dtype 'float8'" in refuse(saved, dtype="float8")
    assert "device 'tpu' cannot be used" in refuse(saved, device="tpu")


def _refused(name: str) -> str:
    with pytest.raises(ModelError) as caught:
        load(name)
    return str(caught.value)


def test_a_model_that_does_more_than_replay_knows_is_refused(monkeypatch):
    """A scale outside blocks and head, as a new family might have: caught at load, never measured."""
    hf = tiny_model("llama")
    embed = hf.get_input_embeddings()
    model = load(hf)
    handle = embed.register_forward_hook(lambda _m, _a, output: output * (1 + torch.rand(1).item()))
    with pytest.raises(VerificationError, match=r"replay: .* give the model's own logits: largest diff"):
        verify.require_verified(model)
    handle.remove()


def test_a_head_that_is_not_modules_only_is_refused(monkeypatch):
    hf = tiny_model("llama")
    forward = hf.model.forward

    def scaled(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state + 1
        return output

    monkeypatch.setattr(hf.model, "forward", scaled)
    with pytest.raises(
        UnsupportedError, match="the unembedding does not read what the modules after the last block give"
    ):
        load(hf)


def test_a_scale_before_the_unembedding_is_found(monkeypatch):
    """As in MiniCPM3, which divides what the unembedding reads by a constant."""
    hf = tiny_model("llama")
    forward = hf.model.forward

    def scaled(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.last_hidden_state = output.last_hidden_state / 3
        return output

    monkeypatch.setattr(hf.model, "forward", scaled)
    model = load(hf)
    assert (model.unembedding.scale.kind, model.unembedding.scale.constant) == ("divide", 3.0)
    ids = model.probe_ids()
    assert torch.equal(logits(model, ids), hf(input_ids=ids, use_cache=False).logits)


def test_a_model_that_cannot_be_replayed_is_refused_with_the_reason(monkeypatch):
    """A block that fails on the arguments it is given."""
    hf = tiny_model("llama")
    monkeypatch.setattr(hf.model.layers[1], "self_attn", torch.nn.Identity())
    with pytest.raises(
        UnsupportedError, match=r"llama\) cannot be taken apart: replaying its blocks .* fails with TypeError"
    ):
        load(hf)

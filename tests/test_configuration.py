"""What is wrong in a model's files is said in one line that names the entry; a name that is not there gets near ones."""

import json
import shutil

import huggingface_hub
import pytest
import torch
from families import tiny_model
from test_load import refuse, saved  # noqa: F401 - a fixture

from depthscope.errors import ModelError, UnsupportedError
from depthscope.models import configuration
from depthscope.models import load as loading
from depthscope.models.load import load
from depthscope.models.located import EMBEDDED


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    tiny_model("llama").save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"layer_types": ["full_attention"] * 6},
            "`num_hidden_layers` (4) must be equal to the number of `layer_types` (6)",
        ),
        ({"vocab_size": "97"}, "'vocab_size' expected int, got str (value: '97')"),
        ({"num_hidden_layers": None}, "'num_hidden_layers' expected int, got NoneType"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, expected at least 1"),
        (
            {"num_attention_heads": 5, "head_dim": None},
            "is not a multiple of the number of attention heads (5)",
        ),
        ({"dtype": "float8"}, "dtype is 'float8', which transformers"),
        (
            {"rope_parameters": {"rope_type": "su-new", "rope_theta": 1e4}},
            "rope_parameters.rope_type is 'su-new', which",
        ),
        ({"hidden_act": "bogus"}, "hidden_act is 'bogus', which transformers"),
        ({"hidden_size": 64}, "lm_head.weight is stored as [97, 32], but the model has [97, 64], and 38 more"),
        ({"num_key_value_heads": 4}, "k_proj.weight is stored as [16, 32], but the model has [32, 32]"),
        ({"quantization_config": {"quant_method": "bogus"}}, "quantization_config names the method 'bogus'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config names no quant_method"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "requires gptqmodel"),
        ({"model_type": ["llama"]}, "names no model_type"),
    ],
    ids=str,
)
@pytest.mark.parametrize("stream", ["no", "yes"])
def test_a_wrong_entry_is_named(llama, tmp_path, changes, said, stream):
    folder = shutil.copytree(llama, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in (config | changes).items() if key != "head_dim" or value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        load(folder, stream=stream)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def _with_tokenizer(saved, change) -> None:  # noqa: F811
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / "bookshelf-gpt2" / name, saved.path)
    file = saved.path / "tokenizer.json"
    stored = json.loads(file.read_text())
    change(stored)
    file.write_text(json.dumps(stored))


def test_a_tokenizer_of_a_newer_library(saved):  # noqa: F811
    _with_tokenizer(saved, lambda stored: stored.update(pre_tokenizer={"type": "NewThing"}))
    assert "did not match any variant" in (said := refuse(saved))
    assert "update tokenizers and transformers" in said


def test_a_tokenizer_without_its_tables(saved):  # noqa: F811
    _with_tokenizer(saved, lambda stored: None)
    (saved.path / "tokenizer.json").unlink()
    assert "the tokenizer of" in refuse(saved)


def test_a_tokenizer_may_have_entries_that_text_never_uses(tmp_path):
    """As text-only Gemma 3 has one for images."""
    folder = shutil.copytree(EMBEDDED / "bookshelf-gpt2", tmp_path / "model")
    file = folder / "tokenizer.json"
    stored = json.loads(file.read_text())
    extra = {"id": 4096, "content": "<image>", "special": True}
    stored["added_tokens"].append(extra | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False))
    file.write_text(json.dumps(stored))
    model = load(folder, verify=False)
    assert len(model.tokenizer) == 4097 > model.unembedding.vocabulary
    with pytest.raises(Exception, match="token id 4096 is outside the vocabulary"):
        model.check_ids(torch.tensor([[1, 4096]]))


def test_whatever_goes_wrong_in_verification_is_said(monkeypatch):
    def late(_model):
        raise TimeoutError("the disk did not answer")

    monkeypatch.setattr(loading, "require_verified", late)
    with pytest.raises(UnsupportedError, match="TimeoutError: the disk did not answer"):
        load(tiny_model("gpt2"))


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    def unreachable(*_args, **_keywords):
        raise OSError("name or service not known")

    monkeypatch.setattr(configuration.HfApi, "model_info", unreachable)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def test_without_a_hub_near_names_are_said_at_once(no_hub):
    (no_hub / "models--somebody--tiny-gpt").mkdir(parents=True)
    (no_hub.parent / "my-model").mkdir()
    (no_hub.parent / "my-model" / "config.json").write_text("{}")
    for wrong, right in [
        ("bookshelf-gtp2", "bookshelf-gpt2"), ("someone/tiny-gpt", "somebody/tiny-gpt"), ("my_model", "./my-model")
    ]:  # fmt: skip
        with pytest.raises(ModelError, match=r"cannot be reached \(name or service not known\)") as caught:
            load(wrong)
        assert f"Did you mean {right}" in str(caught.value)
    with pytest.raises(ModelError) as caught:
        load("quite-another-thing")
    assert "Did you mean" not in str(caught.value)


def test_without_a_hub_the_cache_is_used(no_hub, monkeypatch):
    monkeypatch.setattr(configuration, "snapshot_download", lambda *_a, **_k: str(EMBEDDED / "bookshelf-neox"))
    model = load("somebody/neox", verify=False)
    assert (model.name, model.revision) == ("somebody/neox", "bookshelf-neox")

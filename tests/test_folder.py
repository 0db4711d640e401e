"""What a folder holds besides a plain model is seen: every tensor is used or named, adapters and pointers are not weights."""

import pytest
import torch
from families import FAMILIES, tiny_model
from safetensors.torch import load_file, save_file
from test_load import saved  # noqa: F401 - a fixture
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

import depthscope as ds
from depthscope.cli import app
from depthscope.errors import ModelError, UnsupportedError
from depthscope.models import patterns
from depthscope.models.load import load

IDS = torch.arange(1, 29).reshape(2, 14) * 31 % 97


def add(folder, **tensors):
    file = folder / "model.safetensors"
    save_file(load_file(file) | tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("stream", ["no", "yes"])
def test_scales_left_over_from_quantised_weights_are_refused(saved, stream):  # noqa: F811
    weights = load_file(saved.path / "model.safetensors")
    name = next(n for n in weights if n.endswith("c_fc.weight"))
    scale = weights[name].abs().max() / 127
    add(saved.path, **{name: (weights[name] / scale).round(), f"{name}_scale": scale.reshape(1)})
    with pytest.raises(
        ModelError, match=r"1 tensors the model does not read, of quantised weights.*c_fc\.weight_scale"
    ):
        load(saved.path, stream=stream)


@pytest.mark.parametrize("stream", ["no", "yes"])
def test_other_tensors_are_refused_until_told_otherwise_and_then_recorded(saved, stream, tmp_path):  # noqa: F811
    expected = ds.logits(load(saved.path), IDS)
    add(saved.path, **{"transformer.h.0.extra.weight": torch.ones(3)})
    with pytest.raises(ModelError, match=r"extra\.weight.*--unused-tensors ignore goes on"):
        load(saved.path, stream=stream)
    model = load(saved.path, stream=stream, unused_tensors="ignore")
    assert model.unused == ("transformer.h.0.extra.weight",)
    torch.testing.assert_close(ds.logits(model, IDS), expected)
    with pytest.raises(ModelError, match="expected 'refuse' or 'ignore'"):
        load(saved.path, unused_tensors="maybe")
    command = ["verify", str(saved.path), "--stream", stream]
    assert CliRunner().invoke(app, command).exit_code != 0
    assert CliRunner().invoke(app, [*command, "--unused-tensors", "ignore"]).exit_code == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_saves_is_used_whole(family, tmp_path):
    tiny_model(family).save_pretrained(tmp_path)
    assert load(tmp_path, verify=False).unused == ()


def test_buffers_of_older_checkpoints_do_no_harm(saved):  # noqa: F811
    add(
        saved.path,
        **{"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64), "transformer.h.0.attn.masked_bias": torch.ones(1)},
    )
    assert load(saved.path).unused == ()


@pytest.mark.parametrize("stream", ["no", "yes"])
def test_an_adapter_in_the_folder_is_not_silently_dropped_or_applied(saved, stream):  # noqa: F811
    (saved.path / "adapter_config.json").write_text("{}")
    save_file({"x": torch.ones(1)}, saved.path / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"an adapter next to the model's weights .* give it with --adapter"):
        load(saved.path, stream=stream)
    (saved.path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="an adapter alone"):
        load(saved.path, stream=stream)


def test_files_that_are_no_weights_are_named(saved):  # noqa: F811
    (saved.path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ModelError, match="is a Git LFS pointer, not the weights: run git lfs pull"):
        load(saved.path)
    (saved.path / "model.safetensors").unlink()
    (saved.path / "model.Q4_1.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"model\.Q4_1\.gguf cannot be read, it may be truncated"):
        load(saved.path)


def test_what_is_no_model_is_named():
    class Wrapped(torch.nn.Module):
        def merge_and_unload(self):
            return None

    with pytest.raises(ModelError, match=r"give model\.get_base_model"):
        load(Wrapped())
    with pytest.raises(ModelError, match="got Linear"):
        load(torch.nn.Linear(2, 2))


def test_patterns_of_another_attention_than_the_runs_are_refused(monkeypatch, tiny_of):
    model = tiny_of("llama")
    assert patterns.pattern_heads(model) == [4] * 4
    from transformers.models.llama import modeling_llama

    eager = modeling_llama.eager_attention_forward

    def sharper(module, query, *args, **kwargs):
        return eager(module, 2 * query, *args, **kwargs)

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", sharper)
    with pytest.raises(UnsupportedError, match="eager attention is not what block 0 computes"):
        patterns.pattern_heads(model)
    assert model.hf.config._attn_implementation == "sdpa"


def test_every_way_of_loading_gives_the_same_logits(saved):  # noqa: F811
    whole, streamed = load(saved.path, stream="no"), load(saved.path, stream="yes")
    handed = load(AutoModelForCausalLM.from_pretrained(saved.path))
    for model in (streamed, handed):
        assert torch.equal(ds.logits(model, IDS), ds.logits(whole, IDS))

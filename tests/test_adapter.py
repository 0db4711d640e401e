"""Adapters: put in where they are asked for, whole or not at all, and known by their hash."""

import json
import shutil

import pytest
import torch
from families import tiny_model
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import depthscope as ds
from depthscope.cli import app
from depthscope.errors import ModelError, RunMismatchError, UnsupportedError
from depthscope.models.load import load

peft = pytest.importorskip("peft", reason="adapters need peft")
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # peft asks transformers by the old name
IDS = torch.arange(1, 15)[None] * 31 % 97


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base model and a LoRA adapter for it, saved; and the logits of the two merged."""
    base, adapter = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("adapter")
    hf = tiny_model("llama")
    hf.save_pretrained(base)
    torch.manual_seed(1)
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(hf, settings)
    wrapped.save_pretrained(adapter)
    return base, adapter, wrapped.merge_and_unload()(input_ids=IDS).logits


def test_the_model_with_its_adapter_is_what_is_measured(folders):
    base, adapter, merged = folders
    model = load(base, adapter=adapter)
    assert (model.adapter.source, model.adapter.kind) == (str(adapter), "LORA")
    torch.testing.assert_close(ds.logits(model, IDS), merged, rtol=0, atol=1e-4)
    assert float((ds.logits(load(base), IDS) - merged).abs().max()) > 0.1
    in_memory = load(tiny_model("llama"), adapter=str(adapter))
    assert torch.equal(ds.logits(in_memory, IDS), ds.logits(model, IDS))


def test_it_is_in_the_manifest_and_another_is_another_run(tmp_path):
    base = load("bookshelf-gpt2", verify=False)
    settings = peft.LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True)
    peft.get_peft_model(base.hf, settings).save_pretrained(tmp_path / "one")
    other = shutil.copytree(tmp_path / "one", tmp_path / "other")
    stored = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(stored | {"lora_alpha": 4}))
    command = [
        "norms",
        "bookshelf-gpt2",
        "--tokens",
        "32",
        "--window",
        "16",
        "--out",
        str(tmp_path / "run"),
        "--adapter",
    ]
    assert CliRunner().invoke(app, [*command, str(tmp_path / "one")]).exit_code == 0
    written = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]["adapter"]
    assert written["sha256"] == load("bookshelf-gpt2", adapter=tmp_path / "one").adapter.sha256
    again = CliRunner().invoke(app, [*command, str(other)])
    assert isinstance(again.exception, RunMismatchError)
    assert "adapter" in str(again.exception)


def test_the_command_line_takes_it(folders):
    base, adapter, _ = folders
    result = CliRunner().invoke(app, ["verify", str(base), "--adapter", str(adapter)])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("change", ["more", "fewer"])
def test_one_that_does_not_fit_whole_is_refused(folders, tmp_path, change):
    base, adapter, _ = folders
    odd = shutil.copytree(adapter, tmp_path / "odd")
    tensors = load_file(odd / "adapter_model.safetensors")
    name = min(tensors)
    if change == "more":
        tensors[name.replace("layers.0", "layers.9")] = tensors[name].clone()
    else:
        del tensors[name]
    save_file(tensors, odd / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="does not fit the model"):
        load(base, adapter=odd)


def test_what_is_no_adapter_for_this_is_refused(folders, tmp_path):
    base, adapter, _ = folders
    with pytest.raises(UnsupportedError, match="with an adapter cannot be streamed"):
        load(base, adapter=adapter, stream="yes")
    with pytest.raises(
        ModelError, match=r"no adapter that can be read: it has no adapter_config\.json and no adapter_model"
    ):
        load(base, adapter=tmp_path)
    wide = tmp_path / "wide"
    tiny_model("llama", hidden_size=64).save_pretrained(wide)
    with pytest.raises(ModelError, match="cannot be put into"):
        load(wide, adapter=adapter)
    prompt = tmp_path / "prompt"
    soft = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    peft.get_peft_model(tiny_model("llama"), soft).save_pretrained(prompt)
    with pytest.raises(UnsupportedError, match="PROMPT_TUNING adapter, which adds tokens before the text"):
        load(base, adapter=prompt)

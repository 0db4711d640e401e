"""Quantised models: weights are read as their modules compute them, and what cannot be loaded is refused before it is."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, tiny_model
from safetensors.torch import load_file, save_file
from saved_models import save
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D
from typer.testing import CliRunner

import depthscope as ds
from depthscope.cli import app
from depthscope.errors import ModelError, UnsupportedError, VerificationError
from depthscope.models import formats
from depthscope.models.block_calls import single_calls
from depthscope.models.load import load
from depthscope.models.maps import allowed_error, linear_map
from depthscope.models.model import Model
from depthscope.models.noise_floor import noise_floor
from depthscope.models.packed import EIGHT_BITS, packed, rounds_input
from depthscope.models.verify import verify
from depthscope.models.weights import mlp_output_weights, reading_weights

pytest.importorskip("bitsandbytes", reason="quantised models need depthscope[quant]")
pytest.importorskip("compressed_tensors", reason="quantised models need depthscope[quant]")
# Of the libraries' own imports and of what they call in torch.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
PACKED = ("nf4", "fp4", "int8", "ao-int8", "ao-int8-dynamic", "ao-int4", "ao-int4-dynamic", "ao-float8")
ROUNDING = ("int8", "ao-int8-dynamic", "ao-int4-dynamic")
"""Formats that round what a layer is given."""
PLAIN = ("fp8", "compressed-tensors", "mxfp4")


def settings(name: str) -> Any:
    from torchao import quantization as ao
    from transformers import BitsAndBytesConfig, TorchAoConfig

    if name in ("nf4", "fp4"):
        return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=name)
    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0)
    scheme = {
        "ao-int8": lambda: ao.Int8WeightOnlyConfig(),
        "ao-int8-dynamic": lambda: ao.Int8DynamicActivationInt8WeightConfig(),
        "ao-int4": lambda: ao.IntxWeightOnlyConfig(weight_dtype=torch.int4),
        "ao-int4-dynamic": lambda: ao.Int8DynamicActivationIntxWeightConfig(weight_dtype=torch.int4),
        "ao-float8": lambda: ao.Float8WeightOnlyConfig(),
    }
    return TorchAoConfig(scheme[name]())


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save("llama", tmp_path_factory.mktemp("base"), **SHAPE)


@pytest.fixture(scope="module")
def quantised(base, tmp_path_factory):
    """The base model in a format, saved by transformers."""
    from transformers import AutoModelForCausalLM

    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = shutil.copytree(base, tmp_path_factory.mktemp("quantised") / name)
            hf = AutoModelForCausalLM.from_pretrained(base, quantization_config=settings(name), dtype=torch.float32)
            hf.save_pretrained(made[name])
        return made[name]

    return folder


def dequantised(module: nn.Linear) -> Tensor:
    """A module's weight by the library's own function."""
    weight: Any = module.weight
    if type(weight).__name__ == "Params4bit":
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state)
    if weight.dtype == torch.int8:
        state: Any = module
        return state.state.CB.float() * state.state.SCB[:, None] / 127
    return weight.dequantize()


@torch.inference_mode()
@pytest.mark.parametrize("name", PACKED)
def test_every_map_that_is_read_is_what_its_module_computes(name, quantised):
    model = load(quantised(name), dtype="float32")
    block = model.stack.blocks[1]
    calls = single_calls(model.stack, 1, [block], model.stack.enter(model.probe_ids(8)))
    layers = [module for module in block.modules() if isinstance(module, nn.Linear)]
    assert len(layers) == 7
    for module in layers:
        assert packed(module)
        found, called = linear_map(module, calls[module]), calls[module]
        assert rounds_input(module, module.in_features, torch.float32) == (name in ROUNDING)
        assert allowed_error(module, called.given) == (EIGHT_BITS if name in ROUNDING else 1e-4)
        torch.testing.assert_close(found.weight, dequantised(module).float(), rtol=0.01, atol=2e-3)
        away = (called.given @ found.weight.T - called.output).abs().max() / called.output.abs().max()
        assert float(away) <= (EIGHT_BITS if name in ROUNDING else 1e-5)
    torch.testing.assert_close(
        mlp_output_weights(model, 1, False), linear_map(block.mlp.down_proj, calls[block.mlp.down_proj]).weight.T
    )
    read = reading_weights(model, 1)
    assert set(read) == {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"}
    stream = model.stack.enter(model.probe_ids(8)).residual
    made = calls[block.self_attn.q_proj].output
    assert float((read["self_attn.q_proj"](stream) - made).abs().max()) <= EIGHT_BITS * float(made.abs().max())
    assert model.inside.projection("head", 1).module is block.self_attn.o_proj


@pytest.mark.parametrize("name", PACKED)
def test_replay_and_hash_are_those_of_the_model_and_the_floor_has_the_rounding(name, quantised, tmp_path):
    model = load(quantised(name), dtype="float32")
    assert all(check.passed and not check.difference for check in verify(model) if check.name != "components")
    assert [check.name for check in verify(model)][3] == "independence"
    first = model.weight_hash()
    alone = ds.logits(model, model.probe_ids(8))
    assert model.weight_hash() == first == load(quantised(name), dtype="float32", verify=False).weight_hash()
    both = ds.logits(model, torch.cat([model.probe_ids(8), model.probe_ids(8).flip(1)]))[:1]
    assert float((alone - both).abs().max()) <= 1e-4 * float(alone.abs().max())
    floor = noise_floor(model, model.probe_ids())
    assert floor is not None
    assert (floor.kl > 1e-8) == (name in ROUNDING)


def test_what_is_hashed_and_identified_tells_schemes_apart(quantised):
    weights, inputs = (load(quantised(name), verify=False) for name in ("ao-int8", "ao-int8-dynamic"))
    assert weights.weight_hash() == inputs.weight_hash()  # the codes are the same
    assert weights.identity()["configuration"] != inputs.identity()["configuration"]
    assert weights.weight_hash() != load(quantised("nf4"), verify=False).weight_hash()


def test_a_study_names_the_quantisation_and_an_export_is_refused(quantised, tmp_path):
    command = [
        "sweep",
        str(quantised("nf4")),
        "--tokens",
        "32",
        "--window",
        "16",
        "--edits",
        "drop",
        "--out",
        str(tmp_path / "run"),
    ]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "run/run.json").read_text())["model"]["quantisation"] == "bitsandbytes"
    refused = CliRunner().invoke(
        app, ["prune", str(quantised("nf4")), "--drop", "1", "--out", str(tmp_path / "pruned")]
    )
    assert "are quantised (bitsandbytes)" in str(refused.exception)


class Together(nn.Linear):
    """Rounds its input by the largest number of the whole batch."""

    def forward(self, given: Tensor) -> Tensor:
        step = given.abs().max() / 127
        return (given / step).round() * step @ self.weight.float().T


def test_rounding_by_the_whole_batch_is_refused():
    hf = tiny_model("llama")
    layer = hf.model.layers[0].mlp.up_proj
    layer.weight = nn.Parameter((layer.weight * 100).to(torch.int8), requires_grad=False)
    layer.__class__ = Together
    with pytest.raises(VerificationError, match="independence: quantised: a window's logits stay"):
        load(hf)


def written(folder: Path, tensors: dict[str, Tensor], **declared: Any) -> Path:
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": declared}))
    return folder


FOUR_BITS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}


def packed_folder(name: str, base: Path, folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """A checkpoint in a format, written by its definition, and the weights it stands for."""
    if name == "mxfp4":
        save("gpt_oss", folder, hidden_size=64, intermediate_size=64, head_dim=16)
    else:
        shutil.copytree(base, folder)
    stored: dict[str, Tensor] = {}
    meant = load_file(folder / "model.safetensors")
    for path, weight in list(meant.items()):
        if name == "fp8" and path.endswith("proj.weight"):
            tiles = weight.reshape(weight.shape[0] // 32, 32, -1, 32)
            scales = tiles.abs().amax((1, 3), keepdim=True) / 448
            codes = (tiles / scales).to(torch.float8_e4m3fn)
            stored |= {path: codes.reshape(weight.shape), f"{path}_scale_inv": scales[:, 0, :, 0].contiguous()}
            meant[path] = (codes.float() * scales).reshape(weight.shape)
        elif name == "compressed-tensors" and path.endswith("proj.weight"):
            groups = weight.reshape(weight.shape[0], -1, 32)
            scales = groups.abs().amax(-1, keepdim=True) / 7
            codes = (groups / scales).round()
            words = ((codes.long() + 8).reshape(weight.shape[0], -1, 8) << torch.arange(0, 32, 4)).sum(-1)
            words = torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)
            stored |= {
                f"{path}_packed": words,
                f"{path}_scale": scales[..., 0].contiguous(),
                f"{path}_shape": torch.tensor(weight.shape),
            }
            meant[path] = (codes * scales).reshape(weight.shape)
        elif name == "mxfp4" and path.endswith(("experts.gate_up_proj", "experts.down_proj")):
            groups = weight.transpose(1, 2).unflatten(-1, (-1, 32))
            exponents = groups.abs().amax(-1, keepdim=True).log2().floor() - 2
            values = torch.tensor([0.0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])  # OCP's E2M1
            codes = ((groups / 2**exponents)[..., None] - values).abs().argmin(-1)
            stored |= {f"{path}_blocks": (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)}
            stored |= {f"{path}_scales": (exponents[..., 0] + 127).to(torch.uint8)}
            meant[path] = (values[codes] * 2**exponents).flatten(-2).transpose(1, 2)
        else:
            stored[path] = weight
    groups_ = {"group_0": {"targets": ["Linear"], "weights": FOUR_BITS, "input_activations": None}}
    declared = {
        "fp8": {"activation_scheme": "dynamic", "weight_block_size": [32, 32]},
        "mxfp4": {"modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"]},
        "compressed-tensors": {
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "ignore": ["lm_head"],
            "config_groups": groups_,
        },
    }
    return written(folder, stored, quant_method=name, **declared[name]), meant


@pytest.mark.parametrize("name", PLAIN)
def test_weights_that_become_plain_are_those_that_the_format_defines(name, base, tmp_path):
    folder, meant = packed_folder(name, base, tmp_path / name)
    model = load(folder, dtype="float32")
    assert model.facts.quantisation == f"dequantised from {name}"
    own = model.hf.state_dict()
    assert all(torch.equal(own[path], weight) for path, weight in meant.items())
    assert not any(map(packed, model.hf.modules()))


@pytest.mark.parametrize(
    ("declared", "said"),
    [
        ({"quant_method": "hqq"}, "hqq, which is not supported"),
        ({"quant_method": "quanto", "weights": "int8"}, "quanto, which is not supported"),
        (
            {"quant_method": "gptq", "bits": 4},
            "gptq, which requires gptqmodel and optimum: pip install gptqmodel optimum",
        ),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False},
            r"pip install 'depthscope\[quant\]'",
        ),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"g": {"input_activations": {"num_bits": 8}}}},
            "config_groups.g rounds what its layers are given too",
        ),
    ],
)
def test_what_cannot_be_loaded_says_what_it_needs_before_weights_are_read(base, tmp_path, declared, said, monkeypatch):
    there = formats.find_spec
    absent = {"gptqmodel", "optimum", "bitsandbytes"}
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name in absent else there(name))
    monkeypatch.setattr("depthscope.models.from_files.read_headers", lambda _files: pytest.fail("weights were read"))
    folder = written(shutil.copytree(base, tmp_path / "model"), {"a": torch.zeros(1)}, **declared)
    with pytest.raises((ModelError, UnsupportedError), match=said) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("quantize", "name"), {"nf4": "nf4", "fp4": "fp4", "int8": "int8", "int8-weights": "ao-int8"}.items()
)
def test_quantising_while_loading_gives_the_model_that_transformers_quantises_and_saves(
    quantize, name, base, quantised
):
    here, saved = load(base, dtype="float32", quantize=quantize), load(quantised(name), dtype="float32")
    ids = here.probe_ids(16)
    assert torch.equal(ds.logits(here, ids), ds.logits(saved, ids))
    assert here.facts.quantisation == saved.facts.quantisation
    assert here.facts.quantisation is not None
    torch.testing.assert_close(maps_read(here), maps_read(saved), rtol=0, atol=0)
    again = load(**here.source)
    assert torch.equal(ds.logits(again, ids), ds.logits(here, ids))


def test_what_cannot_be_quantised_while_loading_is_refused(base, quantised, tmp_path, monkeypatch):
    with pytest.raises(UnsupportedError, match="quantised with bitsandbytes already: leave out --quantize fp4"):
        load(quantised("nf4"), quantize="fp4")
    with pytest.raises(UnsupportedError, match="cannot be streamed: its weights are quantised"):
        load(base, quantize="nf4", stream="yes")
    with pytest.raises(UnsupportedError, match="leave out --device-map"):
        load(base, quantize="nf4", device_map="auto")
    with pytest.raises(UnsupportedError, match="loaded already has its weights"):
        load(tiny_model("llama"), quantize="nf4")
    with pytest.raises(ModelError, match="expected one of nf4, fp4, int8, int8-weights"):
        load(base, quantize="q5")
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    with pytest.raises(UnsupportedError, match="a GGUF file, quantised already"):
        load(gguf, quantize="nf4")
    there = formats.find_spec
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "bitsandbytes" else there(name))
    with pytest.raises(ModelError, match=r"--quantize nf4 requires bitsandbytes: pip install 'depthscope\[quant\]'"):
        load(base, quantize="nf4")


def test_a_command_quantises_while_loading(base):
    done = CliRunner().invoke(app, ["info", str(base), "--quantize", "nf4", "--dtype", "float32"])
    assert done.exit_code == 0, done.output
    assert "bitsandbytes" in done.output
    refused = CliRunner().invoke(app, ["info", str(base), "--quantize", "q5"])
    assert isinstance(refused.exception, ModelError)
    assert str(refused.exception) == "quantize is 'q5': expected one of nf4, fp4, int8, int8-weights"


def test_a_quantised_pickle_is_refused(quantised, tmp_path):
    folder = shutil.copytree(quantised("ao-int8"), tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="weights only as pickle"):
        load(folder)


def of_plain_weights(quantised: nn.Module, plain: nn.Module) -> list[str]:
    """Give a model the weights of a quantised one, dequantised. Returns the names of the modules whose weights were packed."""
    names = [name for name, module in quantised.named_modules() if packed(module)]
    for name in names:
        one, other = quantised.get_submodule(name), plain.get_submodule(name)
        weight = dequantised(one)
        other.weight.data = (weight.T if isinstance(other, Conv1D) else weight).float().contiguous()
    return names


def maps_read(model: Model) -> dict[str, Tensor]:
    """Every weight map that analysis reads of the first and the last block, by what it is; none of a kind that the model is
    refused for."""
    found: dict[str, Tensor] = {}
    for block in (0, model.depth - 1):
        with suppress(UnsupportedError):
            found[f"{block} MLP output"] = mlp_output_weights(model, block)
        with suppress(UnsupportedError):
            for path, read in reading_weights(model, block).items():
                found |= {f"{block} {path}": read.weight, f"{block} {path} bias": read.bias}
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_read_from_every_family_are_those_of_its_dequantised_model(family, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = save(family, tmp_path / "model")
    hf = AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings("nf4"), dtype=torch.float32)
    twin = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if not of_plain_weights(hf, twin):
        pytest.skip("transformers quantises no layer of this family")
    try:
        hf(torch.tensor([[1, 2, 3]]))
    except RuntimeError:  # its own code multiplies with a weight that is packed
        with pytest.raises(UnsupportedError, match="cannot be taken apart"):
            load(hf)
        return
    quantised, plain = load(hf), load(twin)
    ids = plain.probe_ids(8)
    torch.testing.assert_close(ds.logits(quantised, ids), ds.logits(plain, ids), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(maps_read(quantised), maps_read(plain), rtol=1e-3, atol=1e-4)

"""Law 7: an exported checkpoint, loaded fresh by transformers, is the route; what cannot be is refused and leaves nothing."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
import torch
from families import FAMILIES, HYBRIDS, tiny_model
from gguf_files import write as write_gguf
from rebuilt import logits_of
from safetensors.torch import load_file
from saved_models import save
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from typer.testing import CliRunner
from wrappers import tiny_wrapper

import depthscope as ds
from depthscope.cli import app
from depthscope.errors import DepthscopeError, ModelError, RouteError, RunError, UnsupportedError
from depthscope.exports import export_route as exporting
from depthscope.exports.card import Card, Exported, card_text, write_card
from depthscope.exports.export_route import export_route
from depthscope.models.export.layer_entries import rearranged
from depthscope.models.load import load
from depthscope.models.model import Model
from depthscope.routes import Route, parse_route
from depthscope.schema.speed import Speed, Timed

IDS = (torch.arange(24)[None] * 7) % 97
ROUTES = ("0 3", "2 0-1 0-1 3")
"""A range dropped; layers in another order and a range run twice. Both end with the last layer, which Gemma 4 asks for."""
NO_ZAMBA = [*FAMILIES, *(family for family in HYBRIDS if family != "zamba2")]


def exported(model: Model, route: str, out: Path) -> Exported:
    return export_route(model, parse_route(route, model.depth), out, fresh=False)


def require_equal(model: Model, route: str, folder: Path) -> None:
    again = AutoModelForCausalLM.from_pretrained(
        folder, dtype=model.hf.dtype, attn_implementation=model.hf.config._attn_implementation
    )
    assert torch.equal(logits_of(again, IDS), ds.logits(model, IDS, parse_route(route, model.depth)))


@pytest.mark.parametrize("family", NO_ZAMBA)
def test_a_loaded_export_is_the_route(family, tiny_of, tmp_path):
    model = tiny_of(family)
    before = model.weight_hash()
    for place, route in enumerate(ROUTES):
        done = exported(model, route, tmp_path / str(place))
        assert done.difference == 0
        assert done.layers == (4, len(parse_route(route, 4).visits))
        require_equal(model, route, tmp_path / str(place))
    assert model.weight_hash() == before


def test_zamba_is_exported_with_all_its_shared_layers_and_else_refused(tiny_of, tmp_path):
    model = tiny_of("zamba2")
    exported(model, "1-3", tmp_path / "out")
    require_equal(model, "1-3", tmp_path / "out")
    for route in ("0-1", "3 0 2 1", "0-1 0-3"):
        with pytest.raises(UnsupportedError, match="zamba2"):
            exported(model, route, tmp_path / "no")
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "opt", "falcon", "mixtral", "gpt_oss", "olmo2", "phi3"])
def test_ablated_components_are_weights_of_zero(family, tiny_of, tmp_path):
    done = exported(tiny_of(family), "0 1~attn 2~mlp 3", tmp_path / "out")
    assert done.difference == 0
    blocks = {name.partition(".1.")[0] + ".1" if ".1." in name else "2" for name in done.zeroed}
    assert len(blocks) == 2
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert all(not stored[name].any() for name in done.zeroed if name in stored)
    assert "are not removed" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "opt", "bloom", "mixtral"])
def test_ablated_heads_and_neurons_are_columns_of_zero(family, tiny_of, tmp_path):
    neurons = "" if family == "mixtral" else "~neuron3,7"
    route = f"0 1~head2 2~head0,3{neurons} 3~mlp"
    done = exported(tiny_of(family), route, tmp_path / "out")
    assert done.difference == 0
    assert len(done.partly_zeroed) == (2 if family == "mixtral" else 3)
    require_equal(tiny_of(family), route, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "without heads or neurons 1~head2, 2~head0,3" in card
    assert "heads and neurons are not removed" in card
    for other in ("0 1~head2=mean 2-3", "0 1~head2=resample 2-3"):
        with pytest.raises(UnsupportedError, match="ablation replaces numbers by others"):
            exported(tiny_of(family), other, tmp_path / "no")


PER_LAYER: list[tuple[str, str, dict]] = [
    ("qwen3_moe", "0 2-3", {"decoder_sparse_step": 2}),
    ("qwen3_moe", "0 1 1-3", {"mlp_only_layers": [0, 3]}),
    ("qwen2", "0 2-3", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}),
    ("smollm3", "0 3 3", {"no_rope_layers": [1, 1, 1, 0]}),
    ("gemma3_text", "0 2-3", {"layer_types": None, "sliding_window_pattern": 2}),
    ("gemma4_text", "0-1 3", {"num_kv_shared_layers": 2}),
    ("gemma4_text", "0 1 3", {"global_head_dim": 16}),
    ("gpt2", "0-2", {"scale_attn_by_inverse_layer_idx": True}),
]


@pytest.mark.parametrize(("family", "route", "changes"), PER_LAYER)
def test_entries_for_single_layers_go_with_the_layers(family, route, changes, tmp_path):
    model = load(tiny_model(family, **changes))
    exported(model, route, tmp_path / "out")
    require_equal(model, route, tmp_path / "out")


@pytest.mark.parametrize(
    ("family", "route", "changes", "why"),
    [
        ("gpt2", "0 2-3", {"scale_attn_by_inverse_layer_idx": True}, r"\(gpt2\).*attn has scaling"),
        ("gemma4_text", "0-2", {}, r"\(gemma4_text\).*layer 2 would be block 2"),
    ],
)
def test_what_a_configuration_cannot_say_is_refused_by_name(family, route, changes, why, tmp_path):
    with pytest.raises(UnsupportedError, match=why):
        exported(load(tiny_model(family, **changes)), route, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_dropped_source_of_shared_keys_is_named(tmp_path):
    model = load(tiny_model("gemma4_text", num_kv_shared_layers=2))
    with pytest.raises(RouteError, match="which block 0 stores"):
        exported(model, "1-3", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_entries_are_rearranged_by_their_form():
    entries = {
        "num_hidden_layers": 3,
        "layer_types": ["a", "b", "c"],
        "eos_token_id": [1, 2, 3],
        "moe_layers": [0, 2],
        "all_layers": [0, 1, 2],
        "no_rope_layers": [1, 0, 1],
        "per_layer_config": {"00": "x", "2": "z"},
        "hybrid_override_pattern": "M*-",
        "attention_types": [[["g", "l"], 1], [["g"], 1]],
        "id2label": {"0": "no", "1": "yes"},
    }
    assert rearranged(entries, 3, [2, 0, 2, 1]) == {
        "num_hidden_layers": 4,
        "layer_types": ["c", "a", "c", "b"],
        "eos_token_id": [1, 2, 3],
        "moe_layers": [0, 1, 2],
        "all_layers": [0, 1, 2, 3],
        "no_rope_layers": [1, 1, 1, 0],
        "per_layer_config": {"0": "z", "1": "x", "2": "z"},
        "hybrid_override_pattern": "-M-*",
        "attention_types": [[["g"], 1], [["g"], 1], [["g"], 1], [["l"], 1]],
        "id2label": {"0": "no", "1": "yes"},
    }


def test_the_text_model_of_an_image_model_is_cut(tmp_path):
    model = load(tiny_wrapper("gemma3"))
    exported(model, "0 2-3", tmp_path / "out")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", attn_implementation="sdpa")
    assert again.config.vision_config.num_hidden_layers == model.hf.config.vision_config.num_hidden_layers
    assert torch.equal(logits_of(again, IDS), ds.logits(model, IDS, parse_route("0 2-3", 4)))


@pytest.fixture
def sharded(tmp_path) -> Path:
    """A bfloat16 checkpoint in several files, with all that lies next to weights."""
    folder = save("llama", tmp_path / "original", dtype=torch.bfloat16, tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    (folder / "model.safetensors").unlink()
    model.generation_config.temperature, model.generation_config.do_sample = 0.5, True
    model.save_pretrained(folder, max_shard_size="300KB")
    (folder / "LICENSE").write_text("terms of the original")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# the original\n")
    (folder / "other.bin").write_text("not admitted")
    return folder


def test_dtype_shards_ties_and_companions_are_kept(sharded, tmp_path):
    model = load(sharded)
    done = exported(model, "0 2-3", tmp_path / "out")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"LICENSE", "chat_template.jinja", "generation_config.json", "tokenizer.json", "README.md"} <= names
    assert "other.bin" not in names
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["temperature"] == 0.5
    shards = sorted((tmp_path / "out").glob("model-*.safetensors"))
    assert len(shards) > 1
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    stored = {name: tensor for file in shards for name, tensor in load_file(file).items()}
    assert index["weight_map"].keys() == stored.keys()
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in stored
    assert done.bytes[1] == sum(tensor.numel() * 2 for tensor in stored.values())
    assert (done.dtype, done.licence) == ("bfloat16", "mit")
    require_equal(model, "0 2-3", tmp_path / "out")
    assert load(tmp_path / "out").facts.tied


def test_a_streamed_model_gives_the_same_files(sharded, tmp_path):
    for name, stream in (("whole", "no"), ("streamed", "yes")):
        exported(load(sharded, stream=stream, verify=False), "3 0-1 1", tmp_path / name)
    weights = sorted(file.name for file in (tmp_path / "whole").glob("*.safetensors*"))
    assert len(weights) > 2
    for name in weights:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "streamed" / name).read_bytes()


def test_a_gguf_model_is_exported_in_plain_weights(tmp_path):
    model = load(write_gguf(tmp_path / "tiny.gguf", "llama", "Q8_0"))
    done = exported(model, "0 2-3", tmp_path / "out")
    assert done.dtype == "bfloat16"
    assert "turned into plain ones" in (tmp_path / "out" / "README.md").read_text()
    assert ds.load(tmp_path / "out").tokenize("It was") == model.tokenize("It was")


def test_a_new_process_of_plain_transformers_agrees(gpt2, tmp_path):
    done = ds.export(gpt2, ds.drop(6, 8) | ds.repeat(2), tmp_path / "out", tokens=256, window=64, progress=False)
    assert (done.fresh, done.difference, done.layers, done.dtype) == (True, 0.0, (12, 10), "float16")
    assert done.copied_bytes > 0
    card = (tmp_path / "out" / "README.md").read_text()
    for said in ("removed 6, 7, 8 (3 layers)", "run more than once 2 (2 times)", "written as copies", "perplexity"):
        assert said in card
    assert "comparison" not in {file.name for file in (tmp_path / "out").iterdir()}


def refused(model: Model, route: str, out: Path, error: type[DepthscopeError], why: str) -> None:
    before = sorted(out.parent.iterdir())
    with pytest.raises(error, match=why):
        exported(model, route, out)
    assert sorted(out.parent.iterdir()) == before


def test_bad_input_is_refused_and_leaves_nothing(tiny_of, tmp_path, monkeypatch):
    model = tiny_of("llama")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").write_text("mine")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    refused(model, "0-3", mine, RunError, "holds other files")
    refused(model, "0-3", mine / "file", RunError, "is a file")
    refused(model, "0-3", tmp_path / "gone", RunError, "leads nowhere")
    refused(model, "empty", tmp_path / "out", RouteError, "nothing is left")
    refused(model, "0 (1+2) 3", tmp_path / "out", UnsupportedError, "without parallel visits")
    with monkeypatch.context() as small:
        small.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(100, 90, 10))
        refused(model, "0-3", tmp_path / "out", RunError, "the disk at .* has 0.0 MiB free")
    with monkeypatch.context() as failing:
        failing.setattr(exporting, "reloaded_logits", lambda *given: torch.zeros(1, 48, 97))
        refused(model, "0-3", tmp_path / "out", UnsupportedError, "depends on a layer's place")
    with monkeypatch.context() as stopped:
        stopped.setattr(exporting, "write_weights", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            exported(model, "0-3", tmp_path / "out")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["gone", "mine"]
    assert (mine / "file").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    assert exported(model, "0-3", tmp_path / "empty").path == tmp_path / "empty"


def _interrupted(*given: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing")  # peft asks transformers by the old name
def test_an_adapter_is_not_exported(tmp_path):
    peft = pytest.importorskip("peft")
    hf = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(r=2, target_modules=["q_proj"])).get_base_model()
    with pytest.raises(UnsupportedError, match="merge and save it first"):
        exported(load(hf), "0-3", tmp_path / "out")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--drop", "21-24"], "first layer 21 is out of range"),
        (["--drop", "x"], "expected blocks such as 21-24"),
        (["--drop", "3", "--route", "0-3"], "got --route and --drop"),
        ([], "got none"),
        (["--edit", "melt(3)"], "cannot read the edit"),
        (["--route", "0-3 x"], "cannot read 'x'"),
    ],
)
def test_the_command_refuses_what_it_cannot_read(arguments, why, tmp_path):
    done = CliRunner().invoke(app, ["export", "bookshelf-gpt2", *arguments, "--out", str(tmp_path / "out")])
    assert done.exit_code != 0
    assert isinstance(done.exception, DepthscopeError)
    assert why in str(done.exception)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "given",
    [
        ["--drop", "6-8", "--no-measure", "--dtype", "float64"],
        [
            "--route",
            "0-8 5-8 9-11",
            "--tokens",
            "40",
            "--window",
            "20",
            "--special-tokens",
            "keep",
            "--bos",
            "none",
            "--pack",
        ],
    ],
)
def test_the_command_in_a_card_has_every_option_that_was_given(given, tmp_path):
    done = CliRunner().invoke(app, ["export", "bookshelf-gpt2", *given, "--out", str(tmp_path / "cut")])
    assert done.exit_code == 0, done.output
    card = (tmp_path / "cut" / "README.md").read_text(encoding="utf-8")
    words = shlex.split(re.findall(r"^depthscope export .*$", card, re.MULTILINE)[0])
    assert words[-2:] == ["--out", "cut"]
    assert set(given) <= set(words)


def timed(name: str, scale: float) -> Timed:
    prefill, decode = (100.0 * scale, 120.0 * scale, 90.0), (10.0 * scale, 11.0, 12.0 * scale)
    return Timed(name=name, prefill=prefill, decode=decode, weights=2**20, peak=2**21)


SPEED = Speed(
    before=timed("a", 1),
    after=timed("b", 1.5),
    prompt=8,
    new=4,
    batch=1,
    threads=1,
    dtype="float32",
    device="cpu",
    machine="-",
)


def test_a_ratio_of_speeds_is_that_of_the_rounds():
    prefill, decode = SPEED.rows()
    assert (prefill["before"], prefill["after"], prefill["ratio"]) == (100, 150, 1.5)
    assert (prefill["lowest"], prefill["highest"]) == (1.0, 1.5)
    assert (decode["ratio"], decode["lowest"], decode["highest"]) == (1.5, 1.0, 1.5)


def test_a_card_shows_text_from_outside_as_text(tmp_path):
    done = Exported(
        path=tmp_path / "a_b",
        model='x"\n---\n<script>|',
        family="gpt2",
        route=Route.own(2),
        layers=(2, 2),
        parameters=(1, 1),
        bytes=(1, 1),
        dtype="float32",
    )
    rows = {"edit": ["none", "e"], "metric": ["loss"] * 2, "unit": ["nats"] * 2, "mean": [1.0, 2.0]}
    quality = pl.DataFrame(
        {**rows, "ci_low": [0.5, None], "ci_high": [1.5, None], "tokens": [9, 9], "documents": [1, 1]}
    )
    text = card_text(done, Card(quality=quality, text="a|b", speed=SPEED, chosen="By hand.", command="depthscope ```x"))
    head = text.split("\n---\n")[0].splitlines()
    assert head[:3] == ["---", "library_name: transformers", 'base_model: "x\\" --- <script>|"']
    assert "\\<script\\>" in text
    assert "| perplexity | 2.718 [1.649, 4.482] | 7.389 |" in text
    assert "| Prefill, tokens/s | 100 | 150 | 1.50 [1.00, 1.50] |" in text
    assert "depthscope x\n```" in text
    done.path.mkdir()
    write_card(done, Card())
    assert "Speed" not in (done.path / "README.md").read_text()


def test_two_checkpoints_are_timed_in_turns(tmp_path):
    for name in ("whole", "cut"):
        save("llama", tmp_path / name, num_hidden_layers=4 if name == "whole" else 2)
    told: list[tuple[str, int, int]] = []
    tell: Callable[[str, int, int], None] = lambda *one: told.append(one)  # noqa: E731
    found = ds.speed(str(tmp_path / "whole"), tmp_path / "cut", prompt=8, new=4, rounds=2, progress=tell)
    assert (found.rounds, found.prompt, found.new) == (2, 8, 4)
    assert all(rate > 0 for one in (found.before, found.after) for rate in (*one.prefill, *one.decode))
    assert found.after.weights < found.before.weights
    assert told[-1] == ("timing", 2, 2)
    with pytest.raises(DepthscopeError, match="more than the context"):
        ds.speed(str(tmp_path / "whole"), tmp_path / "cut", prompt=60, new=40)
    with pytest.raises(ModelError, match="handed in as an object"):
        ds.speed(load(tiny_model("llama")), tmp_path / "cut")
    with pytest.raises(DepthscopeError, match="expected a whole number from 1"):
        ds.speed(str(tmp_path / "whole"), tmp_path / "cut", rounds=0)

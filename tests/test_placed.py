"""A model in parts is the model: every family with blocks on disk."""

import json
from pathlib import Path

import pytest
import torch
from families import FAMILIES, HYBRIDS, tiny_model
from saved_models import save
from torch import Tensor
from typer.testing import CliRunner

import depthscope as ds
from depthscope.cli import app
from depthscope.errors import ModelError, UnsupportedError
from depthscope.models import kernels
from depthscope.models.from_files import from_files
from depthscope.models.load import load
from depthscope.models.noise_floor import noise_floor
from depthscope.models.offload.hooked import kept_elsewhere
from depthscope.models.stack import BlockStack, find_blocks
from depthscope.models.verify import verify
from depthscope.models.weights import mlp_output_weights, reading_weights

pytest.importorskip("accelerate", reason="models in parts need accelerate")
IDS = (torch.arange(24).view(2, 12) * 7) % 97
ORDERS = ((0, 1, 2, 3), (0, 2, 1, 3), (3, 1, 1))


def saved(family: str, folder: Path, small: bool = False) -> tuple[Path, dict[str, str]]:
    """A saved tiny model, and a map with its blocks 1 and 3 on disk."""
    tiny_model(family).save_pretrained(folder) if small else save(family, folder)
    path, _ = find_blocks(tiny_model(family))
    return folder, {"": "cpu", f"{path}.1": "disk", f"{path}.3": "disk"}


def replayed(stack: BlockStack, order: tuple[int, ...]) -> Tensor:
    entry = stack.enter(IDS)
    residual = entry.residual
    for block in order:
        residual = stack.call(block, residual, entry.arguments)
    return residual


@pytest.mark.parametrize("family", [family for family in (*FAMILIES, *HYBRIDS) if family != "zamba2"])
def test_replay_and_weights_are_those_of_the_whole_model(family, tmp_path):
    folder, where = saved(family, tmp_path / family, small=True)
    cpu = torch.device("cpu")
    loaded = [from_files(str(folder), None, "float32", cpu, "no", placed).hf.eval() for placed in (None, where)]
    with torch.inference_mode():
        whole, parts = map(BlockStack, loaded)
        assert torch.equal(loaded[0](IDS, use_cache=False).logits, loaded[1](IDS, use_cache=False).logits)
        for order in ORDERS if family != "gemma4_text" else ORDERS[:2]:
            assert torch.equal(replayed(whole, order), replayed(parts, order)), order
        same = [torch.equal(one, other) for (_, one), (_, other) in zip(whole.weights(), parts.weights(), strict=True)]
    assert all(same)
    assert [block for block in parts.blocks if kept_elsewhere(block)] == [parts.blocks[1], parts.blocks[3]]
    assert all(parameter.is_meta for block in (1, 3) for parameter in parts.blocks[block].parameters())


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_a_study_has_the_same_tables(family, tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "SHARE", 0.0)  # packed products, which blocks on disk do without, round differently
    folder, where = saved(family, tmp_path / family)
    whole, parts = load(folder, stream="no", verify=False), load(folder, device_map=where, verify=False)
    assert all(check.passed for check in verify(parts))
    assert (whole.weight_hash(), whole.identity()) == (parts.weight_hash(), parts.identity())
    assert noise_floor(whole, IDS) == noise_floor(parts, IDS)
    assert parts.facts.device == "cpu, disk"
    for block in (0, 1):
        assert torch.allclose(mlp_output_weights(whole, block), mlp_output_weights(parts, block), atol=1e-6)
        ours, own = reading_weights(parts, block), reading_weights(whole, block)
        assert ours.keys() == own.keys()
        assert all(torch.allclose(ours[name].weight, own[name].weight, atol=1e-5) for name in own)
    text = ds.corpus("bookshelf", tokens=32)
    settings = {"edits": ("swap", "drop_mlp"), "window": 16, "progress": False, "experiments": ("sweep",)}
    first, second = (ds.study(one, text, out=tmp_path / f"run{one is parts}", **settings) for one in (whole, parts))
    assert first.table("sweep").equals(second.table("sweep"))


def test_options_that_exclude_each_other_and_maps_that_do_not_fit(tmp_path):
    folder, where = saved("llama", tmp_path / "llama")
    for other in ({"stream": "yes"}, {"device": "cpu"}, {"adapter": "somewhere"}):
        with pytest.raises(UnsupportedError, match="exclude each other"):
            load(folder, device_map=where, **other)
    with pytest.raises(UnsupportedError, match="loaded already"):
        load(tiny_model("llama"), device_map=where)
    for wrong, said in (
        ({}, "holds no map"),
        ({"": "cpu", "model.layers.9": "disk"}, r"'model\.layers\.9', which .* has not"),
        ({"model.layers.1": "disk"}, "no device for"),
        ({"": "nowhere at all"}, "expected cpu, disk, cuda:N"),
        ({"": True}, "expected cpu, disk, cuda:N"),
        ("no-such-file.json", "no file"),
    ):
        with pytest.raises(ModelError, match=said):
            load(folder, device_map=wrong)
    for wrong, said in (
        (where | {"lm_head": "disk"}, "has lm_head on disk"),
        (where | {"model.layers.2.mlp": "disk"}, "splits a block"),
    ):
        with pytest.raises(UnsupportedError, match=said):
            load(folder, device_map=wrong)
    shared, where = saved("zamba2", tmp_path / "zamba2")
    with pytest.raises(UnsupportedError, match="share weights"):
        load(shared, device_map=where)


def test_the_command_line_takes_a_file_and_a_choice_of_accelerates(tmp_path):
    folder, where = saved("llama", tmp_path / "llama")
    file = tmp_path / "map.json"
    file.write_text(json.dumps(where))
    for chosen in (str(file), "auto"):
        done = CliRunner().invoke(app, ["verify", str(folder), "--device-map", chosen])
        assert done.exit_code == 0, done.output
    both = CliRunner().invoke(app, ["verify", str(folder), "--device-map", "auto", "--stream", "yes"])
    assert "exclude each other" in str(both.exception)

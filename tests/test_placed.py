"""A model in parts is the model: every family with blocks on disk, and blocks on devices that do not mix."""

import json
from pathlib import Path

import pytest
import torch
from families import FAMILIES, HYBRIDS, tiny_model
from typer.testing import CliRunner

import depthscope as ds
from depthscope.cli import app
from depthscope.edits import drop, swap
from depthscope.errors import ModelError, UnsupportedError
from depthscope.models.load import load
from depthscope.models.offload.hooked import kept_elsewhere
from depthscope.models.stack import find_blocks
from depthscope.models.weights import mlp_output_weights, reading_weights
from depthscope.routes import Route

pytest.importorskip("accelerate", reason="models in parts need accelerate")
IDS = (torch.arange(24).view(2, 12) * 7) % 97


@pytest.fixture
def folder_of(tmp_path):
    def saved(family: str) -> tuple[Path, dict[str, str]]:
        """A saved tiny model, and a map with its blocks 1 and 3 on disk."""
        hf = tiny_model(family)
        hf.save_pretrained(tmp_path / family)
        path, _ = find_blocks(hf)
        return tmp_path / family, {"": "cpu", f"{path}.1": "disk", f"{path}.3": "disk"}

    return saved


@pytest.mark.parametrize("family", [*FAMILIES, *HYBRIDS])
def test_routes_and_weights_are_those_of_the_whole_model(family, folder_of):
    folder, where = folder_of(family)
    whole, parts = load(folder, stream="no", verify=False), load(folder, device_map=where)
    assert sum(parameter.is_meta for parameter in parts.hf.parameters()) > 0
    own = Route.own(whole.depth)
    for route in (own, *(swap(at)(own) for at in range(whole.depth - 1))):
        assert torch.equal(ds.logits(parts, IDS, route), ds.logits(whole, IDS, route)), route.name
    assert parts.weight_hash() == whole.weight_hash()
    assert parts.identity() == whole.identity()
    assert [block for block in parts.stack.blocks if kept_elsewhere(block)] == [parts.stack.blocks[1], parts.stack.blocks[3]]
    assert all(parameter.is_meta for parameter in parts.stack.blocks[3].parameters())

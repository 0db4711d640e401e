"""A model over two accelerators and the host is the whole model: every family, every experiment."""

import pytest
import torch
from families import FAMILIES
from saved_models import save

import depthscope as ds
from accelerator.agreement import measured, require_same, require_same_table
from depthscope.models.load import load
from depthscope.models.noise_floor import noise_floor
from depthscope.models.stack import find_blocks
from depthscope.models.verify import verify
from depthscope.models.weights import mlp_output_weights, reading_weights
from depthscope.schema.experiments import EXPERIMENTS

pytest.importorskip("accelerate", reason="models in parts need accelerate")
LONG = ("heads", "probes", "neuron_ablation")
"""Experiments that take longer than ten seconds here: tried with --torture."""


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_in_parts_is_the_whole_model(family, devices, tmp_path):
    folder = save(family, tmp_path / family)
    whole = load(folder, device="cpu")
    path, _ = find_blocks(whole.hf)
    first, second = devices
    placed = {"": first, f"{path}.1": second, f"{path}.2": "cpu", f"{path}.3": second}
    parts = load(folder, device_map=placed)
    assert {str(parameter.device) for parameter in parts.hf.parameters()} >= {*devices}
    assert all(check.passed for check in verify(parts))
    assert parts.weight_hash() == whole.weight_hash()
    require_same(measured(parts), measured(whole))


@pytest.fixture(scope="module")
def both(devices, tmp_path_factory):
    """The whole model, and the same in parts."""
    folder = save("llama", tmp_path_factory.mktemp("model"))
    placed = {"": devices[0], "model.layers.1": devices[1], "model.layers.2": "cpu"}
    return load(folder, device="cpu"), load(folder, device_map=placed)


def test_weights_and_noise_floor_are_those_of_the_whole_model(both, devices):
    whole, parts = both
    assert parts.facts.device == ", ".join(sorted({"cpu", *devices}))
    ids = whole.probe_ids(12)
    floors = [noise_floor(model, ids.to(model.device)) for model in both]
    assert None not in floors
    assert floors[1].kl == pytest.approx(floors[0].kl, rel=0.5)
    for block in range(whole.depth):
        ours, own = mlp_output_weights(parts, block), mlp_output_weights(whole, block)
        read, own_read = reading_weights(parts, block), reading_weights(whole, block)
        assert read.keys() == own_read.keys()
        torch.testing.assert_close(ours.cpu(), own, atol=1e-6, rtol=1e-5)
        for name, weights in read.items():
            assert ours.device == weights.weight.device == weights.bias.device == parts.device
            torch.testing.assert_close(weights.weight.cpu(), own_read[name].weight, atol=1e-6, rtol=1e-5)


def test_prompts_are_continued_and_lenses_fitted_as_in_the_whole_model(both, tmp_path):
    text = "The cat sat on the mat"
    for edit in (None, "drop(1)", "swap(1)"):
        first, second = (ds.generate(model, text, edit=edit, tokens=8) for model in both)
        assert first == second, edit
    tables = []
    for place, model in enumerate(both):
        fitted = tmp_path / f"lens{place}"
        ds.tune_lens(model, ds.corpus("bookshelf", tokens=640), out=fitted, window=16, lens="jacobian", most_windows=4)
        how = {
            "window": 16,
            "experiments": ["lens"],
            "lens": "jacobian",
            "jacobian_lens": str(fitted),
            "progress": False,
        }
        tables.append(
            ds.study(model, ds.corpus("bookshelf", tokens=160), out=tmp_path / str(place), **how).table("lens")
        )
    require_same_table(tables[1], tables[0], "lens")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_has_the_tables_of_the_whole_model(name, both, tmp_path, request):
    if name in LONG and not request.config.getoption("--torture"):
        pytest.skip("longer than ten seconds, with --torture")
    how = {"experiments": [name], "window": 16, "progress": False}
    text = ds.corpus("bookshelf", tokens=2560 if name == "patching" else 320)
    of_whole, of_parts = (ds.study(model, text, out=tmp_path / str(place), **how) for place, model in enumerate(both))
    tables = sorted(path.stem for path in (of_whole.path / "tables").glob("*.parquet"))
    assert tables
    for table in tables:
        require_same_table(of_parts.table(table), of_whole.table(table), table)

"""A run belongs to one model: whatever changes what the model computes is another run, and a model that was moved is not."""

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_models import InterruptionError, edit, save, study, tables

from depthscope.errors import DepthscopeError, ModelError, RunMismatchError
from depthscope.models.identity import NOT_COMPUTING, buffers_hash, tokenizer_hash
from depthscope.models.load import load
from depthscope.models.tokenizer import load_tokenizer
from depthscope.run.store import RunDirectory
from depthscope.schema.manifest import IDENTITY, Settings

KINDS = ("gpt2", "llama", "gemma2", "qwen3_moe", "opt", "bloom", "gpt_neox")
"""Families whose every entry is changed; together they have most kinds of entries."""
ACTIVATIONS = ("relu", "gelu", "silu")


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """Of a family: a saved model, a run of it that was ended after one of two units, and the tables of a whole run."""
    made: dict[str, tuple[Path, Path, dict[str, bytes]]] = {}

    def of(family: str) -> tuple[Path, Path, dict[str, bytes]]:
        if family not in made:
            place = tmp_path_factory.mktemp(family)
            folder = save(family, place / "model")
            study(folder, place / "whole")
            with pytest.raises(InterruptionError):
                study(folder, place / "begun", units=1)
            made[family] = folder, place / "begun", tables(place / "whole")
        return made[family]

    return of


def changed(value: Any, key: str) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1 if value % 2 else max(1, value // 2) if value > 1 else 3
    if isinstance(value, float):
        return value * 10 if value else 0.1
    if isinstance(value, str):
        return next(name for name in ACTIVATIONS if name != value) if "act" in str(key) else f"{value}x"
    if isinstance(value, list):
        return value[1:] + value[:1] if len(set(map(str, value))) > 1 else [*value, *value]
    if isinstance(value, dict):
        return {name: changed(member, name) for name, member in value.items()} if value else {"a": 1}
    return 1


def entries(folder: Path) -> list[str]:
    """What may be in a config.json: what is, and what else transformers reads into the configuration it uses."""
    used = load(folder, verify=False).hf.config.to_dict()
    return sorted({*json.loads((folder / "config.json").read_text()), *used})


@pytest.mark.fault(
    "an entry of config.json is changed after a study was interrupted",
    "the rest is refused and the entry named, or it decides no number and the tables are the same bytes: no run is mixed",
)
def test_no_run_is_of_two_configurations(interrupted, tmp_path, tries):
    cases = [(family, key) for family in KINDS for key in entries(interrupted(family)[0])]
    chosen = random.Random(0).sample(cases, tries(5, of=len(cases)))
    refused, unnamed = 0, []
    for number, (family, key) in enumerate(chosen):
        folder, begun, expected = interrupted(family)
        other = shutil.copytree(folder, tmp_path / f"model-{number}")
        run = shutil.copytree(begun, tmp_path / f"run-{number}")
        used = load(folder, verify=False).hf.config.to_dict()
        edit(other / "config.json", **{key: changed(used.get(key), key)})
        try:
            study(other, run)
        except RunMismatchError as error:
            named = [name.split(".")[1] for name in error.differences if name.startswith("configuration.")]
            unnamed += [] if named else [f"{family}: {key}"]
            refused += 1
        except DepthscopeError:
            refused += 1
        else:
            assert tables(run) == expected, f"{family}: {key} is mixed"
    assert refused
    assert unnamed == []


@pytest.mark.fault("layer_norm_epsilon is changed after an interruption", "refused, with both values")
def test_the_entry_is_named_with_both_values(interrupted, tmp_path):
    folder, begun, _ = interrupted("gpt2")
    other, run = shutil.copytree(folder, tmp_path / "model"), shutil.copytree(begun, tmp_path / "run")
    edit(other / "config.json", layer_norm_epsilon=0.1)
    with pytest.raises(RunMismatchError, match=r"configuration\.layer_norm_epsilon: 1e-05 stored, 0\.1 requested"):
        study(other, run)
    assert tables(run) == tables(begun)


@pytest.mark.fault(
    "the model's folder is moved after an interruption", "the run resumes; all its files are the same bytes"
)
def test_a_model_that_was_moved_is_the_same(interrupted, tmp_path):
    folder, begun, expected = interrupted("llama")
    moved, run = shutil.copytree(folder, tmp_path / "elsewhere"), shutil.copytree(begun, tmp_path / "run")
    study(moved, run)
    assert tables(run) == expected
    whole = begun.parent / "whole"
    assert (run / "run.json").read_bytes() == (whole / "run.json").read_bytes()


@pytest.mark.fault("the tokenizer is changed after an interruption", "refused")
def test_another_tokenizer_is_another_model(interrupted, tmp_path):
    folder, begun, _ = interrupted("gpt2")
    other, run = shutil.copytree(folder, tmp_path / "model"), shutil.copytree(begun, tmp_path / "run")
    stored = json.loads((other / "tokenizer.json").read_text())
    merges = stored["model"]["merges"]
    merges[-1], merges[-2] = merges[-2], merges[-1]
    (other / "tokenizer.json").write_text(json.dumps(stored))
    with pytest.raises(RunMismatchError, match="tokenizer"):
        study(other, run)


def test_the_tokenizers_hash_is_of_what_it_does(gpt2):
    first = tokenizer_hash(gpt2.tokenizer)
    gpt2.tokenizer("some text", truncation=True, max_length=2)
    assert tokenizer_hash(gpt2.tokenizer) == first
    assert load_tokenizer(Path("/nowhere"), "no", None) is None


def test_tables_computed_from_the_configuration_are_hashed_and_stay_as_they_are(tiny):
    first = buffers_hash(tiny.hf)
    with torch.inference_mode():
        tiny.hf(input_ids=torch.arange(48)[None])
    assert buffers_hash(tiny.hf) == first


def test_a_buffer_changed_in_memory_is_another_model(tmp_path):
    model = load(save("llama", tmp_path / "model"), verify=False)
    before = model.identity()
    model.hf.model.rotary_emb.inv_freq.mul_(1.001)
    differing = [key for key, value in model.identity().items() if value != before[key]]
    assert differing == ["buffers"]
    assert set(before) == set(IDENTITY)
    assert not set(before["configuration"]) & set(NOT_COMPUTING)


def run_of(path: Path, facts: dict[str, Any] | None = None, **settings: Any) -> None:
    with RunDirectory.writing(path, Settings.from_json(settings), facts or {}):
        pass


def test_runs_of_earlier_versions_are_compared_in_what_they_have(tmp_path):
    earlier = {"model": "a", "weights": "w", "token_hash": "t"}
    now = earlier | {"configuration": {"n": 1}, "buffers": "b", "tokenizer": "t", "bos_token": 0}
    run_of(tmp_path / "run", **earlier)
    run_of(tmp_path / "run", **now)
    assert RunDirectory.reading(tmp_path / "run").settings.configuration is None, (
        "it was not checked from the beginning"
    )
    with pytest.raises(RunMismatchError, match="model: 'a' stored, 'b' requested"):
        run_of(tmp_path / "run", **now | {"model": "b"})


def test_entries_that_another_library_writes_otherwise_are_not_compared(tmp_path):
    facts = [{"versions": {"transformers": version, "tokenizers": "1"}} for version in ("5.23", "5.24")]
    there = {"model": "a", "weights": "w", "configuration": {"n": 1}, "tokenizer": "one"}
    asked = there | {"configuration": {"n": 1, "new": 2}, "tokenizer": "two"}
    run_of(tmp_path / "run", facts[0], **there)
    with pytest.raises(RunMismatchError, match=r"configuration\.new: None stored, 2 requested"):
        run_of(tmp_path / "run", facts[0], **asked)
    run_of(tmp_path / "run", facts[1], **asked)
    with pytest.raises(RunMismatchError, match=r"configuration\.n: 1 stored, 2 requested"):
        run_of(tmp_path / "run", facts[1], **there | {"configuration": {"n": 2}})


@pytest.mark.fault(
    "a streamed model's weights are replaced or overwritten after the first work unit", "refused, the file named"
)
@pytest.mark.parametrize("how", ["replaced", "overwritten"])
def test_streamed_weights_are_those_of_one_file(tmp_path, how):
    folder, other = save("gpt2", tmp_path / "model"), save("gpt2", tmp_path / "other", seed=1)
    file = folder / "model.safetensors"
    study(folder, tmp_path / "whole")

    def change(unit: int) -> None:
        if how == "replaced":
            (other / "model.safetensors").replace(file)
        else:
            file.write_bytes((other / "model.safetensors").read_bytes())

    with pytest.raises(ModelError, match=r"model\.safetensors was changed or replaced while the model was in use"):
        study(folder, tmp_path / "run", after=change, stream="yes")
    expected = tables(tmp_path / "whole")
    assert all(expected[name] == content for name, content in tables(tmp_path / "run").items())
    with pytest.raises(RunMismatchError, match="weights"):
        study(folder, tmp_path / "run", stream="yes")


@pytest.mark.fault("the folder of a model in memory is overwritten during a study", "no effect")
def test_a_model_in_memory_no_longer_needs_its_folder(tmp_path):
    folder = save("gpt2", tmp_path / "model")
    study(folder, tmp_path / "whole")

    def ruin(unit: int) -> None:
        for file in folder.iterdir():
            file.write_bytes(b"\0" * file.stat().st_size)

    study(folder, tmp_path / "run", after=ruin, stream="no")
    assert tables(tmp_path / "run") == tables(tmp_path / "whole")

"""A stranger's model folder gives depthscope's own error or a verified model, in bounded time, and nothing in it is run."""

import json
import pickle
import random
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from crafted_models import CONFIGS, FILES, HARMLESS, PICKLE, index, put
from families import tiny_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saved_models import edit, save

from depthscope.errors import DepthscopeError, MemoryShortError, ModelError
from depthscope.models import limits
from depthscope.models.available import available_models
from depthscope.models.gguf_header import ARRAY, MAGIC, read_header
from depthscope.models.load import load

SECONDS = 120
"""The longest a load may take here, on a machine that does other work too; one second is usual."""
TEXT = "It was the best of times"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return save("gpt2", tmp_path_factory.mktemp("original") / "model")


@pytest.fixture
def folder(original, tmp_path):
    return shutil.copytree(original, tmp_path / "model")


@pytest.fixture
def copied(original, tmp_path):
    """Copies of the model's folder, one for each name."""
    return lambda name: shutil.copytree(original, tmp_path / "".join(filter(str.isalnum, name)))


def some(names: Iterable[str], count: int) -> list[str]:
    """A part of the corpus, the same each time."""
    return random.Random(1).sample(list(names), count)


@pytest.fixture
def pickles(monkeypatch):
    """Whatever unpickles is called with, which must stay empty."""
    called: list[Any] = []

    def caught(*arguments: Any, **_keywords: Any) -> None:
        called.append(arguments)
        raise RuntimeError("a pickle was read")

    for holder, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(holder, name, caught)
    return called


def refusal(folder: Path, **options: Any) -> DepthscopeError | None:
    """depthscope's own error, of one line, None where the model loads; anything else is raised."""
    started, found = time.perf_counter(), None
    try:
        load(folder, **options)
    except DepthscopeError as error:
        found = error
    assert time.perf_counter() - started < SECONDS
    assert "\n" not in str(found)
    assert len(str(found)) < 2000
    return found


@pytest.mark.fault(
    "a crafted config.json: wrong types, zero, negative and huge numbers, code, other files", "refused in one line"
)
def test_crafted_configurations(copied, tries):
    for name in some(CONFIGS, tries(6, of=len(CONFIGS))):
        folder = copied(name)
        edit(folder / "config.json", **CONFIGS[name])
        assert refusal(folder) is not None, name


@pytest.mark.fault(
    "crafted or unreadable files: configuration, weights, index, tokenizer; pipes, links, folders in their place",
    "refused in one line",
)
def test_crafted_files(copied, pickles, tries):
    for name in some(FILES, tries(8, of=len(FILES))):
        folder = copied(name)
        FILES[name](folder)
        assert refusal(folder) is not None, name
        assert pickles == [], name


@pytest.mark.fault(
    "files that are not the model's next to it, or named by its settings", "never opened; the model is the same"
)
def test_what_is_not_read_changes_nothing(original, copied, pickles, tries):
    expected = load(original)
    for name in some(HARMLESS, tries(2, of=len(HARMLESS))):
        folder = copied(name)
        HARMLESS[name](folder)
        model = load(folder)
        assert (model.weight_hash(), model.identity()) == (expected.weight_hash(), expected.identity()), name
        assert model.tokenizer.name_or_path == str(folder), name
        assert pickles == [], name


@pytest.mark.fault(
    "pickles in the place of weights, in a model's folder, an adapter's, or the hub's cache",
    "torch.load is never called",
)
@pytest.mark.parametrize("stream", ["no", "yes"])
def test_no_way_leads_to_a_pickle(folder, tmp_path, stream, pickles, monkeypatch):
    (folder / "pytorch_model.bin").write_bytes(PICKLE)
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"a": "pytorch_model.bin"}, "metadata": {}}')
    assert refusal(folder, stream=stream) is None
    put("config.json", transformers_weights="adapter_model.bin")(folder)
    (folder / "adapter_model.bin").write_bytes(PICKLE)
    assert refusal(folder, stream=stream) is not None
    put("config.json", transformers_weights=None)(folder)
    assert "adapter" in str(refusal(folder, stream=stream))
    (folder / "adapter_model.bin").unlink()
    index("pytorch_model.bin")(folder)
    assert "nothing else is read" in str(refusal(folder, stream=stream))
    (folder / "model.safetensors.index.json").unlink()
    (folder / "weights.safetensors").unlink()
    assert "only as pickle" in str(refusal(folder, stream=stream))
    snapshot = tmp_path / "hub" / "models--org--name" / "snapshots" / ("0" * 40)
    shutil.copytree(folder, snapshot)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert "only as pickle" in str(refusal(Path("org/name"), stream=stream))
    assert pickles == []


@pytest.mark.fault("a hub's snapshot, whose files are links to the cache's blobs", "loaded")
def test_links_of_the_hubs_cache_are_followed(folder, tmp_path):
    cache = tmp_path / "models--org--name"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        file.rename(cache / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    for stream in ("no", "yes"):
        assert load(snapshot, stream=stream).tokenize(TEXT)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing", "ignore:Could not find a config file")
@pytest.mark.fault(
    "an adapter with a pickle, or a configuration that has PEFT read files or modules",
    "refused in one line; nothing is unpickled",
)
def test_crafted_adapters(tmp_path, pickles):
    peft = pytest.importorskip("peft", reason="adapters need peft")
    hf = tiny_model("llama")
    base, made = tmp_path / "base", tmp_path / "adapter"
    hf.save_pretrained(base)
    peft.get_peft_model(hf, peft.LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(made)
    crafted: list[dict[str, Any]] = [
        {"peft_type": ["LORA"]}, {"peft_type": "XLORA", "adapters": {"a": "/tmp"}}, {"peft_type": "NEW"}, {"r": 10**9},
        {"r": "two"}, {"r": 0}, {"rank_pattern": {"q_proj": 10**8}}, {"target_modules": 5}, {"target_modules": "(("},
        {"lora_alpha": "x"}, {"corda_config": {"cache_file": "cache.pt"}}, {"lora_ga_config": {"cache_file": "cache.pt"}},
        {"megatron_config": {"a": 1}, "megatron_core": "antigravity"}, {"task_type": []}, {"modules_to_save": 5},
    ]  # fmt: skip
    for changes in crafted:
        folder = shutil.copytree(made, tmp_path / "odd", dirs_exist_ok=True)
        edit(folder / "adapter_config.json", **changes)
        assert refusal(base, adapter=folder) is not None, changes
        shutil.rmtree(folder)
    for content in ("[]", "{", "[" * 10_000):
        folder = shutil.copytree(made, tmp_path / "odd")
        (folder / "adapter_config.json").write_text(content)
        assert refusal(base, adapter=folder) is not None, content[:9]
        shutil.rmtree(folder)
    (made / "adapter_model.safetensors").rename(made / "adapter_model.bin")
    assert "it has no adapter_model" in str(refusal(base, adapter=made))
    assert pickles == []


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.integers(-3, 70)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["gelu", "eager", "gpt2", "float16", "a/b", "../x", "load"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
OTHER_KEYS = (
    *(
        "quantization_config",
        "rope_parameters",
        "text_config",
        "attn_implementation",
        "dtype",
        "layer_types",
        "id2label",
    ),
    *("num_labels", "per_layer_config", "tokenizer_class", "auto_map", "pruned_heads", "sliding_window", "head_dim"),
    *("num_key_value_heads", "output_attentions", "return_dict", "add_cross_attention", "transformers_version"),
)


@pytest.mark.fault(
    "one or two entries of config.json are arbitrary JSON, two families",
    "depthscope's own error or a model that verifies, in bounded time",
)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_arbitrary_entries(family, tmp_path, tries):
    made = tmp_path / "model"
    tiny_model(family).save_pretrained(made)
    stored = json.loads((made / "config.json").read_text())
    keys = st.sampled_from(sorted({*stored, *OTHER_KEYS}))
    outcomes: set[str] = set()

    @settings(
        max_examples=tries(6, of=150),
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.dictionaries(keys, VALUES, min_size=1, max_size=2))
    def try_one(changes: dict[str, Any]) -> None:
        (made / "config.json").write_text(json.dumps(stored | changes))
        outcomes.add(type(refusal(made)).__name__)

    try_one()
    assert outcomes


@pytest.mark.fault(
    "a model larger than the memory available is to be loaded whole", "refused before anything is allocated"
)
def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(folder, monkeypatch):
    monkeypatch.setattr(limits, "device_memory", lambda _device: 100_000)
    with pytest.raises(MemoryShortError, match=r"in float32 takes at least .* are available\. Stream it"):
        load(folder, stream="no")
    assert load(folder, stream="yes").stack.streamed


@pytest.mark.fault(
    "GGUF headers: arrays nested deep, pipes in the place of files", "refused in one line; the list of models goes on"
)
def test_crafted_gguf_headers(tmp_path):
    import os

    nested = MAGIC + (3).to_bytes(4, "little") + (0).to_bytes(8, "little") + (1).to_bytes(8, "little")
    nested += (1).to_bytes(8, "little") + b"a" + ARRAY.to_bytes(4, "little")
    nested += (ARRAY.to_bytes(4, "little") + (1).to_bytes(8, "little")) * 100_000
    (tmp_path / "deep.gguf").write_bytes(nested)
    with pytest.raises(ValueError, match="nested more than"):
        read_header(tmp_path / "deep.gguf")
    os.mkfifo(tmp_path / "pipe.gguf")
    (tmp_path / "empty.gguf").write_bytes(b"")
    found = [one for one in available_models(tmp_path) if one.where == "file"]
    assert [one.quantisation for one in found] == ["cannot be read"] * 3
    with pytest.raises(ModelError):
        load(tmp_path / "deep.gguf")
    with pytest.raises(ModelError):
        load(tmp_path / "pipe.gguf")


@pytest.mark.fault(
    "names that cannot be paths: null characters, 10,000 characters, unknown users", "refused in one line"
)
@pytest.mark.parametrize(
    "name", ["a\0b", "x" * 10_000, "./" + "x" * 10_000, "~nobody-here/x", "", "a" * 200 + "/" + "b" * 200]
)
def test_names_that_cannot_be_paths(name):
    with pytest.raises(DepthscopeError):
        load(name)

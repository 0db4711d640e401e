"""GGUF files: the model in one is the model that the gguf package alone makes of it, and what cannot be read says so."""

import json
import shutil
import sys

import pytest
import torch
from families import tiny_model
from gguf_files import ARCHITECTURES, converted, tiny, write

import depthscope as ds
from depthscope.cli import main
from depthscope.errors import ModelError, RunMismatchError, UnsupportedError
from depthscope.models import gguf
from depthscope.models.load import load

IDS = torch.arange(2, 26)[None] * 9 % 260
STORED = [*((family, "Q4_1") for family in ARCHITECTURES), ("llama", "F32"), ("gemma3_text", "Q8_0"), ("gpt2", "Q5_0")]


@pytest.mark.parametrize(("family", "kind"), STORED, ids="-".join)
def test_logits_are_those_of_a_conversion_with_the_gguf_package_alone(family, kind, tmp_path):
    path = write(tmp_path / f"tiny.{kind}.gguf", family, kind)
    model = load(path, dtype="float32")  # checks replay too
    with torch.inference_mode():
        expected = converted(path, family)(input_ids=IDS).logits
        torch.testing.assert_close(model.hf(input_ids=IDS).logits, expected, rtol=0, atol=0)
    assert model.gguf.quantisation == kind
    assert model.facts.quantisation == ("stored as F32" if kind == "F32" else f"dequantised from {kind}")
    assert model.unused == ()


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return write(tmp_path_factory.mktemp("gguf") / "tiny.gguf", "llama", "Q4_0")


def test_the_tokenizer_in_the_file_reads_and_writes_any_text(stored):
    model = load(stored)
    for text in ("the weather, théâtre 1843\n\n  日本 🎉", " the<|end|> "):
        ids = model.tokenize(text)
        assert model.tokenizer.decode(ids) == text
    assert model.tokenize(" the") == [259]
    assert model.tokenize("<|end|>") == [0]
    assert model.facts.dtype == "bfloat16"


def test_a_folder_with_one_file_and_a_named_one_of_several(stored, tmp_path, monkeypatch):
    shutil.copy(stored, tmp_path / "one.gguf")
    assert load(tmp_path).gguf.file == "one.gguf"
    write(tmp_path / "two.gguf", "llama", "Q8_0")
    with pytest.raises(ModelError, match=r"2 GGUF files: choose one as .*#FILE from one\.gguf, two\.gguf"):
        load(tmp_path)
    assert load(f"{tmp_path}#two.gguf").gguf.quantisation == "Q8_0"
    with pytest.raises(ModelError, match=r"no file three\.gguf: it has one\.gguf, two\.gguf"):
        load(f"{tmp_path}#three.gguf")


def test_a_file_in_the_cache_of_the_hub(stored, tmp_path, monkeypatch):
    import huggingface_hub

    snapshot = tmp_path / "models--org--name" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text(snapshot.name)
    shutil.copy(stored, snapshot / "tiny.gguf")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    for name in ("org/name", "org/name#tiny.gguf"):
        model = load(name)
        assert (model.gguf.file, model.revision) == ("tiny.gguf", snapshot.name)


def test_files_of_the_hub_are_chosen_before_they_are_downloaded(stored, monkeypatch):
    files = ["README.md", "a.Q4_0.gguf", "b.Q8_0.gguf"]
    asked = []
    monkeypatch.setattr(gguf, "list_repo_files", lambda name, revision: files)
    monkeypatch.setattr(gguf, "hf_hub_download", lambda name, file, revision: asked.append(file) or str(stored))
    assert gguf.choose_on_hub("org/name", "b.Q8_0.gguf", "org/name", None) == stored
    with pytest.raises(ModelError, match=r"org/name#FILE from a\.Q4_0\.gguf, b\.Q8_0\.gguf"):
        gguf.choose_on_hub("org/name", None, "org/name", None)
    files[:] = ["model.safetensors", "a.gguf"]
    assert gguf.choose_on_hub("org/name", None, "org/name", None) is None
    assert asked == ["b.Q8_0.gguf"]


def test_what_is_not_a_whole_gguf_file_is_refused_in_one_line(stored, tmp_path):
    content = stored.read_bytes()
    other = tmp_path / "tiny.gguf"
    for given, expected in (
        (b"", "not a GGUF file"),
        (b"PK\x03\x04 and so on", "begins with b'PK"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (content[:20], "may be truncated"),
        (content[:3000], "may be truncated"),
        (content[:-100], "is truncated: its tensors end at byte"),
        (content[:4] + b"\x09" + content[5:], "version 9"),
    ):
        other.write_bytes(given)
        with pytest.raises(ModelError, match=expected) as caught:
            load(other)
        assert "\n" not in str(caught.value)
        assert str(other) in str(caught.value)


def test_models_that_would_be_other_ones_are_refused(tmp_path):
    scaled = write(tmp_path / "scaled.gguf", "llama", llama__rope__scaling__type="yarn")
    with pytest.raises(UnsupportedError, match=r"rotary positions are scaled \(yarn\)"):
        load(scaled)
    biased = write(tmp_path / "biased.gguf", "llama", model=tiny("llama", attention_bias=True))
    with pytest.raises(ModelError, match=r"tensors the model does not read: blk\.0\.attn_k\.bias"):
        load(biased)
    assert "blk.3.attn_q.bias" in load(biased, unused_tensors="ignore").unused


def test_an_architecture_without_a_loader_is_refused_by_name(stored, tmp_path):
    other = tmp_path / "other.gguf"
    other.write_bytes(stored.read_bytes().replace(b"llama", b"rwkv6"))
    with pytest.raises(ModelError, match=r"architecture 'rwkv6'.*can load .*gemma3, .*llama"):
        load(other)


def test_what_is_missing_or_cannot_be_done_is_said(stored, monkeypatch):
    with pytest.raises(UnsupportedError, match="GGUF file, whose blocks must be dequantised first"):
        load(stored, stream="yes")
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'depthscope\[gguf\]'"):
        load(stored)


def test_a_file_that_is_not_quantised_at_all_and_a_model_without_tokenizer(tmp_path):
    path = write(tmp_path / "plain.gguf", "llama", tokenizer=False)
    model = load(path)
    assert model.tokenizer is None
    assert not model.gguf.quantised


def test_a_study_names_the_file_and_notices_another(stored, tmp_path, capsys, few, monkeypatch):
    path, run = tmp_path / "tiny.gguf", tmp_path / "run"
    shutil.copy(stored, path)
    asked = ["study", str(path), "--data", str(few), "--out", str(run), "--tokens", "64", "--window", "32"]
    monkeypatch.setattr(sys, "argv", ["depthscope", *asked, "--experiments", "sweep", "--edits", "swap"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "dequantised from Q4_0" in capsys.readouterr().out.replace("\n", " ")
    entry = json.loads((run / "run.json").read_text())["settings"]["gguf"]
    assert entry["quantisation"] == "Q4_0"
    assert entry["tensor_types"] == {"F32": 9, "Q4_0": 29}
    page = (run / "report.html").read_text()
    assert "(dequantised from Q4_0)</h1>" in page
    assert "not exactly the published one" in page
    assert entry["sha256"] in page
    write(path, "llama", "Q8_0")
    with pytest.raises(RunMismatchError, match="gguf"):
        ds.study(str(path), few, out=run, tokens=64, window=32, experiments=["sweep"], edits=["swap"], progress=False)


def test_a_safetensors_folder_keeps_its_dtype(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    assert load(tmp_path).facts.dtype == "float32"
    assert load(tmp_path).gguf is None

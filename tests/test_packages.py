"""Named models: downloaded with the real pip, from a folder of wheels instead of an index."""

import hashlib
from dataclasses import replace
from zipfile import ZipFile

import pytest
from gguf_files import write
from typer.testing import CliRunner

from depthscope.cli import build_app
from depthscope.errors import ModelError
from depthscope.models import load as loading
from depthscope.models import packages
from depthscope.models.named import NAMED
from depthscope.models.packages import find_named, get_named, require_named, terms_of

PIECES = ("model_a/data/tiny.part0", "model_b/data/tiny.part1")
TINY = replace(
    NAMED["gemma3-270m"],
    name="tiny-named",
    packages=("depthscope-model-a==1.0", "depthscope-model-b==1.0"),
    pieces=PIECES,
    file="tiny.gguf",
    licence_files=("model_a/data/TERMS.md",),
)


@pytest.fixture
def tiny_named(tmp_path, monkeypatch):
    """A model in two wheels, known by a name, and an empty folder of models."""
    content = write(tmp_path / "whole.gguf", "llama", "Q8_0").read_bytes()
    for letter, piece, half in zip("ab", PIECES, (content[:5000], content[5000:]), strict=True):
        files = {
            piece: half,
            f"model_{letter}/data/TERMS.md": b"terms",
            f"depthscope_model_{letter}-1.0.dist-info/METADATA": f"Name: depthscope-model-{letter}\nVersion: 1.0\n".encode(),
            f"depthscope_model_{letter}-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\n",
            f"depthscope_model_{letter}-1.0.dist-info/RECORD": b"",
        }
        with ZipFile(tmp_path / f"depthscope_model_{letter}-1.0-py3-none-any.whl", "w") as wheel:
            for name, data in files.items():
                wheel.writestr(name, data)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv(packages.FOLDER_VARIABLE, str(tmp_path / "models"))
    model = replace(TINY, sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(NAMED, model.name, model)
    return model


def test_a_model_in_pieces_is_downloaded_joined_checked_and_loaded(tiny_named, tmp_path, monkeypatch):
    with pytest.raises(ModelError, match="depthscope models --get tiny-named"):
        require_named("tiny-named")
    done = CliRunner().invoke(build_app(), ["models", "--get", "tiny-named"])
    assert done.exit_code == 0
    assert "Gemma Terms of Use" in done.output
    assert find_named("tiny-named").read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert [terms.read_text() for terms in terms_of("tiny-named")] == ["terms"]
    assert not list((tmp_path / "models").rglob(".download-*"))
    assert loading.load("tiny-named").gguf.sha256 == tiny_named.sha256
    monkeypatch.chdir(tmp_path)
    listed = CliRunner().invoke(build_app(), ["models"]).output
    assert "tiny-named" in listed
    assert "whole.gguf" in listed
    assert "To get SmolLM2-135M-Instruct" in listed


def test_a_file_that_is_not_the_known_one_is_not_kept(tiny_named, monkeypatch, tmp_path):
    monkeypatch.setitem(NAMED, "tiny-named", replace(tiny_named, sha256="0" * 64))
    with pytest.raises(ModelError, match="changed or damaged"):
        get_named("tiny-named")
    assert find_named("tiny-named") is None
    kept = tmp_path / "models" / "tiny-named" / "tiny.gguf"
    kept.write_bytes((tmp_path / "whole.gguf").read_bytes())
    with pytest.raises(ModelError, match="delete it and get tiny-named again"):
        loading.load("tiny-named")


def test_what_cannot_be_downloaded_is_one_line(tiny_named, monkeypatch):
    monkeypatch.setitem(NAMED, "tiny-named", replace(tiny_named, packages=("depthscope-no-such-package==1.0",)))
    with pytest.raises(ModelError, match=r"pip cannot download depthscope-no-such-package==1\.0: ") as caught:
        get_named("tiny-named")
    assert "\n" not in str(caught.value)
    with pytest.raises(ModelError, match="expected one of smollm2-135m, gemma3-270m"):
        get_named("smollm")


def test_an_unknown_name_lists_the_named_models():
    with pytest.raises(ModelError, match=r"smollm2-135m, gemma3-270m; depthscope models .*Did you mean smollm2-135m"):
        loading.load("smollm2-135n")

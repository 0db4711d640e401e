"""Every public entry takes what its neighbours take, and says which argument is wrong, what was expected and what came."""

import re
from importlib.metadata import version

import pytest
import torch
from typer.testing import CliRunner

import depthscope as ds
from depthscope.cli import app
from depthscope.errors import DataError, RouteError

TEXT = "It was the best of times, it was the worst of times. " * 8


def test_models_and_edits_may_be_names(gpt2):
    expected = ds.logits(gpt2, TEXT, ds.swap(3) | ds.drop_mlp(7))
    assert torch.equal(ds.logits("bookshelf-gpt2", TEXT, "swap(3) | drop_mlp(7)"), expected)
    assert ds.lens("bookshelf-gpt2", "It was", top=1).equals(ds.lens(gpt2, "It was", top=1))
    with pytest.raises(RouteError, match=r"cannot read the edit 'melt\(3\)'"):
        ds.logits(gpt2, TEXT, "melt(3)")


def test_documents_in_memory_are_a_corpus(gpt2, tmp_path):
    texts = [TEXT, TEXT.upper(), TEXT[::-1]]
    study = ds.study(
        gpt2, texts, out=tmp_path / "run", tokens=60, window=20, experiments=["sweep"], edits=["drop"], progress=False
    )
    assert study.table("sweep")["documents"].unique().to_list() == [3]
    assert study.table("sweep")["tokens"].unique().to_list() == [60]
    assert study.run.settings.data == "3 documents in memory"
    assert ds.corpus(texts)[1] == TEXT.upper()
    with pytest.raises(DataError, match="document 1: half of a surrogate pair"):
        ds.corpus([TEXT, "\ud800"])
    for wrong in ([], [TEXT, 3]):
        with pytest.raises(DataError, match="list of documents, each a text"):
            ds.corpus(wrong)


def test_what_is_given_in_the_wrong_place_is_named(gpt2):
    with pytest.raises(RouteError, match=r"edits are the kinds a sweep applies at every layer.*got repeat\(5"):
        ds.study(gpt2, TEXT, edits=[ds.repeat(5)], progress=False)
    with pytest.raises(DataError, match=r"expected one text, or token ids.*got a list of texts"):
        ds.logits(gpt2, ["a", "b"])


def test_a_model_shows_what_it_is(gpt2):
    assert repr(gpt2) == "Model('bookshelf-gpt2': gpt2, 12 blocks, d_model 192, float32 on cpu)"


def test_the_command_says_its_version_and_all_of_its_help():
    assert CliRunner().invoke(app, ["--version"]).output == f"depthscope {version('depthscope')}\n"
    bare = CliRunner().invoke(app, [])
    assert "Commands" in bare.output
    for command in ("report", "compare", "explore", "study"):
        shown = re.sub(r"[│\s]+", " ", CliRunner().invoke(app, [command, "--help"]).output)
        assert "(needs )" not in shown
        assert "needs depthscope)" not in shown

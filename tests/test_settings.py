"""What is wrong about a request is said before torch is imported or a model is loaded."""

import subprocess
import sys

import pytest

import depthscope as ds
from depthscope.errors import DepthscopeError
from depthscope.stages import find as stages
from depthscope.studies.registry import EXPERIMENTS
from depthscope.studies.settings import NAMES

WRONG = """
import sys
from depthscope.cli import main
with open("mine.txt", "w") as file:
    file.write("mine")
failed = []
for arguments, says in {cases!r}:
    sys.argv = ["depthscope", *arguments]
    try:
        main()
    except SystemExit as end:
        if end.code != 2:
            failed.append(arguments)
    else:
        failed.append(arguments)
    print("--", file=sys.stderr)
heavy = {{"torch", "transformers"}} & set(sys.modules)
sys.exit(f"{{failed}} {{heavy}}" if failed or heavy else 0)
"""
CASES = [
    (("study", "--experiments", "sweep,melt"), "unknown experiment melt: expected some of sweep, lens"),
    (("sweep", "--edits", "swap,melt"), "unknown edit melt: expected some of swap, drop, drop_attn, drop_mlp"),
    (("sweep", "--edits", ","), "unknown edit (none given)"),
    (("lens", "--protocol", "lad2025"), "unknown protocol 'lad2025': expected one of text, lad2024"),
    (("norms", "--bos", "twice"), "unknown BOS policy 'twice': expected auto, none or window"),
    (("sweep", "--precision", "5"), "expected a precision between 0 and 1"),
    (("study", "--precision", "0.1", "--experiments", "lens"), "--precision is a goal for the KL of the sweep"),
    (("norms", "--special-tokens", "drop"), "special_tokens is 'drop': expected text or keep"),
    (("study", "--data", "nowhere.txt"), "no text at nowhere.txt"),
    (("study", "--data", "hf:a:b:c:d"), "cannot read hf:a:b:c:d"),
    (("study", "--data", "."), "is a folder with no text in it"),
    (("attention", "--data", "x.doc"), "no text at x.doc"),
    (("heads", "--out", "mine.txt"), "mine.txt is a file: expected a new or empty directory"),
]


def test_a_wrong_option_imports_no_torch(tmp_path):
    cases = [case for case in CASES if case[0][-1] != "."]
    done = subprocess.run(
        [sys.executable, "-c", WRONG.format(cases=cases)], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    for (_, says), said in zip(cases, done.stderr.split("--\n"), strict=False):
        assert says in " ".join(said.split())


@pytest.mark.parametrize(
    ("keywords", "says"),
    [
        ({"experiments": ["melt"]}, "unknown experiment melt"),
        ({"edits": ["melt"]}, "unknown edit melt"),
        ({"protocol": "paper"}, "unknown protocol 'paper'"),
        ({"bos": "twice"}, "unknown BOS policy 'twice'"),
        ({"window": 1}, "a window of 1 tokens is too short"),
        ({"precision": 5.0}, "expected a precision between 0 and 1"),
        ({"text": "nowhere.txt"}, "no text at nowhere.txt"),
        ({"text": [3]}, "a corpus in memory is a list of documents"),
        ({"tokens": 0}, "expected a positive number of tokens"),
    ],
)
def test_a_study_checks_its_arguments_before_it_loads_the_model(monkeypatch, tmp_path, keywords, says):
    monkeypatch.setattr("depthscope.api.load", lambda name: pytest.fail("the model was loaded"))
    with pytest.raises(DepthscopeError, match=says):
        ds.study("bookshelf-gpt2", out=tmp_path, progress=False, **keywords)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DepthscopeError, match="holds other files"):
        ds.study("bookshelf-gpt2", out=tmp_path, progress=False)


def test_the_names_of_experiments_are_those_there_are():
    assert (*EXPERIMENTS, stages.NAME) == NAMES

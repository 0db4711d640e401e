"""What is wrong about a request is said before torch is imported or a model is loaded."""

import re
import subprocess
import sys

import pytest

import depthscope as ds
from depthscope.errors import DepthscopeError
from depthscope.schema.experiments import EXPERIMENTS
from depthscope.studies.settings import study_settings

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
    (("study", "--precision", "0.1", "--experiments", "lens"), "--precision is a goal for the KL of a sweep or map"),
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
    monkeypatch.setattr("depthscope.api.inputs.load", lambda name: pytest.fail("the model was loaded"))
    with pytest.raises(DepthscopeError, match=says):
        ds.study("bookshelf-gpt2", out=tmp_path, progress=False, **keywords)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DepthscopeError, match="holds other files"):
        ds.study("bookshelf-gpt2", out=tmp_path, progress=False)


def test_a_setting_of_another_name_is_refused_with_a_near_one():
    with pytest.raises(
        DepthscopeError, match=r"unknown setting edit \(did you mean edits\?\): expected some of experiments"
    ):
        study_settings(edit=["swap"])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"window": "wide"}, "setting window: expected int, got 'wide'"),
        ({"window": True}, "setting window: expected int, got True"),
        ({"precision": "5%"}, "setting precision: expected float, got '5%'"),
        ({"per_token": 1}, "setting per_token: expected bool, got 1"),
        ({"experiments": 3}, "setting experiments: expected a list of names, got 3"),
        ({"experiments": ["sweep", 3]}, "setting experiments: expected a list of names"),
        ({"suffix": None}, "setting suffix: expected str, got None"),
    ],
)
def test_a_setting_of_another_type_is_refused(given, says):
    with pytest.raises(DepthscopeError, match=re.escape(says)):
        study_settings(**given)


def test_names_may_be_a_text_with_commas():
    asked = study_settings(experiments="lens, sweep", edits="drop-mlp,swap", precision=0.5)
    assert asked.experiments == ("sweep", "lens")
    assert asked.options["edits"] == ("drop_mlp", "swap")


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=lambda one: one.name)
def test_a_declaration_is_whole_and_needs_no_torch_until_it_is_made(experiment):
    assert experiment.title.endswith(".")
    assert experiment.question[0].isupper()
    assert experiment.source
    assert experiment.tables
    assert callable(experiment.maker())

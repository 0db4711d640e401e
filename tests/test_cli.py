"""The command line as a user meets it: messages, exit status, no traceback, nothing lost."""

import gc
import os
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

from depthscope.cli import app, main
from depthscope.cli.options import load_quietly
from depthscope.cli.request import Request
from depthscope.models import half_precision


def depthscope(*arguments: object, cwd=None) -> subprocess.CompletedProcess[str]:
    code = "from depthscope.cli import main; main()"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=cwd)


def in_this_process(*arguments: object, monkeypatch) -> int:
    """The exit status of a command, as `main` ends it: without the seconds that a new process takes to import torch."""
    monkeypatch.setattr(sys, "argv", ["depthscope", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.mark.parametrize(
    ("given", "found"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_waiting_threads_spin_briefly_unless_the_user_says_otherwise(given, found, monkeypatch, capsys):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is restored at the end, whatever the command does
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    in_this_process("--help", monkeypatch=monkeypatch)
    assert os.environ.get("GOMP_SPINCOUNT") == found


@pytest.mark.parametrize(
    ("dtype", "times", "noted"), [("bfloat16", 7.6, True), ("bfloat16", 1.1, False), ("float32", 7.6, False)]
)
def test_slow_half_precision_is_noted(dtype, times, noted, monkeypatch, capsys):
    monkeypatch.setattr(half_precision, "time_of_products", lambda _: times)
    load_quietly("bookshelf-gpt2", dtype, "cpu", None, verify=False)
    said = " ".join(capsys.readouterr().err.split())
    assert ("note: products in bfloat16 take 8 times as long as in float32" in said) == noted


def test_products_are_timed_against_float32():
    assert 0.3 < half_precision.time_of_products(torch.float64) < 30


def test_a_command_leaves_the_garbage_collector_as_it_was_and_does_not_search_what_it_loaded(tmp_path, monkeypatch):
    during = []
    load = Request.load
    monkeypatch.setattr(Request, "load", lambda self: (during.append(gc.isenabled()), load(self))[1])
    command = ("sweep", "--tokens", 64, "--window", 32, "--edits", "drop", "--out", tmp_path / "run")
    try:
        before = gc.get_freeze_count()
        assert in_this_process(*command, monkeypatch=monkeypatch) == 0
        assert (during, gc.isenabled()) == ([False], True)
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()


def test_a_sweep_from_start_to_page_and_again(tmp_path, monkeypatch, capsys):
    arguments = ("sweep", "--tokens", 300, "--window", 50, "--edits", "swap,drop-attn", "--out", "run")
    first = depthscope(*arguments, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    for shown in (
        "bookshelf-gpt2 on 300 tokens of 6 documents",
        "Swap KL",
        "Drop attention KL",
        "run/report.html",
    ):
        assert shown in first.stdout
    assert (tmp_path / "run" / "report.html").stat().st_size > 1e6
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run" / "shards").rglob("*.parquet")}
    monkeypatch.chdir(tmp_path)
    assert in_this_process(*arguments, monkeypatch=monkeypatch) == 0
    assert before == {file: file.stat().st_mtime_ns for file in (tmp_path / "run" / "shards").rglob("*.parquet")}
    capsys.readouterr()
    assert in_this_process(*arguments[:-4], "--edits", "drop", "--out", "run", monkeypatch=monkeypatch) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "made with other settings" in said
    assert "sweep.edits: ['swap', 'drop_attn'] stored, ['drop'] requested" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("sweep", "--edits", "swap,melt"), "unknown edit melt: expected some of swap, drop, drop_attn, drop_mlp"),
        (("sweep", "--window", "9999"), "a window of 9999 tokens is longer than the context of bookshelf-gpt2, 256"),
        (("study", "--data", "nowhere.txt"), "no text at nowhere.txt"),
        (("study", "./nowhere"), "no model folder at ./nowhere"),
        (("study", "--tokens", "300", "--experiments", "sweep", "--out", "/proc/run"), "cannot be written"),
        (("report", "nowhere"), "nowhere holds no run"),
        (("verify", "--dtype", "int3"), "unknown dtype 'int3'"),
    ],
)
def test_a_mistake_gets_one_message_and_status_2(tmp_path, monkeypatch, capsys, arguments, says):
    monkeypatch.chdir(tmp_path)
    assert in_this_process(*arguments, monkeypatch=monkeypatch) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert list(tmp_path.iterdir()) == [], "nothing half-written"


def test_debug_shows_where(tmp_path):
    done = depthscope("report", "nowhere", "--debug", cwd=tmp_path)
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


MODEL = "--dtype --device --revision --stream --unused-tensors --device-map --quantize --adapter"
ENGINE = "--engine --address --replicas --cpus-per-replica --gpus-per-replica"
TEXT = f"--data --tokens --out --special-tokens --chat --pack --cluster {MODEL} {ENGINE}"
SHARED = f"--window --bos {TEXT}"


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            "study",
            "--revisions --recipe --experiments --precision --window --bos --edits --per-token --by-class --protocol "
            "--lens --tuned-lens "
            "--jacobian-lens --lens-data --queries --suffix --kind --band --variant --splits --keep-first --ablation "
            "--top-neurons --fit-tokens --fit-data --suffixes --patch-distance --entropy-top --entropy-layers " + TEXT,
        ),
        ("sweep", f"--edits --per-token --by-class --precision {SHARED}"),
        ("dimension", SHARED),
        ("dependency", f"--variant --splits --keep-first {SHARED}"),
        ("map", f"--kind --band --by-class --precision {SHARED}"),
        ("norms", SHARED),
        ("attention", f"--protocol --queries {SHARED}"),
        (
            "lens",
            f"--prompt --top --position --protocol --lens --tuned-lens --jacobian-lens --lens-data --by-class {SHARED}",
        ),
        ("effective-depth", f"--protocol --lens --tuned-lens --jacobian-lens --lens-data {SHARED}"),
        ("guess-refine", f"--protocol --lens --tuned-lens --jacobian-lens --lens-data {SHARED}"),
        ("similarity", SHARED),
        ("sinks", SHARED),
        (
            "generate",
            "--prompt --edit --route --tokens --temperature --top-p --top-k --seed --stop --chat --bos " + MODEL,
        ),
        ("tune", f"--out --lens --most-windows --data --tokens --window --bos --special-tokens --chat --pack {MODEL}"),
        ("convert", f"--out {MODEL}"),
        (
            "eval",
            "--tasks --out --edit --route --sweep --limit --shots --data --tokens --window --bos --include-path "
            f"--allow-task-code {MODEL}",
        ),
        (
            "export",
            "--out --edit --route --drop --measure --speed --data --tokens --window --bos --special-tokens --chat --pack "
            "--cluster --dtype --device --revision --stream --unused-tensors --device-map --quantize",
        ),
        (
            "heal",
            "--teacher --out --data --tokens --window --bos --rank --rate --special-tokens --chat --pack --dtype --device "
            "--revision --stream --unused-tensors --device-map --quantize",
        ),
        ("report", "--out --figures --reference"),
        ("compare", "--out --figures --reference"),
        ("info", MODEL),
        ("verify", MODEL),
    ],
)
def test_options_are_frozen_and_explained(command, options):
    import typer

    parameters = typer.main.get_command(app).commands[command].params
    names = [parameter.opts[0] for parameter in parameters if parameter.opts[0].startswith("--")]
    assert names == options.split()
    assert all(
        parameter.help
        for parameter in parameters
        if parameter.opts[0].startswith("--") and parameter.opts[0] != "--help"
    )
    assert "Usage" in run(command, "--help")


def test_generate_prints_the_text_and_compares_edits_with_the_unmodified_model():
    import depthscope as ds

    model, prompt = ds.load("bookshelf-gpt2"), "It was the best of times"
    text = ds.generate(model, prompt, "drop(5)", tokens=6)
    assert run("generate", "--prompt", prompt, "--edit", "drop(5)", "--tokens", "6") == f"{text}\n"
    said = run("generate", "--prompt", prompt, "--edit", "drop(5)", "--route", "0-11 11", "--tokens", "6")
    own, other = ds.generate(model, prompt, tokens=6), ds.generate(model, prompt, "repeat(11)", tokens=6)
    assert said == f"unmodified model\n{own}\n\ndrop(5)\n{text}\n\n0-11 11\n{other}\n\n"


def test_info_and_verify_say_what_they_found():
    said = run("info", "bookshelf-neox")
    for shown in ("gpt_neox", "parallel", "LayerNorm", "6,911,616"):
        assert shown in said
    assert run("verify", "bookshelf-neox").count("passed") == 4

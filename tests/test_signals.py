"""Signals, pipes, full disks and small encodings: a command ends as it says it does, and loses nothing."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from depthscope.cli import boundary
from depthscope.cli.signals import Stopped, ending_on_signals, status_of

COMMAND = (sys.executable, "-c", "from depthscope.cli import main; main()")
ENVIRONMENT = os.environ | {"COLUMNS": "200", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
STUDY = ("sweep", "--tokens", "16000", "--window", "100", "--edits", "drop", "--out", "run")
SHORT = ("sweep", "--tokens", "40", "--window", "20", "--edits", "drop", "--out", "run")


@pytest.fixture(autouse=True)
def as_in_a_terminal():
    """nohup, and shells in the background, ignore signals, and children inherit that."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def begun(folder: Path, *arguments: str, **how) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        **{"env": ENVIRONMENT, **how},
    )


def wait_for(condition, process: subprocess.Popen[str], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)


def handles_signals(process: subprocess.Popen[str]) -> bool:
    """Whether the process has handlers for SIGTERM, which it sets with its first imports."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    caught = int(next(line for line in status.splitlines() if line.startswith("SigCgt")).split()[1], 16)
    return bool(caught >> (signal.SIGTERM - 1) & 1)


@pytest.mark.fault("SIGTERM, SIGHUP or SIGINT during a study", "it says how to resume; exit 143, 129 or 130")
def test_a_study_that_is_stopped(tmp_path, tries):
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)[: tries(1, of=3)]:
        folder = tmp_path / number.name
        folder.mkdir()
        process = begun(folder, *STUDY)
        wait_for(lambda folder=folder: (folder / "run" / "run.json").exists(), process)
        process.send_signal(number)
        said, complained = process.communicate(timeout=600)
        assert process.returncode == 128 + number, complained
        assert "stopped; the same command resumes it (run)" in complained
        assert "Traceback" not in said + complained
        assert not list(folder.rglob("*.unfinished"))


@pytest.mark.fault("SIGINT, SIGTERM or SIGHUP at any moment of start-up", "no traceback, exit 130, 143 or 129")
def test_stopped_while_starting(tmp_path, tries):
    moments = random.Random(0)
    for turn in range(tries(2, of=40)):
        number = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)[turn % 3]
        process = begun(tmp_path, "info")
        wait_for(lambda process=process: handles_signals(process), process)
        time.sleep(moments.uniform(0, 2))
        process.send_signal(number)
        said, complained = process.communicate(timeout=600)
        assert process.returncode in (0, 128 + number), complained  # 0: it was done before
        assert "Traceback" not in said + complained


def test_a_signal_in_a_finaliser_arrives_after_it(capfd):
    class Finalised:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)
            signal.getsignal(signal.SIGTERM)  # the handler runs between two instructions of this function

    with ending_on_signals():
        Finalised()
        with pytest.raises(Stopped, match="SIGTERM"):
            time.sleep(10)
    assert "Traceback" not in capfd.readouterr().err


def test_a_second_signal_ends_at_once():
    with ending_on_signals():
        with pytest.raises(Stopped) as stopped:
            signal.raise_signal(signal.SIGTERM)
        assert status_of(stopped.value) == 143
        assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert status_of(KeyboardInterrupt()) == 130


def test_a_signal_ends_the_command_whatever_error_was_made_of_it(monkeypatch, capsys):
    class Named:
        def __set_name__(self, owner, name):
            signal.raise_signal(signal.SIGTERM)

    def make_class(arguments):
        type("Owner", (), {"name": Named()})

    def fail(arguments):
        raise RuntimeError("by itself")

    monkeypatch.setattr(boundary, "_command", make_class)
    with ending_on_signals():
        assert boundary.run([]) == 143
    monkeypatch.setattr(boundary, "_command", fail)
    assert boundary.run([]) == boundary.BUG
    assert capsys.readouterr().err.count("unexpected error") == 1


def test_an_ignored_signal_stays_ignored():
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_on_signals():
            signal.raise_signal(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.fault("standard output is a pipe that nobody reads", "the study goes on, exit 0, nothing on stderr")
def test_output_that_nobody_reads(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*COMMAND, *SHORT], stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=ENVIRONMENT, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")
    assert '"status": "complete"' in (tmp_path / "run" / "run.json").read_text()
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.fault("standard output is /dev/full", "one message, exit 2")
def test_output_that_cannot_be_written(tmp_path):
    for arguments in (("--help",), ("--version",)):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [*COMMAND, *arguments],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                cwd=tmp_path,
                env=ENVIRONMENT,
                check=False,
            )
        assert (done.returncode, done.stderr) == (
            2,
            "error: standard output cannot be written: No space left on device\n",
        )


# Without a character beyond ASCII: Python reads its own command line in the terminal's encoding.
SUMMARY = """
from depthscope.cli.streams import guarded_output
from depthscope.cli.console import console
from depthscope.cli.summary import print_summary
from depthscope.progress import progress_bar
from depthscope.run.references import reference_runs

with guarded_output():
    print_summary(reference_runs("bookshelf-gpt2")[0])
    with progress_bar() as tell:
        tell("reading", 1, 2)
    console.print("\\u7b2c\\u4e09 \\xb1 \\u2265 \\u2502 \\u2713 \\udcff")
"""


@pytest.mark.fault("a terminal that shows ASCII or Latin-1 only", "characters that it lacks are replaced")
@pytest.mark.parametrize(
    ("setting", "last"),
    [
        ({"PYTHONIOENCODING": "ascii"}, r"?? +- >= | + \xff"),
        ({"PYTHONIOENCODING": "latin-1"}, r"?? ± >= | + \xff"),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, r"?? +- >= | + \xff"),
        ({"PYTHONIOENCODING": "utf-8"}, r"第三 ± ≥ │ ✓ \xff"),
    ],
    ids=["ascii", "latin-1", "C", "utf-8"],
)
def test_small_encodings(setting, last):
    done = subprocess.run([sys.executable, "-c", SUMMARY], capture_output=True, check=False, env=ENVIRONMENT | setting)
    assert done.returncode == 0, done.stderr.decode()
    encoding = setting.get("PYTHONIOENCODING", "ascii")
    assert done.stdout.decode(encoding).splitlines()[-1] == last
    assert b"Traceback" not in done.stderr

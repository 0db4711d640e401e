"""Studies on a Ray cluster: the same bytes as in one process, whatever dies; errors that end a study, and say why."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from threadpoolctl import threadpool_limits

import depthscope as ds
from depthscope.data.documents import READING
from depthscope.errors import DepthscopeError, ModelError, NumericError, RunError
from depthscope.models.load import load
from depthscope.run.cluster import Cluster, cluster_of
from depthscope.run.units import Done

pytest.importorskip("cloudpickle", reason="the extra cluster is not installed")
ray = pytest.importorskip("ray", reason="the extra cluster is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore:no replica has started"),  # on a machine that is busy
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.xdist_group("ray"),
]

from ray.cluster_utils import Cluster as Machines  # noqa: E402

from depthscope.run.ray_runner import MOST_TRIES, RayRunner  # noqa: E402

HOW = {"window": 32, "unit_tokens": 32, "experiments": ["sweep", "norms", "neurons"], "progress": False}
"""A study with units of the shared pass, and of an experiment with own units."""


SOON_MISSED = {"health_check_period_ms": 1000, "health_check_timeout_ms": 5000, "health_check_failure_threshold": 3}
"""A machine that is gone is noticed after seconds, not after half a minute."""


@pytest.fixture(scope="module")
def machines():
    """Two machines with a core each, simulated on this one; the second may be lost and come back."""
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": SOON_MISSED}
    here = Machines(initialize_head=True, head_node_args=head)
    here.add_node(num_cpus=1)
    yield here
    ray.shutdown()
    here.shutdown()


def replicas(machines: Machines) -> list[int]:
    """Processes of replicas, all of them children of these machines' raylets."""
    raylets = {one.process.pid for node in machines.list_all_nodes() for one in node.all_processes.get("raylet", [])}
    found = []
    for entry in Path("/proc").iterdir():
        try:
            status, line = (entry / "status").read_text(), (entry / "cmdline").read_bytes()
        except OSError:
            continue
        parent = next((int(row.split()[1]) for row in status.splitlines() if row.startswith("PPid:")), 0)
        if parent in raylets and line.startswith(b"ray::_Replica"):
            found.append(int(entry.name))
    return found


def written(run: Path) -> dict[str, bytes]:
    """The content of all shards, tables and stages."""
    return {file.relative_to(run).as_posix(): file.read_bytes() for file in run.rglob("*.parquet")}


class Chaos:
    """A study's progress, which ends a replica or a machine after random units."""

    def __init__(self, machines: Machines, kills: int, units: int, nodes: int) -> None:
        self.machines, moments = machines, random.Random(0)
        after = sorted(moments.sample(range(1, units), kills))
        self.lost = set(moments.sample(after, nodes))
        self.after, self.done, self.killed = after, 0, 0

    def __call__(self, what: str, done: int, units: int) -> None:
        if what == READING:  # no replica has been started
            return
        self.done += 1
        if self.after and self.done >= self.after[0]:
            self._kill(self.after.pop(0) in self.lost)

    def _kill(self, machine: bool) -> None:
        if machine:
            self.machines.remove_node(self.machines.worker_nodes.copy().pop(), allow_graceful=False)
            self.machines.add_node(num_cpus=1)
        else:
            while not (there := replicas(self.machines)):
                time.sleep(0.05)
            os.kill(random.choice(there), signal.SIGKILL)
        self.killed += 1


@pytest.mark.fault(
    "replicas of a study on a Ray cluster are ended by SIGKILL at random moments, and a machine of it is lost",
    "units are computed elsewhere; shards and tables are the same bytes as of a study in one process",
)
def test_what_dies_loses_nothing(machines, tmp_path, tries):
    kills = tries(2, of=20)
    text = ds.corpus("bookshelf", tokens=32 * (4 + 2 * kills))
    model = load("bookshelf-gpt2")
    with threadpool_limits(1):
        whole = ds.study(model, text, out=tmp_path / "local", **HOW)

        def stop(what: str, done: int, units: int) -> None:
            if what == "reading the text" and done == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ds.study(model, text, out=tmp_path / "ray", **HOW | {"progress": stop})
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "ray" / "shards").rglob("*.parquet")}
    units = whole.run.manifest.units["sweep"] + whole.run.manifest.units["neurons"]
    chaos = Chaos(machines, kills, units - 2, 1)
    share = {"engine": "ray", "address": machines.address, "replicas": 2, "cpus_per_replica": 1}
    resumed = ds.study(model, text, out=tmp_path / "ray", **HOW | {"progress": chaos} | share)
    assert chaos.killed == kills
    assert before
    assert all(file.stat().st_mtime_ns == at for file, at in before.items()), "finished units were computed again"
    assert written(tmp_path / "ray") == written(tmp_path / "local")
    assert resumed.run.complete
    assert resumed.run.manifest.kernels["engine"].startswith("ray: replicas 2, each with 1 threads")


def test_results_at_a_url_are_those_in_a_directory(machines, tmp_path, monkeypatch):
    monkeypatch.setenv("DEPTHSCOPE_RUNS", str(tmp_path / "copies"))
    how = HOW | {"tokens": 64, "experiments": ["sweep"], "edits": ["drop"]}
    with threadpool_limits(1):
        ds.study("bookshelf-gpt2", out=tmp_path / "local", **how)
    share = {"engine": "ray", "address": machines.address, "replicas": 1, "cpus_per_replica": 1}
    ds.study("bookshelf-gpt2", out=f"file://{tmp_path}/url", **how | share)
    assert written(tmp_path / "url") == written(tmp_path / "local")


def build() -> Any:
    """What ends its process for one unit, raises for another, and gives no shard for the others."""

    class Exits:
        processor = "none"

        def perform(self, task: str) -> Done:
            if task == "exit":
                os._exit(1)
            if task == "raise":
                raise NumericError("NaN at block 3")
            return Done({}, halved=1)

    return Exits  # a class within a function is sent as it is: replicas cannot import tests


@pytest.fixture
def runner(machines):
    with RayRunner(
        Cluster(address=machines.address, replicas=1), lambda cpus: build(), cuda=False, threads=1, units=3
    ) as made:
        yield made


@pytest.mark.fault("a unit ends its process each time", "one error after a bounded number of tries")
def test_a_unit_that_ends_its_process_each_time(runner):
    runner.submit(0, "nothing")
    runner.submit(1, "exit")
    assert runner.next() == (0, {})
    assert runner.halved == 1
    with pytest.raises(RunError, match=rf"work unit 1 was given to {MOST_TRIES} replicas, and each of their processes"):
        runner.next()


def marked(by: str) -> list[str]:
    """Command lines of the processes whose environment has this."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            environment, line = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if by.encode() in environment and line:
            found.append(line.replace(b"\0", b" ").decode(errors="replace"))
    return found


@pytest.mark.fault(
    "a command with a Ray of its own is ended by Ctrl+C or by a scheduler",
    "the exit status is 130 or 143, no process is left, and the finished units are kept",
)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_leaves_no_process(tmp_path, number):
    out, mark = tmp_path / "run", f"DEPTHSCOPE_TEST={tmp_path.name}"
    code = "from depthscope.cli import main; main()"
    options = [
        "--edits",
        "drop",
        "--window",
        "32",
        "--tokens",
        "20000",
        "--engine",
        "ray",
        "--replicas",
        "1",
        "--out",
        str(out),
    ]
    name, value = mark.split("=")
    outside = {
        key: one for key, one in os.environ.items() if not key.startswith("RAY_")
    }  # what this process's Ray has set
    command = subprocess.Popen(
        [sys.executable, "-c", code, "sweep", *options],
        env=outside | {name: value, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # Where the tests run in the background Ctrl+C is ignored, by what they start too.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        until = time.monotonic() + 240
        while len(list(out.glob("shards/**/*.parquet"))) < 2 and command.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        command.send_signal(number)
        _, errors = command.communicate(timeout=60)
    finally:
        command.kill()
    assert command.returncode == 128 + number, errors.decode()
    assert b"Traceback" not in errors
    until = time.monotonic() + 30
    while (left := marked(mark)) and time.monotonic() < until:
        time.sleep(0.2)
    assert not left
    assert len(list(out.glob("shards/**/*.parquet"))) >= 2


def test_what_a_replica_raises_is_raised_here(runner):
    runner.submit(0, "raise")
    with pytest.raises(NumericError, match=r"^NaN at block 3$"):
        runner.next()


def test_a_replica_of_another_model_is_refused(machines, tmp_path):
    model = load("bookshelf-gpt2")
    model.hf.get_input_embeddings().weight.data[0] += 1
    text = ds.corpus("bookshelf", tokens=64)
    share = {"engine": "ray", "address": machines.address, "replicas": 1}
    with pytest.raises(RunError, match=r"would give other numbers:\n  weights: [0-9a-f]{64} in the study"):
        ds.study(model, text, out=tmp_path, **HOW | {"experiments": ["norms"]} | share)


def test_what_cannot_be_placed_is_refused(tmp_path):
    named = load("bookshelf-gpt2")
    model = load(named.hf, tokenizer=named.tokenizer)
    with pytest.raises(ModelError, match="was handed in as an object"):
        ds.study(model, ds.corpus(tokens=64), out=tmp_path, engine="ray", **HOW | {"experiments": ["norms"]})
    for given, says in (
        ({"engine": "slurm"}, "unknown engine 'slurm': expected one of local, ray"),
        ({"engine": "local", "replicas": 2}, "--replicas: expected only with --engine ray"),
        ({"engine": "ray", "replicas": 0}, "replicas is 0: expected a whole number from 1"),
        ({"engine": "ray", "gpus_per_replica": 1.5}, "expected a whole number, or a share below 1"),
        ({"engine": "ray", "address": " "}, "expected auto or HOST:PORT"),
    ):
        with pytest.raises(DepthscopeError, match=says):
            cluster_of(**given)

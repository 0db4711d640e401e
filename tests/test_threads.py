"""stages.json is the same bytes however many threads there are."""

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from test_sweep import save
from threadpoolctl import threadpool_info, threadpool_limits

import depthscope as ds
from depthscope.models.load import load
from depthscope.statistics.smooth_steps import SmoothSteps
from depthscope.studies import run_study
from depthscope.studies.threads import same_sums

LAYERS, SIGNALS = 30, 2000
"""A size at which OpenBLAS's products differ by 1e-14 between one thread and two."""
CALL = "import test_threads; print(test_threads.found())"


def found() -> str:
    """The hash of what the finder computes of random signals, in this process."""
    signals = np.random.default_rng(0).standard_normal((LAYERS, SIGNALS))
    with same_sums():
        evidence = SmoothSteps(LAYERS, 2).evidence(signals)
    return hashlib.sha256(evidence.log_bayes.tobytes() + evidence.rises.tobytes()).hexdigest()


@pytest.mark.fault("OMP_NUM_THREADS is 1, or not set", "what stages are found from is the same, bit for bit")
def test_the_environment_changes_no_bit():
    variables = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    paths = os.pathsep.join([os.path.dirname(__file__), *sys.path])  # noqa: PTH120
    here = found()
    for threads in ({"OMP_NUM_THREADS": "1"}, {}):
        about = {"capture_output": True, "text": True, "check": True}
        done = subprocess.run([sys.executable, "-c", CALL], env=variables | threads | {"PYTHONPATH": paths}, **about)
        assert done.stdout.strip() == here, threads


@pytest.mark.fault("BLAS has one thread, or two", "it uses one where tables and stages are made")
def test_a_study_finds_stages_with_one_thread(few, tmp_path, monkeypatch):
    there = []

    def noted(measured):
        there.append([pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"])
        return whole(measured)

    whole = run_study.stages.find_stages
    monkeypatch.setattr(run_study.stages, "find_stages", noted)
    model = load(save("gpt2", tmp_path / "model"))
    for threads in (1, 2):
        with threadpool_limits(threads, user_api="blas"):
            out = tmp_path / str(threads)
            ds.study(model, str(few), out=out, window=16, experiments=["norms", "stages"], progress=False)
    assert there[0]
    assert all(set(pools) == {1} for pools in there)
    assert (tmp_path / "1" / "stages.json").read_bytes() == (tmp_path / "2" / "stages.json").read_bytes()

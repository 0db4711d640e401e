"""Too little memory: halves where that helps, else one error that says how much is needed; what is finished stays."""

import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from families import tiny_model
from test_readings import TEXT

import depthscope as ds
from depthscope.errors import MemoryShortError, ModelError
from depthscope.experiments.geometry import Geometry
from depthscope.experiments.lens import LensReading
from depthscope.experiments.norms import Norms
from depthscope.experiments.sweep import Sweep
from depthscope.models import memory
from depthscope.models.load import load
from depthscope.models.memory import memory_errors, require_memory, short_of_memory
from depthscope.studies import read_windows as reading

MAIN = "from depthscope.cli import main; main()"
FAILED = [
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 402653184 bytes. Error code 12 (Cannot allocate memory)"
    ),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("could not create a memory object"),
    RuntimeError("unable to mmap 6174336 bytes from file <model.safetensors>: Cannot allocate memory (12)"),
    RuntimeError("can't start new thread"),
    OSError(12, "Cannot allocate memory"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    MemoryError(),
]
OTHERS = [
    RuntimeError("shapes do not match"),
    OSError(28, "No space left on device"),
    ValueError("can't allocate memory"),
]


def test_failed_allocations_are_known():
    assert all(short_of_memory(error) for error in FAILED)
    assert not any(short_of_memory(error) for error in OTHERS)


@pytest.mark.fault("an allocation fails, as each library reports it", "one error with what was needed and what to do")
@pytest.mark.parametrize("error", FAILED, ids=lambda error: type(error).__name__)
def test_failed_allocations_are_one_error(error):
    with (
        pytest.raises(MemoryShortError, match=r"not enough memory to measure.*Use a shorter --window"),
        memory_errors("measure", "Use a shorter --window"),
    ):
        raise error


@pytest.mark.parametrize("error", [*OTHERS, ModelError("another of ours")], ids=lambda error: type(error).__name__)
def test_other_errors_stay(error):
    with pytest.raises(type(error)), memory_errors("measure", ""):
        raise error


def test_what_surely_does_not_fit_is_refused_before_it_is_begun(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 2 * 2**30)
    require_memory(2 * 2**30, "this", "")
    with pytest.raises(MemoryShortError, match=r"this takes at least 3.0 GiB, and 2.0 GiB are available. Do less"):
        require_memory(3 * 2**30, "this", "Do less")
    monkeypatch.setattr(memory, "available_memory", lambda: None)
    require_memory(2**60, "this", "")


@pytest.mark.fault("a unit does not fit into memory", "read in halves, with the same tables up to rounding")
@pytest.mark.parametrize("per_token", [False, True])
def test_what_does_not_fit_is_read_in_halves(tiny_of, monkeypatch, per_token):
    model = tiny_of("llama")
    readings = [
        Sweep(model, TEXT.length, ["swap", "drop"], per_token),
        LensReading(model),
        Norms(model),
        Geometry(model, TEXT),
    ]
    whole = reading.read_windows(model, readings, TEXT)
    own, sizes = reading.Baseline, []

    def with_little_memory(model, ids, *rest, **more):
        sizes.append(len(ids))
        if len(ids) > 2:
            raise FAILED[0]
        return own(model, ids, *rest, **more)

    monkeypatch.setattr(reading, "Baseline", with_little_memory)
    halves = reading.read_windows(model, readings, TEXT)
    assert sizes == [6, 3, 1, 2, 3, 1, 2]
    for name, shard in whole.items():
        assert halves[name].schema == shard.schema
        numbers = [column for column, kind in shard.schema.items() if kind.is_float()]
        assert halves[name].drop(numbers).equals(shard.drop(numbers)), name
        for column in numbers:
            np.testing.assert_allclose(halves[name][column].to_numpy(), shard[column].to_numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.fault("not even one window fits into memory", "an error; nothing else is tried")
def test_one_window_that_does_not_fit(tiny_of, monkeypatch):
    model = tiny_of("llama")

    def without_memory(*_arguments, **_more):
        raise FAILED[0]

    monkeypatch.setattr(reading, "Baseline", without_memory)
    with pytest.raises(MemoryShortError), memory_errors("measure", ""):
        reading.read_windows(model, [Norms(model)], TEXT)
    monkeypatch.setattr(memory, "available_memory", lambda: 1000)
    with pytest.raises(MemoryShortError, match=r"one window of 64 tokens through 4 blocks takes at least"):
        reading.require_memory_for(model, 64, "")


@pytest.mark.fault(
    "a checkpoint is larger than the memory there is", "refused from its header, before anything is loaded"
)
def test_weights_that_do_not_fit_are_refused(tmp_path, monkeypatch):
    tiny_model("llama").save_pretrained(tmp_path)
    monkeypatch.setattr("depthscope.models.offload.streaming.available_memory", lambda: 1000)
    with pytest.raises(MemoryShortError, match=r"in float32 takes at least .* Stream it \(--stream yes\)"):
        load(tmp_path, stream="no")


LIMITS = [1.4, 2.1, 3.2, 1.0, 1.2, 1.6, 1.8, 1.9, 2.0, 2.2, 2.8, 3.0]
"""GiB of address space."""
STUDY = ["--tokens", "256", "--window", "64", "--experiments", "lens,norms"]


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is enforced on Linux")
@pytest.mark.fault(
    "a study with a limited address space (ulimit -v)",
    "done, or one error with the sizes, or an allocation in Rust ends the process; no unit is lost",
)
def test_a_limited_address_space(tmp_path, few, gpt2, tries):
    import resource

    out, ends = tmp_path / "run", []
    for limit in LIMITS[: tries(2, of=len(LIMITS))]:
        size = int(limit * 2**30)
        done = subprocess.run(
            [sys.executable, "-c", MAIN, "study", "bookshelf-gpt2", "--data", str(few), *STUDY, "--out", str(out)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            preexec_fn=lambda size=size: resource.setrlimit(resource.RLIMIT_AS, (size, size)),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode == -signal.SIGABRT:  # which polars and tokenizers do: docs/guides/big-models.md
            assert re.search(r"memory allocation of \d+ bytes failed", done.stderr)
            continue
        assert done.returncode in (0, 2), done.stderr
        assert "Traceback" not in done.stderr
        if done.returncode == 2:
            assert done.stderr.count("error:") == 1
            assert "not enough memory" in done.stderr
            assert "available" in done.stderr
        ends.append(done.returncode)
    assert 2 in ends, "the least of these limits is too little for torch alone"
    again, whole = (
        ds.study(gpt2, few, tokens=256, window=64, experiments="lens,norms", out=place, progress=False)
        for place in (out, tmp_path / "whole")
    )
    for name in ("lens", "norms"):
        assert again.table(name).equals(whole.table(name))

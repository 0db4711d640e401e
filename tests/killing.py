"""Killing a study at any moment, as a scheduler or a power cut would."""

import multiprocessing
import random
import signal
import time
from pathlib import Path

from depthscope.studies.registry import StudySettings

FRESH = multiprocessing.get_context("forkserver")
"""Children come from a process that has imported what they need and has done nothing. A fork of the tests' own process would
wait for ever when it first writes a table: it does not get the threads that Polars has started there.
"""
FRESH.set_forkserver_preload(["torch", "polars", "transformers", "depthscope.studies.study", "depthscope.models.load"])


def study(model: Path, text: Path, tokens: int | None, out: Path, settings: StudySettings) -> None:
    """Do, or go on with, a study of a saved model."""
    import torch

    from depthscope.data.corpus import Corpus
    from depthscope.models.load import load
    from depthscope.studies.study import run_study

    torch.set_num_threads(1)
    run_study(load(model), Corpus(source=str(text), tokens=tokens), out, settings)


def child(*arguments: object) -> multiprocessing.Process:
    process = FRESH.Process(target=study, args=arguments)
    process.start()
    return process


def whole_and_killed(
    folder: Path, *about: object, settings: StudySettings, times: int, share: float, seed: int
) -> tuple[Path, Path, list[int]]:
    """The directories of a study done at once and of one that SIGKILL ended so many times before it was done.

    It is ended after up to `share` of the time that all of it takes. Also how many shards there were after each kill.
    """
    whole, killed = folder / "whole", folder / "killed"
    FRESH.Process(target=time.time).start()  # the first child waits for the imports
    finish(*about, folder / "first", settings)
    start = time.perf_counter()
    finish(*about, whole, settings)
    latest = share * (time.perf_counter() - start)
    moments, shards = random.Random(seed), []
    for _ in range(times):
        process = child(*about, killed, settings)
        time.sleep(moments.uniform(0.02, latest))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the study went on being killed until the end"
        shards.append(len(list(killed.glob("shards/*/*.parquet"))))
    finish(*about, killed, settings)
    assert not list(killed.rglob("*.unfinished"))
    return whole, killed, shards


def finish(*arguments: object) -> None:
    process = child(*arguments)
    process.join()
    assert process.exitcode == 0

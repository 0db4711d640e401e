"""Killing studies at many moments, as a scheduler or a power cut would."""

import multiprocessing
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path

from depthscope.studies.settings import StudySettings

FRESH = multiprocessing.get_context("forkserver")
"""Children come from a process that has imported what they need and has done nothing. A fork of the tests' own process would
wait for ever when it first writes a table: it does not get the threads that Polars has started there.
"""
FRESH.set_forkserver_preload(
    ["torch", "polars", "transformers", "depthscope.studies.run_study", "depthscope.models.load"]
)


def study(model: Path, text: Path, tokens: int | None, out: Path, settings: StudySettings) -> None:
    """Do, or go on with, a study of a saved model."""
    import torch

    from depthscope.data.corpus import Corpus
    from depthscope.models.load import load
    from depthscope.studies.run_study import run_study

    torch.set_num_threads(1)
    run_study(load(model), Corpus(source=str(text), tokens=tokens), out, settings)


def child(*arguments: object) -> multiprocessing.Process:
    process = FRESH.Process(target=study, args=arguments)
    process.start()
    return process


KILLED = "a study is ended by SIGKILL at random moments, again and again, and run again"
SAME_BYTES = "nothing that was finished is lost or measured again, and tables and stages are the same bytes"


def whole_and_killed(
    folder: Path, *about: object, settings: StudySettings, after: Sequence[int], seed: int, kills: int
) -> tuple[Path, list[Path]]:
    """The directories of a study done at once, and of those that SIGKILL ended again and again before they were done.

    `after`: how many shards each child has written before, at some moment in the time a shard takes, it is ended. That counts
    shards and not seconds, of which a child needs many or few to begin. There are as many studies as it takes for so many
    kills; those after the first take `after` in another order.
    """
    whole = folder / "whole"
    start = time.perf_counter()
    finish(*about, whole, settings)
    a_shard = (time.perf_counter() - start) / shards(whole)
    assert sum(after) < shards(whole), "the study would be done before it is last killed"
    moments = random.Random(seed)
    runs = [folder / f"killed-{number}" for number in range(max(1, kills // len(after)))]
    for number, killed in enumerate(runs):
        order = moments.sample(after, len(after)) if number else after
        _killed(killed, whole, order, a_shard, moments, *about, settings=settings)
    return whole, runs


def _killed(
    killed: Path,
    whole: Path,
    after: Sequence[int],
    a_shard: float,
    moments: random.Random,
    *about: object,
    settings: StudySettings,
) -> None:
    for more in after:
        enough, process = shards(killed) + more, child(*about, killed, settings)
        while shards(killed) < enough and process.is_alive():
            time.sleep(0.002)
        time.sleep(moments.uniform(0, a_shard))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it ended by itself"
    assert sum(after) <= shards(killed) < shards(whole)
    finish(*about, killed, settings)
    assert not list(killed.rglob("*.unfinished"))


def shards(run: Path) -> int:
    return len(list(run.glob("shards/*/*.parquet")))


def finish(*arguments: object) -> None:
    process = child(*arguments)
    process.join()
    assert process.exitcode == 0

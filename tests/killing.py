"""Killing work at any moment, as a scheduler or a power cut would."""

import os
import random
import signal
import time
from collections.abc import Callable


def seconds(work: Callable[[], object]) -> float:
    """What it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def killed(work: Callable[[], object], times: int, latest: float, seed: int, earliest: float = 0.05) -> int:
    """Start `work` so many times, each in a process that SIGKILL ends between `earliest` and `latest` seconds on.

    How often it was still at work.
    """
    moments = random.Random(seed)
    interrupted = 0
    for _ in range(times):
        child = os.fork()
        if child == 0:
            try:
                work()
            finally:
                os._exit(0)
        time.sleep(moments.uniform(earliest, latest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        interrupted += os.WIFSIGNALED(status)
    return interrupted

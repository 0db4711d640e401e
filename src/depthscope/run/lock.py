"""A directory has one writer at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from depthscope.errors import RunError
from depthscope.run.files import make_directory, why
from depthscope.run.layout import LOCK


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the directory, created if needed, against a second writer. The system releases the lock if the process dies.

    Raises RunError where another process holds it, or where it cannot be written.
    """
    try:
        make_directory(path)
        lock = filelock.FileLock(path / LOCK, timeout=0)
        lock.acquire()
    except filelock.Timeout as error:
        raise RunError(f"{path} is being written by another process: wait for it, or give another --out") from error
    except OSError as error:
        raise RunError(f"{path} cannot be written: {why(error)}. Give another --out") from error
    try:
        yield
    finally:
        lock.release()

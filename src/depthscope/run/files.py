"""Writing files so that each is complete or absent, and on disk before it is relied on. Imports no torch.

A file is written under a temporary name, flushed to disk and renamed, and then its directory is flushed too: after a power cut
a file that was written is there with its content, or the one it replaced is. Not guaranteed on file systems whose rename is not
atomic, or on disks that acknowledge what they have not stored.
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from depthscope.errors import RunError

UNFINISHED = ".unfinished"
"""Ending of a temporary name: that of the file to be written, with this added."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
NOT_FLUSHED = (errno.EINVAL, errno.ENOTSUP)
"""What file systems answer that cannot flush directories."""

_watched: dict[Path, Callable[[Path], None]] = {}


@contextmanager
def watching_files(directory: Path, on_written: Callable[[Path], None]) -> Iterator[None]:
    """While open, `on_written` is called with every file in the directory that this process has written. What it raises is
    raised where the file was written."""
    _watched[directory] = on_written
    try:
        yield
    finally:
        del _watched[directory]


def unfinished(path: Path) -> Path:
    """The temporary name of a file."""
    return path.with_name(path.name + UNFINISHED)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file that appears at `path` complete, when the context ends without an exception, or not at all.

    Raises RunError if the system does not let it be written, with the reason. Libraries should write to memory first: they
    have exceptions of their own for a full disk.
    """
    temporary = unfinished(path)
    try:
        make_directory(path.parent)
        temporary.unlink(missing_ok=True)  # of a process that was killed; a link would be followed
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        flush_directory(path.parent)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {why(error)}") from error
    finally:
        with suppress(OSError):  # it may be gone, or never have existed
            temporary.unlink()
    for directory, on_written in list(_watched.items()):
        if path.is_relative_to(directory):
            on_written(path)


def write_file(path: Path, content: bytes) -> None:
    """Write a whole file. Raises RunError as `atomic_file` does."""
    with atomic_file(path) as stream:
        stream.write(content)


def make_directory(path: Path) -> None:
    """Create a directory and its parents where they are missing, on disk when this returns. Raises OSError."""
    missing = [one for one in (path, *path.parents) if not one.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for made in missing:
        flush_directory(made.parent)


def flush_directory(path: Path) -> None:
    """Have the names in a directory on disk when this returns, where the system can do that. Raises OSError."""
    if os.name == "nt":  # which has no handles of directories to flush
        return
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # a directory that may be written and not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NOT_FLUSHED:
            raise
    finally:
        os.close(descriptor)


def why(error: OSError) -> str:
    """The reason of an error in words, with what to do about a full disk."""
    reason = error.strerror or str(error)
    if error.errno in NO_ROOM:
        return f"{reason}. Free some space and run the same command again: what was finished before is kept"
    return reason

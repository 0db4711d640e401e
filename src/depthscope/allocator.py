"""What glibc's allocator does with freed memory: kept for the next tensors by a command that measures, and by a server until it
has answered.

By default glibc maps large blocks one by one and unmaps them when they are freed, so that the system fills the pages of each
activation with zeros again. Nothing here has an effect with another C library.
"""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
SET_BY_USER = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")
"""Environment variables through which a user sets the same limits."""
KEPT = 1 << 30
"""Bytes of one block, and of free memory at the end of the heap, up to which `keep_freed` keeps them."""
ARENAS = 2
"""glibc gives every thread an arena of its own, up to 8 per core, and what is free in one is of no use to another."""
APART = 1 << 20
"""Bytes from which `keep_compact` maps a block by itself. By default glibc raises this to 32 MiB as it sees larger blocks
freed; tensors then leave holes in the heap."""
TRIMMED = 1 << 17
"""Bytes of free memory at the end of the heap that glibc keeps by default."""


def keep_freed() -> None:
    """Let tensors reuse the memory of those before them. Does nothing where the user has set the allocator's limits."""
    if not any(name in os.environ for name in SET_BY_USER):
        _limit(KEPT, KEPT)


def keep_compact() -> None:
    """Bound the heap's fragmentation from here on. To be called before threads are started."""
    if (libc := _glibc()) is not None:
        libc.mallopt(M_ARENA_MAX, ARENAS)
        _limit(APART, TRIMMED)


@contextmanager
def kept_meanwhile() -> Iterator[None]:
    """Let tensors reuse the memory of those before them, then give it back and keep compact as `keep_compact` does.

    For a server, around what computes, in one thread at a time.
    """
    _limit(KEPT, KEPT)
    try:
        yield
    finally:
        _limit(APART, TRIMMED)
        give_back()


def _limit(apart: int, trimmed: int) -> None:
    if (libc := _glibc()) is not None:
        libc.mallopt(M_MMAP_THRESHOLD, apart)
        libc.mallopt(M_TRIM_THRESHOLD, trimmed)


def give_back() -> None:
    """Give free memory back to the system. Takes milliseconds, and up to some tenths of a second in a large heap."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> Any:
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # TypeError: on Windows
        return None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None

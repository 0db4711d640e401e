"""Memory of a long-running server under glibc: few arenas, large blocks apart, and what is free given back to the system."""

import ctypes
from functools import cache
from typing import Any

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
ARENAS = 2
"""glibc gives every thread an arena of its own, up to 8 per core, and what is free in one is of no use to another."""
APART = 1 << 20
"""Bytes from which a block is mapped by itself and given back when it is freed. By default glibc raises this to 32 MiB as it
sees larger blocks freed; tensors then leave holes in the heap."""


def keep_compact() -> None:
    """Bound the heap's fragmentation from here on. To be called before threads are started; does nothing without glibc."""
    if (libc := _glibc()) is not None:
        libc.mallopt(M_ARENA_MAX, ARENAS)
        libc.mallopt(M_MMAP_THRESHOLD, APART)


def give_back() -> None:
    """Give free memory back to the system. Takes up to some tenths of a second; does nothing without glibc."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


@cache
def _glibc() -> Any:
    try:
        libc = ctypes.CDLL(None)
    except (OSError, TypeError):  # TypeError: on Windows
        return None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None

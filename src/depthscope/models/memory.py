"""How much memory the process may still take, and what is said where that is too little.

Libraries report a failed allocation in many ways; `short_of_memory` knows them, and `memory_errors` makes one error of them.
What cannot be reported is an allocation that fails in Rust (polars, tokenizers): it ends the process. So work that needs them
is not begun unless HEADROOM is left of a limit on the process (`require_headroom`).
"""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from depthscope.allocator import give_back
from depthscope.errors import DepthscopeError, MemoryShortError

HEADROOM = 64 * 2**20
"""Bytes of memory that must be left before a work unit, and before tables are written."""
IMPORTING, LOADING, MEASURING, UNIT = 2**30, 192 * 2**20, 512 * 2**20, 128 * 2**20
"""Bytes of address space (ulimit -v) that must be left before a command imports torch, before a model is loaded, a study
begun, and a work unit. A study of the smallest model takes more (docs/guides/big-models.md): threads reserve much that they
do not use."""

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")


def available_memory() -> int | None:
    """Bytes: the minimum of what the machine has left and what the limits of the process leave; None where none is known.

    Sources are MemAvailable, RLIMIT_AS and RLIMIT_DATA, and memory.max of the process's cgroup (version 2) and of its parents.
    Pages of files, which the system can drop, do not count as used.
    """
    return min(_limits(), default=None)


NO_MEMORY = (
    "DefaultCPUAllocator",
    "can't allocate memory",
    "Cannot allocate memory",
    "not enough memory",
    "std::bad_alloc",
    "failed to map segment",
    "could not create a memory object",
    "can't start new thread",
)
"""What libraries say when an allocation fails: torch (its CPU allocator has no error class of its own), the system, C++, the
dynamic loader, oneDNN, and Python when there is no room for a thread's stack."""


def short_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory could not be allocated, on the host or on an accelerator."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError | ImportError | OSError) and any(said in str(error) for said in NO_MEMORY)


RESUMES = "the same command goes on where this one ended"


def available_address_space() -> int | None:
    """Bytes left of RLIMIT_AS (ulimit -v); None where there is no such limit."""
    with suppress(ImportError, OSError, KeyError, ValueError):
        import resource  # not on every system

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
        if most != resource.RLIM_INFINITY:
            return max(0, most - _numbers(PROC / "self/status")["VmSize"] * 1024)
    return None


def in_units(size: int) -> str:
    """A number of bytes for messages: `812 MiB`, `3.1 GiB`."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:,.0f} MiB"


def require_memory(needed: int, what: str, reduce: str, available: int | None = None) -> None:
    """Raise MemoryShortError where `what`, which takes at least `needed` bytes, can surely not fit.

    `available` is what the device has, by default the host's `available_memory`; `reduce` is what the user can do.
    """
    there = available_memory() if available is None else available
    if there is not None and needed > there:
        raise MemoryShortError(
            f"not enough memory: {what} takes at least {in_units(needed)}, and {in_units(there)} are available. {reduce}"
        )


def require_headroom(what: str, address_space: int = UNIT) -> None:
    """Raise MemoryShortError unless HEADROOM is available, and this much of an address space that is limited: a failed
    allocation in Rust could not be caught."""
    there, space = available_memory(), available_address_space()
    if (there is not None and there < HEADROOM) or (space is not None and space < address_space):
        give_back()  # what the allocator keeps for later tensors is available too
    if (left := available_address_space()) is not None:
        require_memory(address_space, f"{what} (address space)", f"Raise the limit (ulimit -v); {RESUMES}", left)
    require_memory(HEADROOM, what, f"Free memory, or raise the limit of the container; {RESUMES}")


@contextmanager
def memory_errors(what: str, reduce: str) -> Iterator[None]:
    """While open, and as a decorator, an allocation that fails is a MemoryShortError that says `what` needed it."""
    try:
        yield
    except DepthscopeError:
        raise
    except Exception as error:
        if not short_of_memory(error):
            raise
        there = available_memory()
        left = "" if there is None else f", with {in_units(there)} available"
        asked = next((line for line in str(error).splitlines() if "allocate" in line), type(error).__name__)
        raise MemoryShortError(f"not enough memory to {what}{left} ({asked.strip()[:200]}). {reduce}") from error


def _limits() -> Iterator[int]:
    with suppress(OSError, KeyError, ValueError):
        yield _numbers(PROC / "meminfo")["MemAvailable"] * 1024
    with suppress(ImportError, OSError, KeyError, ValueError):
        import resource  # not on every system

        used = _numbers(PROC / "self/status")
        for limit, name in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
            most = resource.getrlimit(limit)[0]
            if most != resource.RLIM_INFINITY:
                yield max(0, most - used[name] * 1024)
    if sys.platform == "linux":
        yield from _cgroups()


def _cgroups() -> Iterator[int]:
    own = ""
    with suppress(OSError, StopIteration):
        lines = (PROC / "self/cgroup").read_text(encoding="utf-8").splitlines()
        own = next(line for line in lines if line.startswith("0::")).removeprefix("0::/")
    # In a container the path may be that of the host, so that nothing is there; the root of what is mounted is a parent.
    for group in (CGROUPS / own, *(CGROUPS / own).parents):
        with suppress(OSError, ValueError, KeyError):
            most = int((group / "memory.max").read_text(encoding="ascii"))
            used = int((group / "memory.current").read_text(encoding="ascii"))
            yield max(0, most - used + _numbers(group / "memory.stat")["inactive_file"])


def _numbers(path: Path) -> dict[str, int]:
    """The first number after each name of a file with a name and a number in each line."""
    lines = (line.replace(":", " ").split() for line in path.read_text(encoding="utf-8").splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}

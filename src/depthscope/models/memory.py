"""How much memory the process may still take: what the machine has free, and what the process is limited to."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")


def available_memory() -> int | None:
    """Bytes: the minimum of what the machine has left and what the limits of the process leave; None where none is known.

    Sources are MemAvailable, RLIMIT_AS and RLIMIT_DATA, and memory.max of the process's cgroup (version 2) and of its parents.
    Pages of files, which the system can drop, do not count as used.
    """
    return min(_limits(), default=None)


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

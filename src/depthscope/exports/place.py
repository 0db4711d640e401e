"""Where an export goes: a new or empty directory, written under a temporary name next to it and renamed at the end.

Nothing that was there before is touched, and nothing is left behind when something fails; a process that is killed leaves a
directory whose name begins with that of the export and ends with `.unfinished`. Imports no torch.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from depthscope.errors import RunError
from depthscope.run.files import UNFINISHED, flush_directory, make_directory, why

MARGIN = 32 * 2**20
"""Bytes that are left free beyond what is written."""


def check_out(out: str | Path) -> Path:
    """The directory as a path. Raises RunError unless nothing is there, or an empty directory."""
    out = Path(out)
    try:
        if out.is_dir():
            names = sorted(entry.name for entry in out.iterdir())
            if names:
                raise RunError(
                    f"{out} holds other files ({', '.join(names[:3])}{' …' if len(names) > 3 else ''}): expected a new or "
                    "empty directory, so that nothing of yours is replaced"
                )
            return out.resolve()
        if out.exists() or out.is_symlink():
            raise RunError(
                f"{out} is a {'file' if out.exists() else 'link that leads nowhere'}: expected a new or empty directory"
            )
    except OSError as error:
        raise RunError(f"{out} cannot be used: {why(error)}") from error
    return out


def check_room(out: Path, needed: int) -> None:
    """Raise RunError unless the disk has room for so many bytes at `out`."""
    there = next((place for place in (out.absolute(), *out.absolute().parents) if place.is_dir()), Path("/"))
    try:
        free = shutil.disk_usage(there).free
    except OSError as error:
        raise RunError(f"{there} cannot be used: {why(error)}") from error
    if needed + MARGIN > free:
        raise RunError(
            f"the export takes {_shown(needed)}, and the disk at {there} has {_shown(free)} free: expected at least "
            f"{_shown(needed + MARGIN)}. Free some space, or give an --out on another disk"
        )


@contextmanager
def new_directory(out: Path) -> Iterator[Path]:
    """A directory to write into, which becomes `out` when the context ends without an exception, and is gone otherwise.

    Raises RunError where the system does not let it be made or written.
    """
    temporary = out.with_name(f"{out.name}-{secrets.token_hex(4)}{UNFINISHED}")
    made = False
    try:
        make_directory(out.parent)
        temporary.mkdir()
        made = True
        yield temporary
        for file in temporary.iterdir():
            _flush(file)
        flush_directory(temporary)
        check_out(out)
        if os.name == "nt" and out.is_dir():  # where an empty directory cannot be replaced
            out.rmdir()
        temporary.replace(out)
        flush_directory(out.parent)
    except OSError as error:
        raise RunError(f"{out} cannot be written: {why(error)}") from error
    finally:
        if made:
            shutil.rmtree(temporary, ignore_errors=True)


def _flush(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def _shown(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"

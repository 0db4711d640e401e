"""Pages on disk: a page ends with its seal, and only a page that is as depthscope wrote it is replaced.

Whoever edits a page, or keeps another file under its name, does not lose it.
"""

from pathlib import Path

from depthscope.errors import RunError
from depthscope.run.files import write_file
from depthscope.schema.seal import PAGE, Seal, SealError, read_seal, sealed
from depthscope.untrusted import read_bounded

MOST_BYTES = 1 << 30


def write_page_file(page: str, out: Path) -> Path:
    """Write a page to `out`, and return `out`. Raises RunError where `require_replaceable` does, or if it cannot be written."""
    require_replaceable(out)
    content = f"{page.rstrip()}\n<!-- {Seal(kind=PAGE).blank} -->\n"
    write_file(out, sealed(content.encode()))
    return out


def require_replaceable(out: Path) -> None:
    """Raise RunError if a file at `out` is not a page as depthscope wrote it."""
    if not out.exists() or out.is_dir():  # a directory cannot be replaced by a file: writing says so
        return
    try:
        seal = read_seal(read_bounded(out, RunError, MOST_BYTES))
        what = "is not a page that depthscope wrote" if seal is None or seal.kind != PAGE else None
    except SealError:
        what = "was changed after depthscope wrote it"
    if what:
        raise RunError(
            f"{out} {what}, so it is not overwritten. Move it or delete it, or write the page elsewhere (--out)"
        )

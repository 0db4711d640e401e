"""Files of a run's directory that are in it: links that lead out of the directory are not followed.

Whoever made the directory chose its links; reading through one would show, in a page to be passed on, a file of the reader's.
The directory itself may be a link, and so may a file in it that stays inside.
"""

import os
import re
from pathlib import Path

from depthscope.errors import RunError

TABLE = re.compile(r"[a-z][a-z0-9_]{0,99}")
"""Names of tables, as those of experiments."""


def inside(directory: Path, *parts: str) -> Path:
    """The path `directory/parts…`. Raises RunError if a link on the way leads out of the directory."""
    path = directory.joinpath(*parts)
    root = os.path.realpath(directory)
    if os.path.commonpath([root, os.path.realpath(path)]) != root:
        raise RunError(
            f"{path} is, or is behind, a link that leads out of {directory}: links out of a run are not followed"
        )
    return path


def table_names(directory: Path) -> list[str]:
    """Names of the tables in a run's directory, in alphabetical order; files with other names are no tables of a run."""
    names = (file.stem for file in (directory / "tables").glob("*.parquet"))
    return sorted(name for name in names if TABLE.fullmatch(name))

"""What a local copy knows of the URL it belongs to: which of its files are there, as they were when they were last moved.

A file with one JSON line per transfer, of which a later one replaces an earlier one. It says which side has changed since:
without it, a file that was deleted at the URL would come back, and a file that could not be pushed would be lost. Imports no
torch.
"""

import json
import uuid
from pathlib import Path

from depthscope.run.files import write_file

KNOWN = "known.jsonl"
Stamp = tuple[int, int]
"""Size of a local file, and when it was changed, in nanoseconds."""


def stamp(file: Path) -> Stamp | None:
    """The stamp of a local file; None if there is none."""
    try:
        about = file.stat()
    except OSError:
        return None
    return about.st_size, about.st_mtime_ns


class Known:
    """Files that were the same on both sides: for each its mark at the URL and its stamp here."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / KNOWN
        self.copy = uuid.uuid4().hex
        """The name of this copy, made once."""
        self._of: dict[str, tuple[str, Stamp]] = {}
        for line in self._file.read_text(encoding="utf-8").splitlines() if self._file.is_file() else []:
            self._take(line)
        lines = [json.dumps(self.copy), *(_line(name, *one) for name, one in self._of.items())]
        write_file(self._file, "".join(f"{line}\n" for line in lines).encode())

    def _take(self, line: str) -> None:
        try:
            found = json.loads(line)
            if isinstance(found, str):
                self.copy = found
                return
            name, mark, size, changed = found
        except (ValueError, TypeError):  # the last line of a process that was killed: the file is moved again
            return
        if mark is None:
            self._of.pop(name, None)
        else:
            self._of[name] = (mark, (size, changed))

    def mark(self, name: str) -> str | None:
        """The mark of a file at the URL; None if it was not moved."""
        return self._of[name][0] if name in self._of else None

    def stamp(self, name: str) -> Stamp | None:
        """The stamp of a local file when it was moved; None if it was not."""
        return self._of[name][1] if name in self._of else None

    def names(self) -> list[str]:
        """All files that were moved."""
        return list(self._of)

    def moved(self, name: str, mark: str, local: Stamp) -> None:
        """Record that a file is the same on both sides."""
        self._of[name] = (mark, local)
        self._append(_line(name, mark, local))

    def forget(self, name: str) -> None:
        """Record that a file is not at the URL any more."""
        del self._of[name]
        self._append(json.dumps([name, None, 0, 0]))

    def _append(self, line: str) -> None:
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(f"{line}\n")


def _line(name: str, mark: str, local: Stamp) -> str:
    return json.dumps([name, mark, *local])

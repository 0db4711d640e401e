"""A URL has one writer at a time, as far as that can be had: a note there says who writes, and is renewed while it does.

A lock that the system releases does not exist between machines. Two that begin within the same second may both think they are
alone; at the next renewal the note names one of them, and the other stops. Imports no torch.
"""

import json
import os
import socket
import time
from datetime import UTC, datetime

from depthscope.errors import RunError
from depthscope.printable import printable
from depthscope.run.remote import Remote

NOTE = "writer.json"
RENEWED, GONE = 60, 300
"""Seconds after which the note is renewed, and without a renewal after which its writer counts as gone."""


class WriterNote:
    """The note of this process in a directory at a URL. `copy` names the local copy, whose own lock has been taken: an earlier
    process with the same copy has ended."""

    def __init__(self, remote: Remote, copy: str) -> None:
        self._remote, self._copy = remote, copy
        self._renewed = 0.0

    def take(self) -> None:
        """Write the note. Raises RunError where another writer's is there that was renewed lately, and where the URL cannot be
        written."""
        if (other := self._other()) is not None:
            raise RunError(
                f"{self._remote.name} is being written by {other}: wait until that ends. If it is gone, wait {GONE // 60} "
                f"minutes or delete {self._remote.name}/{NOTE}, and give the same command again"
            )
        self._write()

    def renew(self) -> None:
        """Write the note again if it is time for that. Raises RunError if another writer has taken over."""
        if time.monotonic() - self._renewed < RENEWED:
            return
        try:
            other = self._other()
            if other is None:
                self._write()
        except RunError:  # of a network, perhaps for a moment: a push that fails in the end says so
            return
        if other is not None:
            raise RunError(f"{self._remote.name} is now written by {other}, so this study ends")

    def remove(self) -> None:
        """Delete the note, unless it is another's."""
        if self._other() is None:
            self._remote.delete(NOTE)

    def _write(self) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        about = {"host": socket.gethostname(), "pid": os.getpid(), "time": now, "copy": self._copy}
        self._remote.write(NOTE, json.dumps(about).encode())
        self._renewed = time.monotonic()

    def _other(self) -> str | None:
        """Another writer whose note was renewed lately, for a message. A note that cannot be read is nobody's."""
        content = self._remote.read(NOTE)
        try:
            note = json.loads(content or b"")
            age = (datetime.now(UTC) - datetime.fromisoformat(note["time"])).total_seconds()
            if note["copy"] == self._copy or abs(age) > GONE:
                return None
            return printable(f"{note['host']} (process {note['pid']}, seen {max(0, age):.0f} s ago)")
        except (ValueError, TypeError, KeyError, RecursionError):
            return None

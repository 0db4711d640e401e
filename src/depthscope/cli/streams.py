"""Standard output that no reader, encoding or disk can break a command with.

A pipe whose reader has gone takes no output any more, and the command goes on: `depthscope study | head -1` writes its run.
Characters that the terminal's encoding lacks are replaced. Any other failure to write ends the command with one message.
"""

import codecs
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from depthscope.errors import DepthscopeError

REPLACED = "depthscope.replaced"
PLAIN = str.maketrans(
    {
        **{"±": "+-", "≥": ">=", "≤": "<=", "→": "->", "×": "x", "–": "-", "—": "-", "−": "-", "…": "...", "·": "."},
        **{"‘": "'", "’": "'", "“": '"', "”": '"', "␣": "_", "⏎": "/", "⇥": ">", "‖": "|"},
        **{"░": ".", "▒": ":", "▓": "=", "█": "#", "│": "|", "━": "-", "╸": "-", "╺": "-", "✓": "+", "✗": "-"},
    }
)
"""What is shown for a character in a terminal that lacks it; `?` for all others."""


def _replaced(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    encoding = error.encoding
    plain = error.object[error.start : error.end].translate(PLAIN)
    return plain.encode(encoding, errors="replace").decode(encoding), error.end


codecs.register_error(REPLACED, _replaced)


class _Output(io.FileIO):
    """A file descriptor that drops what is written once its reader has gone, and raises DepthscopeError where it is full."""

    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except BrokenPipeError:
            self._drop()
            return len(content)
        except OSError as error:
            self._drop()
            raise DepthscopeError(f"standard output cannot be written: {error.strerror or error}") from error

    def _drop(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


@contextmanager
def guarded_output() -> Iterator[None]:
    """Let sys.stdout be as described above. Where it is none of the process's own (a notebook's, a test's), it stays."""
    before = sys.stdout
    if before is None or before is not sys.__stdout__:
        yield
        return
    before.flush()
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_Output(before.fileno(), "w", closefd=False)),
        encoding=before.encoding,
        errors=REPLACED,
        line_buffering=bool(before.line_buffering),
    )
    try:
        yield
    finally:
        with suppress(DepthscopeError):  # reported where the command flushes what it has printed
            sys.stdout.flush()
        sys.stdout = before

"""Files and JSON that this program did not write, read within bounds. Imports nothing but the exceptions.

Every boundary where something from outside enters (a model's folder, text, a run's directory) reads through these functions and
names the exception it raises. Bounds are on what a reader must hold: bytes, and how deep JSON is nested.
"""

import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from depthscope.errors import DepthscopeError

MIB = 1 << 20
MOST_JSON_BYTES = 64 * MIB
DEEPEST_JSON = 64


def open_regular(path: Path, wrong: type[DepthscopeError]) -> BufferedReader:
    """Open a regular file for reading in binary. A FIFO, a device, a socket or a folder raises `wrong` at once.

    The file is opened without blocking and its kind is asked of what was opened, so that nothing can be put in its place
    between the two.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise wrong(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise wrong(f"{path} is not a regular file: expected one, not a folder, a pipe or a device")
    return os.fdopen(descriptor, "rb")


def read_bounded(path: Path, wrong: type[DepthscopeError], most: int = MOST_JSON_BYTES) -> bytes:
    """The content of a regular file of at most `most` bytes. Raises `wrong` for a longer one, before it is read."""
    with open_regular(path, wrong) as stream:
        try:
            content = _read(stream, most + 1)
        except OSError as error:
            raise wrong(f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) > most:
        raise wrong(f"{path} is longer than {most // MIB} MiB: expected at most that much in such a file")
    return content


def _read(stream: BinaryIO, most: int) -> bytes:
    """At most so many bytes, without asking for memory that the file does not need."""
    size = os.fstat(stream.fileno()).st_size
    parts = []
    while most > 0 and (part := stream.read(min(most, max(size + 1, MIB)))):
        parts.append(part)
        most -= len(part)
    return b"".join(parts)


def parse_json(text: bytes | str, where: str, wrong: type[DepthscopeError], deepest: int = DEEPEST_JSON) -> Any:
    """JSON values from UTF-8 bytes or text; `where` names its place in messages.

    Raises `wrong` for what is not JSON, for values nested more than `deepest` levels, numbers of more digits than Python
    reads, and text with half of a surrogate pair, which cannot be encoded again.
    """
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise wrong(_too_deep(where, deepest)) from error
    except ValueError as error:
        raise wrong(f"{where} is not JSON: {(str(error).splitlines() or [type(error).__name__])[0]}") from error
    _require_plain(content, where, wrong, deepest)
    return content


def read_json(
    path: Path, wrong: type[DepthscopeError], *, most: int = MOST_JSON_BYTES, deepest: int = DEEPEST_JSON
) -> Any:
    """The JSON values of a regular file, within both bounds. Raises `wrong`."""
    return parse_json(read_bounded(path, wrong, most), str(path), wrong, deepest)


def _require_plain(content: Any, where: str, wrong: type[DepthscopeError], deepest: int) -> None:
    level = [content]
    for _ in range(deepest + 1):
        for text in _texts(level):
            if not _encodable(text):
                raise wrong(f"{where} has text with half of a surrogate pair ({text[:20]!a}): expected Unicode text")
        level = [member for value in level if isinstance(value, list | dict) for member in _members(value)]
        if not level:
            return
    raise wrong(_too_deep(where, deepest))


def _members(value: list[Any] | dict[str, Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


def _texts(level: list[Any]) -> list[str]:
    own = [value for value in level if isinstance(value, str)]
    return own + [key for value in level if isinstance(value, dict) for key in value]


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _too_deep(where: str, deepest: int) -> str:
    return f"{where} is nested more than {deepest} levels deep: expected fewer"

"""Lines of a file, compressed or not, in bounded memory: what is held at once is one line of at most 64 MiB.

Compressed files are decompressed piece by piece, so it does not matter how large they become. Only regular files are opened.
"""

import bz2
import codecs
import gzip
import io
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from depthscope.errors import DataError
from depthscope.printable import printable
from depthscope.untrusted import MIB, open_regular

MOST_BYTES = 64 * MIB
"""Bytes, decompressed, of a line, of a document, and of a .json file, which is held whole."""
MOST_BLANK_LINES = 1_000_000
"""Consecutive lines without text after which reading ends with an error: 10 MB can decompress to 10 GB of them."""
XZ_MEMORY = 256 * MIB
"""What decompressing .xz may take; `xz -9` needs 65 MiB. The file's own header asks for it, up to 4 GiB."""
PIECE = 1 << 16


class _Xz(io.RawIOBase):
    """A decompressed .xz file, of one or several streams. Unlike lzma.open it has a limit of memory."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._decoder = self._new()

    @staticmethod
    def _new() -> lzma.LZMADecompressor:
        return lzma.LZMADecompressor(memlimit=XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            compressed = b""
            if self._decoder.eof:
                # Zeros may fill up the space between streams.
                compressed = (self._decoder.unused_data or self._file.read(PIECE)).lstrip(b"\0")
                while not compressed:
                    if not (piece := self._file.read(PIECE)):
                        return 0
                    compressed = piece.lstrip(b"\0")
                self._decoder = self._new()
            elif self._decoder.needs_input and not (compressed := self._file.read(PIECE)):
                raise EOFError("it ends in the middle of its compressed data")
            if found := self._decoder.decompress(compressed, len(buffer)):
                buffer[: len(found)] = found
                return len(found)


def _zstd(file: IO[bytes]) -> io.BufferedReader:
    return io.BufferedReader(pa.input_stream(file, compression="zstd"))  # type: ignore[arg-type]


DECOMPRESSED: dict[str, Callable[[IO[bytes]], IO[bytes]]] = {
    ".xz": lambda file: io.BufferedReader(_Xz(file), PIECE),
    ".gz": lambda file: gzip.GzipFile(fileobj=file),  # type: ignore[dict-item]
    ".bz2": lambda file: bz2.BZ2File(file),  # type: ignore[dict-item]
    ".zst": _zstd,
}
"""What reads a compressed file, by its suffix."""


def lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, each with its line break.

    Raises DataError, naming file and line, for what is no regular file, cannot be decompressed, is not UTF-8 or has zero bytes,
    for a line longer than MOST_BYTES, and for more than MOST_BLANK_LINES blank lines in a row.
    """
    number = blank = 0
    with open_regular(path, DataError) as file:
        stream = _read(path, lambda: DECOMPRESSED.get(path.suffix.lower(), lambda file: file)(file))
        while line := _read(path, lambda: stream.readline(MOST_BYTES + 1)):
            number += 1
            where = f"{printable(path)}, line {number}"
            if len(line) > MOST_BYTES:
                raise DataError(f"{where} {longer()}. {SHORTER}")
            text = _decoded(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, where)
            blank = 0 if text.strip() else blank + 1
            if blank > MOST_BLANK_LINES:
                raise DataError(f"{where}: {blank:,} blank lines in a row: expected text. Remove them")
            yield text


def longer() -> str:
    """What is wrong with a line, document or file that is too long."""
    return f"is longer than {MOST_BYTES // MIB} MiB: expected at most that much in one piece"


SHORTER = "Divide it into shorter lines or documents"


def _read(path: Path, read: Callable[[], Any]) -> Any:
    """What `read` gives. Raises DataError where the file is damaged: each library has exceptions of its own for that."""
    try:
        return read()
    except Exception as error:
        raise DataError(f"{printable(path)} cannot be read: {printable(error) or type(error).__name__}") from error


def _decoded(line: bytes, where: str) -> str:
    if b"\0" in line:
        raise DataError(f"{where}: a zero byte, so this is no text file: expected UTF-8 text")
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 (byte 0x{line[error.start]:02x} at column {error.start + 1}). Convert the file to UTF-8 first"
        ) from error

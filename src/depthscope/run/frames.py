"""Tables as Parquet files with a seal. Imports no torch."""

import io
from pathlib import Path

import polars as pl

from depthscope.errors import DamagedError, RunError
from depthscope.schema.seal import Seal, SealError, read_seal, sealed
from depthscope.untrusted import read_bounded

METADATA = "depthscope"
"""The key of the seal in a file's metadata."""
MOST_BYTES = 1 << 34
"""The longest file that is read: it is in memory while it is verified."""


def parquet(frame: pl.DataFrame, seal: Seal) -> bytes:
    """The bytes of a Parquet file. The same frame and seal give the same bytes."""
    stream = io.BytesIO()
    frame.write_parquet(stream, compression="zstd", statistics=False, metadata={METADATA: seal.blank})
    return sealed(stream.getvalue())


def sealed_bytes(file: Path, remedy: str) -> tuple[bytes, Seal | None]:
    """A file's bytes and verified seal; None for a file without one, which is not verified.

    Raises DamagedError for a file that does not match its checksum; `remedy` ends the message.
    """
    content = read_bounded(file, RunError, MOST_BYTES)
    try:
        return content, read_seal(content)
    except SealError as error:
        raise DamagedError(f"{file} is damaged: {error}. {remedy}") from error

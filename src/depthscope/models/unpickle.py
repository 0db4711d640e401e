"""Tensors of a file that torch.save wrote, without unpickling it in this process.

A pickle can name any function to be called. It is read by a process of its own (`unpickle_worker`), which writes tensors as
safetensors and other values as JSON; both are read here as files of a stranger. What that process may do is limited in memory,
CPU time, wall-clock time, and size of what it writes, and it is cut off from the network where the system allows that. It is no
virtual machine: it runs as the same user, and a bug in torch's native code could be used within these limits.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from depthscope.errors import DepthscopeError
from depthscope.printable import printable
from depthscope.untrusted import MIB, open_regular, parse_json, read_bounded

WORKER = Path(__file__).with_name("unpickle_worker.py")
SLACK = 256 * MIB
BYTES_PER_SECOND = 20 * MIB
STARTING = 120
"""Seconds for importing torch on a slow disk."""
SECONDS = 60
MOST_ANSWER, MOST_LOG = 16 * MIB, MIB


@dataclass(frozen=True, slots=True)
class Unpickled:
    """What a file holds. Members of nested dictionaries are named by their path ("J.3")."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]
    sha256: str
    size: int
    isolation: tuple[str, ...]
    """What the system limited or cut off for the process that read it."""


def unpickled(file: Path, most: int, room: Path) -> Unpickled:
    """The tensors and plain values of a file of at most `most` bytes, written by torch.save. `room` is a folder for copies.

    Raises DepthscopeError, with the reason in one line, for any other file: one with code, compressed, damaged, or too large.
    """
    size, sha256 = _measured(file, most)
    with tempfile.TemporaryDirectory(prefix=".unpickle-", dir=room, ignore_cleanup_errors=True) as scratch:
        answer = _answer_of(file, size, Path(scratch))
        if "error" in answer:
            raise DepthscopeError(f"{file} is not converted: {printable(answer['error'])[:300]}")
        try:
            tensors = load(read_bounded(Path(scratch) / "tensors.safetensors", DepthscopeError, 2 * size + SLACK))
            values, isolation = dict(answer["values"]), tuple(map(str, answer["isolation"]))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DepthscopeError(
                f"{file} is not converted: its process wrote what cannot be read ({error})"
            ) from error
    if _measured(file, most) != (size, sha256):
        raise DepthscopeError(f"{file} changed while it was read: convert it again when it is complete")
    return Unpickled(tensors, values, sha256, size, isolation)


def _measured(file: Path, most: int) -> tuple[int, str]:
    with open_regular(file, DepthscopeError) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most:
            raise DepthscopeError(
                f"{file} has {size // MIB:,} MiB: expected at most {most // MIB:,}, in which a lens of this model fits"
            )
        return size, hashlib.file_digest(stream, "sha256").hexdigest()


def _answer_of(file: Path, size: int, scratch: Path) -> dict[str, Any]:
    """The answer of the process. Its environment is empty: no token or path of the user's is in it."""
    seconds = SECONDS + size // BYTES_PER_SECOND
    asked = {
        "source": str(file.resolve()),
        "out": str(scratch.resolve()),
        "memory": 3 * size + SLACK,
        "seconds": seconds,
    }
    kept = {name: os.environ[name] for name in ("SYSTEMROOT", "LD_LIBRARY_PATH") if name in os.environ}
    with (scratch / "log").open("wb") as log:
        try:
            ended = subprocess.run(
                [sys.executable, "-I", "-B", str(WORKER), json.dumps(asked)],
                cwd=scratch,
                env={**kept, "OMP_NUM_THREADS": "1", "TMPDIR": str(scratch)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=seconds + STARTING,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired as error:
            raise DepthscopeError(
                f"{file} is not converted: reading it took more than {error.timeout:g} seconds"
            ) from error
    content = read_bounded(scratch / "answer.json", DepthscopeError, MOST_ANSWER)
    if ended or not content:
        lines = read_bounded(scratch / "log", DepthscopeError, MOST_LOG).decode(errors="replace").strip().splitlines()
        why = (
            lines[-1] if lines else f"it was ended by signal {-ended}" if ended < 0 else f"it ended with status {ended}"
        )
        raise DepthscopeError(
            f"{file} is not converted: the process that reads it failed within its limits of {asked['memory'] // MIB} MiB and "
            f"{seconds} seconds of CPU time ({printable(why)[:200]})"
        )
    answer = parse_json(content, "the answer of the process that reads it", DepthscopeError)
    return answer if isinstance(answer, dict) else {"error": "its process gave no answer"}

"""The process that unpickles one file of PyTorch's, apart from depthscope: `python -I -B unpickle_worker.py ASKED`.

It imports nothing of depthscope. ASKED is JSON: `source`, `out` (an empty folder), `memory` (bytes) and `seconds`. It writes
tensors.safetensors to `out`, and answer.json with the values that are not tensors, or with `error`. Members of nested
dictionaries are named by their path ("J.3").

What contains the file, in this order:

1. The network is left (a network namespace without interfaces), where the system allows that.
2. The archive's entries are stored uncompressed, and are no larger together than the file.
3. Address space, CPU time and the size of written files are limited, where the system has such limits.
4. An audit hook refuses writing files, processes, sockets and foreign functions. It sees Python's calls, not those that a bug
   in native code would make.
5. The pickle names nothing that torch does not allow for weights, and `torch.load(weights_only=True)` reads it.
6. Every tensor is a plain one whose elements fit into the file.
"""

import ctypes
import json
import os
import sys
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

MIB = 1 << 20
NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000
"""Flags of Linux's unshare."""
MOST_ENTRIES, MOST_PICKLE, DEEPEST = 100_000, 16 * MIB, 4
REFUSED = ("socket.", "subprocess.", "ctypes.", "os.", "shutil.", "pty.", "signal.", "webbrowser.")
"""Beginnings of the names of audit events that are refused."""
HARMLESS = ("os.listdir", "os.scandir")
"""Imports need these."""
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class RefusedError(Exception):
    """A file that is not converted, with the reason."""


def main(asked: dict[str, Any]) -> None:
    """Convert, and write the answer."""
    out = Path(asked["out"])
    descriptor = os.open(out / "answer.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    short = f"it needs more memory than the {asked['memory'] // MIB} MiB allowed for a file of its size"
    answer: dict[str, Any]
    try:
        with Path(asked["source"]).open("rb") as stream:  # before rights are given up with the namespace
            isolation = ["network"] if _left_the_network() else []
            answer = _converted(stream, out / "tensors.safetensors", asked, isolation)
    except RefusedError as error:
        answer = {"error": str(error)}
    except MemoryError:
        answer = {"error": short}
    except BaseException as error:
        line = (str(error).splitlines() or [""])[0][:200]
        answer = {"error": short if "allocate memory" in str(error) else f"{type(error).__name__}: {line}"}
    os.write(descriptor, json.dumps(answer).encode())
    os.close(descriptor)


def _converted(stream: BinaryIO, place: Path, asked: dict[str, Any], isolation: list[str]) -> dict[str, Any]:
    size = _checked_archive(stream)
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    isolation += _limited(asked["memory"], asked["seconds"], 2 * size + 64 * MIB)
    sys.addaudithook(_refuse)
    isolation.append("audit hook")
    stream.seek(0)
    if names := torch.serialization.get_unsafe_globals_in_checkpoint(stream):  # type: ignore[arg-type]
        raise RefusedError(
            f"it names {', '.join(sorted(names)[:3])}, which is no tensor or plain value; nothing of it was run"
        )
    stream.seek(0)
    found = torch.load(stream, map_location="cpu", weights_only=True, mmap=False)
    tensors, values = {}, {}
    for name, value in _members(found):
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        else:
            values[name] = value
    plain = {name: _plain(name, tensor, size) for name, tensor in tensors.items()}
    if sum(tensor.numel() * tensor.element_size() for tensor in plain.values()) > size:
        raise RefusedError(f"its {len(plain)} tensors have more elements than the file of {size:,} bytes holds")
    save_file(
        {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in plain.items()}, place
    )
    return {"values": values, "isolation": isolation}


def _checked_archive(stream: BinaryIO) -> int:
    """The bytes of the file. Raises RefusedError unless it is an archive that cannot unpack to more."""
    size = os.fstat(stream.fileno()).st_size
    try:
        entries = zipfile.ZipFile(stream).infolist()
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
        raise RefusedError(f"it is no complete archive as torch.save writes since version 1.6 ({error})") from error
    if len(entries) > MOST_ENTRIES:
        raise RefusedError(f"its archive has {len(entries):,} entries: expected at most {MOST_ENTRIES:,}")
    if packed := next((entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED), None):
        raise RefusedError(
            f"its archive has a compressed entry of {packed.file_size:,} bytes: torch.save stores them as they are"
        )
    if (whole := sum(entry.file_size for entry in entries)) > size:
        raise RefusedError(f"its archive's entries have {whole:,} bytes, more than the file's {size:,}")
    pickle = max((entry.file_size for entry in entries if entry.filename.endswith(".pkl")), default=0)
    if pickle > MOST_PICKLE:
        raise RefusedError(f"its pickle has {pickle // MIB} MiB: expected at most {MOST_PICKLE // MIB}")
    return size


def _left_the_network() -> bool:
    """Move into a network namespace without interfaces; False where the system does not allow that."""
    try:
        unshare = ctypes.CDLL(None, use_errno=True).unshare
    except (OSError, AttributeError, TypeError):
        return False
    return unshare(NEW_USER | NEW_NETWORK) == 0 or unshare(NEW_NETWORK) == 0


def _limited(memory: int, seconds: int, written: int) -> list[str]:
    """Limit what is used from now on, and name what the system limits."""
    try:
        import resource
    except ImportError:  # Windows
        return []
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = int(used.ru_utime + used.ru_stime) + 1
    limits = [("CPU time", resource.RLIMIT_CPU, spent + seconds), ("size of files", resource.RLIMIT_FSIZE, written)]
    if (mapped := Path("/proc/self/statm")).exists():
        now = int(mapped.read_text().split()[0]) * resource.getpagesize()
        limits.append(("memory", resource.RLIMIT_AS, now + memory))
    done = ["core"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name, which, most in limits:
        hard = resource.getrlimit(which)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(which, (most, most))
        done.append(name)
    return done[1:]


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """The audit hook."""
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITING
    if writes or (event.startswith(REFUSED) and event not in HARMLESS):
        raise RefusedError(f"it asked for {event}, which no lens needs")


def _members(found: Any) -> list[tuple[str, Any]]:
    """Tensors and plain values by their path in nested dictionaries; other values by the name of their type."""
    open_, flat = [("", found, 0)], []
    while open_:
        path, value, depth = open_.pop()
        if isinstance(value, dict):
            if depth == DEEPEST or len(value) + len(flat) > MOST_ENTRIES:
                raise RefusedError(
                    f"it nests dictionaries more than {DEEPEST} deep, or has more than {MOST_ENTRIES:,} members"
                )
            for key, member in value.items():
                if not isinstance(key, str | int) or len(str(key)) > 200:
                    raise RefusedError(f"a key is a {type(key).__name__}: expected names and numbers")
                open_.append((f"{path}.{key}" if path else str(key), member, depth + 1))
        else:
            flat.append((path, value if _is_tensor(value) or _is_simple(value) else f"a {type(value).__name__}"))
    return flat


def _is_simple(value: Any) -> bool:
    """Whether it is a number, a short text, or a list of whole numbers."""
    if isinstance(value, list):
        return len(value) <= MOST_ENTRIES and all(type(one) is int for one in value)
    return value is None or type(value) in (bool, int, float) or (type(value) is str and len(value) <= MOST_ENTRIES)


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor)


def _plain(name: str, tensor: Any, size: int) -> Any:
    """The tensor. Raises RefusedError unless it is an array of floating-point numbers in memory that fits into the file."""
    import torch

    known = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout == torch.strided
    if not known or tensor.device.type != "cpu" or tensor.is_quantized or not tensor.dtype.is_floating_point:
        raise RefusedError(
            f"{name} is a {tensor.layout} tensor of {tensor.dtype} on {tensor.device}: expected plain float numbers"
        )
    if tensor.numel() * tensor.element_size() > size:
        raise RefusedError(
            f"{name} has the shape {list(tensor.shape)}, more elements than the file of {size:,} bytes holds"
        )
    return tensor


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

"""Two simulated accelerators, `simulated:0` and `simulated:1`, in the host's memory (simulated.cpp), so that code for devices
is run where there is none: what a card refuses, such as tensors on different devices, is refused here too.

They say nothing about speed, streams that run at the same time, or the memory of a card. torch has one such backend per
process, and libraries take it for the machine's: so these tests run in processes of their own.
"""

import hashlib
import subprocess
import tempfile
import types
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.cpp_extension import include_paths, library_paths

SOURCE = Path(__file__).with_suffix(".cpp")
NAME = "simulated"
DEVICES = 2


@cache
def require_accelerators() -> None:
    """Make the devices known to torch in this process. Skips the test where there is no compiler."""
    library = Path(tempfile.gettempdir()) / f"depthscope-accelerator-{_fingerprint()}.so"
    if not library.exists():
        _compile(library)
    backend: Any = torch.utils
    backend.rename_privateuse1_backend(NAME)
    torch.ops.load_library(str(library))
    module: Any = types.ModuleType(f"torch.{NAME}")
    module.device_count = lambda: DEVICES
    module.is_available = module.is_initialized = lambda: True
    module.current_device = lambda: 0
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = module.synchronize = lambda *_: None
    module.get_rng_state = lambda *_: torch.get_rng_state()  # random numbers are the CPU's
    module.set_rng_state = lambda state, *_: torch.set_rng_state(state)
    torch._register_device_module(NAME, module)


def _fingerprint() -> str:
    return hashlib.sha256(f"{torch.__version__} {torch.__file__}".encode() + SOURCE.read_bytes()).hexdigest()[:16]


def _compile(library: Path) -> None:
    """Takes half a minute."""
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        made = Path(folder) / library.name
        command = ["g++", "-O1", "-std=c++20", "-shared", "-fPIC", "-w", str(SOURCE), "-o", str(made)]
        command += [f"-I{path}" for path in include_paths()] + [f"-L{path}" for path in library_paths()]
        try:
            subprocess.run([*command, "-ltorch", "-ltorch_cpu", "-lc10"], check=True, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("the simulated accelerator needs the compiler g++")
        made.replace(library)

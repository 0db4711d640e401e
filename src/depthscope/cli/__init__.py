"""The command line: no logic here, and heavy imports only when a command runs.

This module imports next to nothing, so that signals are handled from the first moments on.
"""

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from depthscope.allocator import keep_freed
from depthscope.cli.signals import ending_on_signals, status_of

if TYPE_CHECKING:
    from depthscope.cli.commands import app as app
    from depthscope.cli.commands import build_app as build_app


def main() -> None:
    """Run the command line and exit with its status (see boundary)."""
    # Torch's threads wait for each other some thousands of times a second. By default they spin for milliseconds, and beside
    # another busy process each spins on the core that the other one needs. OpenMP reads this when torch is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    keep_freed()
    with ending_on_signals():
        try:
            from depthscope.cli.boundary import run

            status = run(sys.argv[1:])
        except KeyboardInterrupt as stop:
            status = status_of(stop)
    sys.exit(status)


def __getattr__(name: str) -> Any:
    if name not in ("app", "build_app"):
        raise AttributeError(f"module 'depthscope.cli' has no attribute {name!r}")
    return getattr(import_module("depthscope.cli.commands"), name)

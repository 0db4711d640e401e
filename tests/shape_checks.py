"""Every call of a function with shapes is checked in tests: jaxtyping's shapes and beartype's types.

Only modules with shapes are instrumented. A check costs more than most functions: with it everywhere, reading a Parquet footer
byte by byte took most of the time of the tests of run directories.
"""

import importlib.util
import sys
from pathlib import Path

from jaxtyping import install_import_hook

MARKS = ("jaxtyping", "depthscope.shapes")
COMPILED = "triton_passes.py"
"""Triton compiles what it reads in this file, and cannot read it when it is instrumented."""


def modules() -> list[str]:
    """The modules of depthscope that have shapes."""
    found = importlib.util.find_spec("depthscope")  # does not import it
    assert found is not None
    assert found.origin is not None
    package = Path(found.origin).parent
    return [
        ".".join(file.relative_to(package.parent).with_suffix("").parts)
        for file in sorted(package.rglob("*.py"))
        if file.name != COMPILED and any(mark in file.read_text(encoding="utf-8") for mark in MARKS)
    ]


def install() -> None:
    """Instrument them. Must come before their first import."""
    assert "depthscope" not in sys.modules
    install_import_hook(modules(), "beartype.beartype")

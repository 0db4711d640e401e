"""The directory that a lens is fitted in: a complete lens is read, one made with other settings refused, a damaged one fitted
again.
"""

import warnings
from pathlib import Path
from typing import Any

from depthscope.errors import DamagedError, DamageWarning, DepthscopeError
from depthscope.experiments.lens_state import FILE, remove_state
from depthscope.experiments.tuned_lens import (
    AGAIN,
    CONFIG,
    PARAMS,
    Fitted,
    FittedLens,
    read_config,
    require_replaceable,
)
from depthscope.models.model import Model


def found_lens(
    kind: type[Fitted], directory: Path, model: Model, asked: dict[str, Any]
) -> tuple[Fitted | None, str | None]:
    """The complete lens in a directory; None if there is none, or if it is damaged, then with its recorded SHA-256 if known.

    Raises DepthscopeError if the lens there was made with other settings than `asked`, or is of another kind, and RunError if
    a file of another origin would be replaced.
    """
    if not (directory / CONFIG).exists():
        if not (directory / FILE).exists():
            require_replaceable(directory)
        return None, None
    known: str | None = None
    try:
        config = read_config(directory)
        require_same(kind, directory, config, asked)
        known = config.get("params_sha256")
        return kind.load(directory, model), known
    except DamagedError as error:
        reason = str(error).removesuffix(f". {AGAIN}")
        warnings.warn(f"{reason}. The lens is trained again", DamageWarning, stacklevel=3)
        return None, known


def require_same(kind: type[FittedLens], directory: Path, there: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raise DepthscopeError where what is in a directory was made for another model, on other text or in another way."""
    differing = [
        f"{part}.{key}: {there.get(part, {}).get(key)!r} stored, {value!r} requested"
        for part in ("model", "text", "recipe")
        for key, value in asked[part].items()
        if there.get(part, {}).get(key) != value
    ]
    if differing:
        lines = "".join(f"\n  {line}" for line in differing)
        raise DepthscopeError(
            f"{directory} holds a {kind.called} made with other settings:{lines}\nUse the same settings, or another directory."
        )


def write_lens(lens: FittedLens, directory: Path, known: str | None) -> None:
    """Store a lens and remove the state of its fit. `known`: SHA-256 of the parameters that a damaged file had.

    Raises DepthscopeError where they are not those: what was measured with the lens would no longer be of it.
    """
    if known not in (None, lens.sha256):
        raise DepthscopeError(
            f"{directory / PARAMS} is damaged, and training it again on this machine gives other numbers. Restore it "
            f"from a copy, or delete {directory} and whatever was measured with the lens"
        )
    lens.write(directory)
    remove_state(directory)

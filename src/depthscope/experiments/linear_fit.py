"""Fitting the affine maps of a run: one pass over the text, stored in the run directory, resumed where it was interrupted.

RUN/linearity/sums.safetensors    sums over the text so far, until the maps are there
RUN/linearity/maps.safetensors    the maps

Each file says what it was made of, and has its own SHA-256. One that is damaged is computed again.
"""

import json
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from depthscope.engine.baseline import Baseline
from depthscope.errors import DamagedError, DamageWarning, DepthscopeError, NumericError
from depthscope.experiments.fit_text import FitText
from depthscope.experiments.linear_maps import LinearMaps, LinearSums
from depthscope.experiments.tuned_lens import describe, parameter_dtype
from depthscope.models.finite import all_finite
from depthscope.models.model import Model
from depthscope.run.files import write_file
from depthscope.run.layout import LINEARITY, LINEARITY_FILES
from depthscope.schema.seal import BLANK, SealError, hash_in_safetensors, require_hash, with_hash
from depthscope.untrusted import read_bounded

UNIT = 1024
"""Tokens run at once."""
STORE_EVERY, STORE_SHARE = 15.0, 0.05
"""The sums are stored after so many seconds, and less often where storing them takes more than this share of the time."""
MOST_BYTES = 1 << 38
ABOUT = "about"
"""The tensor with the JSON of what a file was made of."""

Tell = Callable[[str, int, int], None]


def fitted_maps(model: Model, text: FitText, run: Path, tell: Tell) -> LinearMaps:
    """The maps in a run directory: fitted, resumed, or read.

    Raises DepthscopeError if the directory has maps of another model or text.
    """
    maps_file, sums_file = (run / LINEARITY / name for name in LINEARITY_FILES)
    described = {key: value for key, value in describe(model).items() if key != "name"}
    about = {"model": described, "text": text.record()}
    if (there := _read(maps_file, about)) is not None:
        tensors, _ = there
        on_device = {name: tensors[name].to(model.device) for name in ("centre", "write", "matrix")}
        return LinearMaps(**on_device, fitted=tensors["fitted"], tokens=tensors["tokens"])
    sums = _summed(model, text, sums_file, about, tell)
    maps = sums.solved(parameter_dtype(model))
    if not all_finite([maps.matrix, maps.write]):
        raise NumericError(
            f"the affine maps of {model.name} have NaN or infinity, although its residual streams are finite: expected "
            "another --dtype, or other text (--fit-data)"
        )
    _write(maps_file, _tensors(maps), about)
    sums_file.unlink(missing_ok=True)
    return maps


def _summed(model: Model, text: FitText, file: Path, about: dict[str, Any], tell: Tell) -> LinearSums:
    """The sums over the text, from where an earlier command left off."""
    windows, units, sums = text.windows, 0, LinearSums.empty(model)
    if (there := _read(file, about)) is not None:
        tensors, units = there
        sums = LinearSums(**{name: one if name == "tokens" else one.to(model.device) for name, one in tensors.items()})
    model.kernels.forget()
    each = max(1, UNIT // windows.length)
    count = -(-len(windows) // each)
    due = time.monotonic() + STORE_EVERY
    for unit in range(units, count):
        part = windows.part(unit * each, min((unit + 1) * each, len(windows)))
        with model.measuring():
            sums.add(Baseline(model, *part.batch(), named=part.called).residuals)
        if (begun := time.monotonic()) >= due:
            _write(file, _tensors(sums), about, unit + 1)
            due = time.monotonic() + max(STORE_EVERY, (time.monotonic() - begun) / STORE_SHARE)
        tell("linearity, fit", unit + 1, count)
    return sums


def _tensors(values: LinearSums | LinearMaps) -> dict[str, Tensor]:
    return {one.name: getattr(values, one.name).cpu().contiguous() for one in fields(values)}


def _write(file: Path, tensors: Mapping[str, Tensor], about: dict[str, Any], units: int = 0) -> None:
    # As a tensor: the entries of the header have no fixed order, and equal maps should be equal files.
    described = json.dumps({"about": about, "units": units}, sort_keys=True).encode()
    content = save({**tensors, ABOUT: torch.tensor(list(described), dtype=torch.uint8)}, {"sha256": BLANK})
    write_file(file, with_hash(content, hash_in_safetensors(content)))


def _read(file: Path, about: dict[str, Any]) -> tuple[dict[str, Tensor], int] | None:
    """The tensors of a file and how many units it has; None if there is none or, with a DamageWarning, if it is damaged."""
    if not file.exists():
        return None
    try:
        content = read_bounded(file, DamagedError, MOST_BYTES)
        require_hash(content, hash_in_safetensors(content))
        tensors = load(content)
        described = json.loads(bytes(tensors.pop(ABOUT).tolist()))
        there, units = described["about"], int(described["units"])
    except (DamagedError, SealError, SafetensorError, ValueError, KeyError, TypeError) as error:
        message = f"{file} is damaged ({error}). The affine maps are fitted again"
        warnings.warn(message, DamageWarning, stacklevel=3)
        return None
    if there != about:
        raise DepthscopeError(
            f"{file} was made for another model, or on other text, than this run's: expected the maps of this run. Delete "
            f"{file.parent}, or use another --out"
        )
    return tensors, units

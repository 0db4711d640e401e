"""Lenses that others published, converted to the form of this package.

jlens: J, a dictionary from layer to a matrix [d_model, d_model], with n_prompts, source_layers and d_model. Layer l is the
    output of block l, so that x_{l+1} becomes J x_{l+1}; there is no map at x_0. The target is the output of the last block,
    before the final norm. It is the format of the code published with Gurnee et al. 2026 (github.com/anthropics/jacobian-lens,
    `jlens/lens.py`) and of the lenses at huggingface.co/neuronpedia/jacobian-lens.
tuned-lens: N.weight [d_model, d_model] and N.bias [d_model] for N = 0 … L−1: x_N becomes x_N + weight x_N + bias. It is
    params.pt of the package of Belrose et al. 2023 (version 0.2.0, `tuned_lens/nn/lenses.py`); config.json next to it is read.

Neither records the weights that a lens is for. What can be checked is checked (`jacobian_agreement`, `_require_unembedding`).
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from depthscope.engine.stream_jacobians import stream_jacobians
from depthscope.errors import DepthscopeError
from depthscope.experiments.jacobian_lens import JacobianLens
from depthscope.experiments.tuned_lens import (
    CONFIG,
    FORMAT,
    KIND,
    MISSING,
    FittedLens,
    TunedLens,
    describe,
    parameter_dtype,
)
from depthscope.models.finite import all_finite
from depthscope.models.model import Model
from depthscope.models.unpickle import Unpickled, unpickled
from depthscope.printable import listed, printable
from depthscope.untrusted import MIB, read_json

JLENS, TUNED_LENS = "jlens", "tuned-lens"
TO_ITSELF = 1e-2
"""The map of the last block's output must be the identity up to this, where there is one."""
WINDOW, SKIP, ROWS = 64, 16, 8
"""Tokens of the window, positions left out and rows of J with which a Jacobian lens is compared."""
LEAST_AGREEMENT = 0.4
"""A Jacobian lens that agrees less than this at every depth is refused. On bookshelf-gpt2 its own lens agrees by 0.87 to 0.94,
the transposed one by at most 0.29 from x_1 on, that of other weights by at most 0.05."""


def converted(model: Model, file: Path, room: Path) -> FittedLens:
    """The lens in a file, for a model. The file is unpickled in a process of its own, which writes to a folder in `room`.

    Raises DepthscopeError, in one line, for a file that is not a lens in a known format, or not one for this model's depth and
    width or, where the file lets that be seen, its weights.
    """
    width = model.unembedding.weight.shape[1]
    found = unpickled(file, 8 * (model.depth + 1) * (width + 1) * width + 64 * MIB, room)
    if any(re.fullmatch(r"J\.-?\d+", name) for name in found.tensors):
        return _jacobian(model, file, found)
    if found.tensors and all(re.fullmatch(r"\d+\.(weight|bias)", name) for name in found.tensors):
        return _tuned(model, file, found)
    names = listed([*found.tensors, *found.values], 5)
    raise DepthscopeError(
        f"{file} has {names or 'nothing'}: expected a Jacobian lens of jlens (J, n_prompts, source_layers, d_model) or the "
        "params.pt of a tuned lens (0.weight, 0.bias, …)"
    )


def _jacobian(model: Model, file: Path, found: Unpickled) -> JacobianLens:
    """Layer l of the file is the output of block l, x_{l+1}; the last block's is mapped to itself."""
    depth, width = model.depth, model.unembedding.weight.shape[1]
    maps = {int(name.removeprefix("J.")) + 1: tensor for name, tensor in found.tensors.items()}
    _require_shapes(model, file, {f"J of layer {at - 1}": one for at, one in maps.items()}, (width, width))
    if outside := sorted(at - 1 for at in maps if not 1 <= at <= depth):
        raise DepthscopeError(
            f"{file} has maps for layers {listed(outside, 5)}, which {model.name} with {depth} blocks does not have: it is for "
            "another model"
        )
    for name, here in (("d_model", width), ("source_layers", sorted(at - 1 for at in maps))):
        if found.values.get(name, here) != here:
            raise DepthscopeError(
                f"{file} records {name} {printable(found.values[name])[:80]}: expected {here}, as its tensors"
            )
    last = maps.pop(depth, None)
    if last is not None and (last.double() - torch.eye(width)).abs().max() > TO_ITSELF:
        raise DepthscopeError(
            f"{file} maps the output of the last block, layer {depth - 1}, to something else than itself: expected a lens "
            "whose target is that output"
        )
    jacobian = torch.zeros(depth, width, width, dtype=parameter_dtype(model))
    for at, one in maps.items():
        jacobian[at] = one
    missing = [at for at in range(depth) if at not in maps]
    prompts = found.values.get("n_prompts")
    agreement = None if model.stack.streamed else jacobian_agreement(model, jacobian)
    if agreement is not None and max(agreement[at] for at in maps) < LEAST_AGREEMENT:
        raise DepthscopeError(
            f"{file} is not a lens of {model.name}: its rows agree with the Jacobians of {model.name} on a text by a cosine of "
            f"{max(agreement[at] for at in maps):.2f} at most, expected {LEAST_AGREEMENT} or more at some depth. It is for "
            "other weights, or its matrices are transposed"
        )
    about = {"prompts": prompts if isinstance(prompts, int) else None, "dtype": _dtypes(maps)}
    about["agreement"] = agreement and [round(agreement[at], 4) if at in maps else None for at in range(depth)]
    return JacobianLens(model, jacobian, _config(model, file, found, JLENS, about, missing))


def jacobian_agreement(model: Model, jacobian: Float[Tensor, "depth d_model d_model"]) -> list[float]:
    """Cosine, for each depth, between rows of J and those of the model's own Jacobian on a window of text.

    Without the diagonal: most of it is the stream that is carried on, which all models have in common. 0 where J is 0.
    """
    rows = range(0, model.unembedding.weight.shape[1], max(1, model.unembedding.weight.shape[1] // ROWS))[:ROWS]
    ids = model.probe_ids(WINDOW)
    own = stream_jacobians(model, ids, min(SKIP, ids.shape[1] // 4), coordinates=rows)
    given = jacobian[:, list(rows)].to(own)
    for place, row in enumerate(rows):
        own[:, place, row] = given[:, place, row] = 0
    return torch.cosine_similarity(own.flatten(1), given.flatten(1)).tolist()


def _tuned(model: Model, file: Path, found: Unpickled) -> TunedLens:
    depth, width = model.depth, model.unembedding.weight.shape[1]
    weights = {name: one for name, one in found.tensors.items() if name.endswith("weight")}
    biases = {name: one for name, one in found.tensors.items() if name.endswith("bias")}
    _require_shapes(model, file, weights, (width, width))
    _require_shapes(model, file, biases, (width,))
    layers = {int(name.partition(".")[0]) for name in weights}
    if layers != set(range(depth)) or (biases and len(biases) != depth):
        raise DepthscopeError(
            f"{file} has {len(weights)} maps and {len(biases)} biases: expected {depth} of each, for the {depth} blocks of "
            f"{model.name}, or no biases"
        )
    recorded = _recorded(file.with_name(CONFIG))
    for name, here in (("d_model", width), ("num_hidden_layers", depth)):
        if recorded.get(name, here) != here:
            raise DepthscopeError(
                f"{file.with_name(CONFIG)} records {name} {recorded[name]!r}, {model.name} has {here}"
            )
    checked = _require_unembedding(model, file, recorded.get("unembed_hash"))
    dtype = parameter_dtype(model)
    matrix = torch.stack([weights[f"{layer}.weight"].to(dtype) for layer in range(depth)])
    none = torch.zeros(width, dtype=dtype)
    bias = torch.stack([biases.get(f"{layer}.bias", none).to(dtype) for layer in range(depth)])
    named = {name: recorded[name] for name in ("base_model_name_or_path", "base_model_revision") if name in recorded}
    about = {**named, "dtype": _dtypes(weights), "unembedding_checked": checked}
    return TunedLens(model, matrix, bias, _config(model, file, found, TUNED_LENS, about, []))


def _require_shapes(model: Model, file: Path, tensors: Mapping[str, Tensor], shape: tuple[int, ...]) -> None:
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != shape:
            raise DepthscopeError(
                f"{name} of {file} has the shape {list(tensor.shape)}: expected {list(shape)}, for {model.name} with a stream "
                f"of {shape[0]} coordinates"
            )
        if not all_finite([tensor]):
            raise DepthscopeError(f"{name} of {file} has NaN or infinity: expected finite numbers")


def _recorded(path: Path) -> dict[str, Any]:
    """The configuration of the tuned-lens package, where it is there."""
    content = read_json(path, DepthscopeError, most=MIB) if path.exists() else {}
    return content if isinstance(content, dict) else {}


def _require_unembedding(model: Model, file: Path, recorded: Any) -> bool:
    """Whether the unembedding was compared with the recorded hash. Raises DepthscopeError where it is another one.

    The package hashes what numpy prints of the matrix with one digit: its corners. Versions before 0.1.1 had other hashes.
    """
    if not isinstance(recorded, str) or model.facts.dtype not in ("float32", "float64"):
        return False
    weight = model.unembedding.weight.detach().cpu().float().numpy()
    own = hashlib.sha256(np.array_str(weight, precision=1).encode()).hexdigest()
    if own != recorded:
        raise DepthscopeError(
            f"{file} is a lens for another unembedding than that of {model.name}: its configuration has the hash "
            f"{printable(recorded)[:16]}…, this model's is {own[:16]}…"
        )
    return True


def _dtypes(tensors: Mapping[Any, Tensor]) -> str:
    return ", ".join(sorted({str(one.dtype).removeprefix("torch.") for one in tensors.values()}))


def _config(
    model: Model, file: Path, found: Unpickled, name: str, about: dict[str, Any], missing: list[int]
) -> dict[str, Any]:
    """What is recorded of a converted lens."""
    kind = {KIND: JacobianLens.kind} if name == JLENS else {}
    source = {"format": name, "file": printable(file.name), "bytes": found.size, "sha256": found.sha256, **about}
    lacking = {MISSING: missing} if missing else {}
    return {
        "format": FORMAT,
        **kind,
        "model": describe(model),
        **lacking,
        "published": {**source, "isolation": list(found.isolation)},
    }

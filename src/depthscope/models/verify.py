"""Is replay the model itself? The checks behind `depthscope verify`, run on a few tokens at every load."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from depthscope.errors import VerificationError
from depthscope.models.model import Model
from depthscope.models.packed import packed


@dataclass(frozen=True, slots=True)
class Check:
    """One check: what was compared, the largest absolute difference seen, and whether that passes."""

    name: str
    passed: bool
    difference: float | None
    detail: str


TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}
"""Largest difference in logits that counts as rounding; for other dtypes a hundredth of the largest logit."""


def verify(model: Model, ids: Tensor | None = None) -> list[Check]:
    """Compare replay with the model's own forward on `ids`, shaped [batch, seq] (a sentence by default).

    Raises NumericError, naming the weights, when the model's own logits hold NaN or infinity.
    """
    ids = model.probe_ids() if ids is None else ids
    with torch.inference_mode():
        own = model.hf(input_ids=ids, use_cache=False).logits.flatten(0, 1)
        model.require_finite(own)  # first: NaN differs from itself, and every check would fail without saying why
        entry = model.stack.enter(ids)
        residual = entry.residual
        for block in range(model.depth):
            residual = model.stack.call(block, residual, entry.arguments)
        hidden = model.unembedding.hidden(residual)
        middle = model.unembedding.vocabulary // 3
        slices = [
            model.unembedding.slice(hidden, 0, middle),
            model.unembedding.slice(hidden, middle, model.unembedding.vocabulary),
        ]
        return [
            _compare(
                "replay",
                model.unembedding.logits(hidden),
                own,
                "blocks 0 … L-1 and the head give the model's own logits",
            ),
            _compare("head in slices", torch.cat(slices, -1), own, "slices of the vocabulary give the same logits"),
            _causality(model, ids, own),
            *([_independence(model, ids)] if any(map(packed, model.hf.modules())) else []),
            _components(model),
        ]


def require_verified(model: Model) -> None:
    """Run `verify`; raise VerificationError with every check that failed."""
    failed = [check for check in verify(model) if not check.passed]
    if failed:
        lines = "\n".join(f"  {check.name}: {check.detail}" for check in failed)
        raise VerificationError(f"{model.name} cannot be studied, because replay is not the model itself:\n{lines}")


def _compare(name: str, ours: Tensor, own: Tensor, what: str) -> Check:
    difference = float((ours.double() - own.double()).abs().max())
    allowed = TOLERANCE.get(own.dtype, float(own.abs().max()) / 100)
    seen = "bit for bit" if difference == 0 else f"largest difference {difference:.2g}, allowed {allowed:.2g}"
    return Check(name, difference <= allowed, difference, f"{what}: {seen}")


def _causality(model: Model, ids: Tensor, own: Tensor) -> Check:
    """A causal model's logits do not change when a later token does."""
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % model.unembedding.vocabulary
    other = model.hf(input_ids=changed, use_cache=False).logits.flatten(0, 1)
    last = ids.shape[1] - 1
    keep = [i for i in range(own.shape[0]) if i % ids.shape[1] != last]
    what = "causal: earlier logits stay when the last token changes"
    return _compare("causality", other[keep], own[keep], what)


def _independence(model: Model, ids: Tensor) -> Check:
    """A window's logits do not depend on the other windows of its batch, as they would if those decided how inputs are rounded.

    Between two batches of one shape nothing but the other window differs, so that every product is computed alike.
    """
    rows = []
    for other in (ids.flip(1), (ids * 31 + 7) % model.known_tokens):
        rows.append(model.hf(input_ids=torch.cat([ids, other]), use_cache=False).logits[: len(ids)].flatten(0, 1))
    found = _compare(
        "independence", rows[0], rows[1], "quantised: a window's logits stay when another in the batch changes"
    )
    if found.passed:
        return found
    settings = getattr(model.hf.config, "quantization_config", None)
    threshold = getattr(settings, "llm_int8_threshold", 0)
    hint = f"; set llm_int8_threshold ({threshold}) to 0 in quantization_config" if threshold else ""
    return replace(found, detail=found.detail + hint)


def _components(model: Model) -> Check:
    found = model.components
    if found is None:
        return Check("components", True, None, "no separate attention and MLP: swap and drop only")
    passed = "bit for bit" if all(carried == 1 for carried in found.carried) else "times a constant"
    passed = "normalised" if any(carried is None for carried in found.carried) else passed
    detail = f"a block without {' and '.join(found.paths.values())} passes the residual stream on {passed}"
    return Check("components", True, 0.0, detail)

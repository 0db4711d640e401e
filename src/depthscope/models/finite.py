"""NaN and infinity: one rule for everything that runs a model. What is not finite is refused, with its place, never averaged.

Finding out costs one sum per tensor: a sum reads its terms once and writes nothing, and where it is finite all of them are.
Where it is not, the tensor itself decides, because the sum of large finite numbers may overflow. Logits of −inf, with which a
model masks entries of its vocabulary, are not looked at here: what is computed from them is.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from depthscope.errors import NumericError
from depthscope.models.model import Model
from depthscope.models.packed import parts
from depthscope.shapes import Residual, TokenIds

Named = Callable[[int], str]
"""What a row of a batch is, for messages: `window 2 of document 5`."""
REMEDY = (
    "Expected finite numbers. Leave that text out, or use another --dtype: float16 overflows above 65,504, bfloat16 and "
    "float32 do not. If no dtype helps, the weights are damaged"
)


def window_of_batch(row: int) -> str:
    """The name of a row where nothing more is known of it."""
    return f"window {row} of the batch"


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether there is neither NaN nor infinity in the tensors, which are on one device. Waits for it once."""
    sums = [tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32)) for tensor in tensors]
    if not sums or bool(torch.isfinite(torch.stack(sums)).all()):
        return True
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def first_row(tensor: Tensor) -> int | None:
    """The first row of a batch that holds NaN or infinity; None if there is none."""
    broken = (~torch.isfinite(tensor)).flatten(1).any(1).nonzero()
    return int(broken[0]) if len(broken) else None


def after(depth: int) -> str:
    """Where a residual stream comes from: the embedding, or the block before it."""
    return "from the embedding, before block 0" if depth == 0 else f"from block {depth - 1} on"


def require_finite_streams(
    model: Model, streams: Sequence[Residual], named: Named = window_of_batch, first: int = 0
) -> None:
    """Raise NumericError, naming the first depth that is not finite and its first window, unless all streams are.

    `streams` are residual streams of a batch at successive depths, from depth `first` on.
    """
    if all_finite(streams):
        return
    for depth, stream in enumerate(streams, first):
        _require_finite(model, stream, depth, named)


def require_finite_run(model: Model, ids: TokenIds, named: Named = window_of_batch) -> None:
    """The same of the unmodified model on `ids`, which are run for it: to name the place once something is not finite."""
    with torch.inference_mode():
        entry = model.stack.enter(ids)
        stream = entry.residual
        _require_finite(model, stream, 0, named)
        for block in range(model.depth):
            stream = model.stack.call(block, stream, entry.arguments)
            _require_finite(model, stream, block + 1, named)


def _require_finite(model: Model, stream: Residual, depth: int, named: Named) -> None:
    if (row := first_row(stream)) is not None:
        raise NumericError(
            f"{model.name} has NaN or infinity in the residual stream {after(depth)}, in {named(row)}. {REMEDY}"
        )


def require_finite_weights(model: Model, block: int | None, weights: Sequence[Tensor], what: str) -> None:
    """Raise NumericError, naming the block, unless weights that are read by themselves are finite."""
    held = [part for weight in weights for _, part in parts("", weight)]
    if not all_finite([one for one in held if one.is_floating_point() and one.dtype.itemsize > 1]):
        where = "" if block is None else f" of block {block}"
        raise NumericError(
            f"{model.name} has NaN or infinity in {what}{where}: expected finite weights. Load them in another --dtype, or "
            "from another copy"
        )

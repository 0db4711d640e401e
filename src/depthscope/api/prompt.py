"""One text: the logits of an edited model, and a lens."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from depthscope.api.inputs import ids_of, model_of
from depthscope.edit_registry import Edit, as_edit, route_of
from depthscope.engine.execute import run_route
from depthscope.errors import NumericError
from depthscope.experiments.lenses import Lens, make_lens
from depthscope.experiments.prompt_lens import prompt_lens
from depthscope.models.finite import REMEDY, all_finite
from depthscope.models.memory import memory_errors
from depthscope.models.model import Model
from depthscope.routes import Route
from depthscope.schema.lens import JACOBIAN, TUNED


@memory_errors("compute logits", "Use a shorter text, or load the model with stream='yes' or in another dtype")
def logits(
    model: Model | str, text: str | Sequence[Any] | Tensor, edit: Edit | Route | str | None = None
) -> Float[Tensor, "batch seq vocab"]:
    """Logits of an edited model, shaped [batch, seq, vocab], in the model's dtype.

    `text` is a text (truncated, with a warning, to the model's context) or token ids shaped [seq] or [batch, seq]; no special
    tokens are added. `edit` is an Edit, text such as "swap(3) | drop_mlp(7)", a Route, or None for the unmodified model.
    `model` may be a name or folder as for `load`. Raises NumericError, with route and block, for NaN or infinity.
    """
    edit, model = as_edit(edit or Edit()), model_of(model)
    route = route_of(edit, model.depth)
    model.check_route(route)
    ids = ids_of(model, text)
    with torch.inference_mode():
        residual = run_route(model, route, ids)
        found = model.unembedding.logits(model.unembedding.hidden(residual)).unflatten(0, ids.shape)
        # By the largest: a model may mask entries of its vocabulary with −inf.
        if not all_finite([found.amax(-1)]):
            raise NumericError(
                f"NaN or infinity in the logits of {model.name} on the route {route.name!r}, although the residual stream is "
                f"finite. {REMEDY}"
            )
        return found


@memory_errors("compute a lens", "Use a shorter text, or load the model with stream='yes'")
def lens(
    model: Model | str,
    text: str | Sequence[Any] | Tensor,
    top: int = 5,
    lens: str | Lens = "logit",
    *,
    tuned_lens: str | Path | None = None,
    jacobian_lens: str | Path | None = None,
) -> pl.DataFrame:
    """A lens on one text: the `top` most likely next tokens at every position and depth, one row each.

    Columns: position, token (of the text), layer (l is before block l, L after the last), kl to the final distribution
    and entropy in nats, rank, predicted, predicted_id, probability. `text` is as for `logits`; `lens` is the name of a lens
    (logit, frozen_scale, tuned, jacobian, or a registered one) or a Lens. `tuned_lens` and `jacobian_lens` are the directories
    of fitted lenses, which `tuned` and `jacobian` need.
    """
    model = model_of(model)
    directories = {TUNED: tuned_lens, JACOBIAN: jacobian_lens}
    directory = directories.get(lens) if isinstance(lens, str) else None
    return prompt_lens(model, ids_of(model, text), top, make_lens(lens, model, directory))

"""Jacobians of the last residual stream with respect to the earlier ones, summed over later positions, in reverse mode.

With one coordinate's cotangent set to 1 at every position of the last stream, the gradient at position t of an earlier stream
is the sum of the derivatives at t and at all later positions, since a causal model's earlier positions do not depend on it. So
one backward pass per coordinate gives a row of the Jacobians of all depths and positions at once. Several coordinates are
computed together, each on a copy of the window.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from depthscope.errors import UnsupportedError
from depthscope.models.memory import short_of_memory
from depthscope.models.model import Model
from depthscope.models.state import copied
from depthscope.routes import Step
from depthscope.shapes import Residual, TokenIds

AT_ONCE = 512
"""Positions of the copies of a window that are computed together, but at least one copy."""

Jacobians = Float64[Tensor, "depth d_model d_model"]
JacobianRows = Float64[Tensor, "depth rows d_model"]


def require_gradients(model: Model) -> None:
    """Raise UnsupportedError for a model whose weights are not all in memory when a gradient goes back through them."""
    if model.stack.streamed:
        raise UnsupportedError(
            f"{model.name} is streamed, and the Jacobian lens needs all of its weights in memory: use --stream no"
        )


def stream_jacobians(
    model: Model, ids: TokenIds, skip: int = 0, at_once: int = AT_ONCE, coordinates: Sequence[int] | None = None
) -> JacobianRows:
    """J_l = mean over positions t ≥ `skip` of Σ_{t' ≥ t} ∂x_{L,t'}/∂x_{l,t} for one window, l = 0 … L−1.

    `ids` is shaped [1, seq]. `coordinates` are those of the last stream whose rows are computed, one backward pass each: all by
    default. Gradients have the dtype of the model, and are added in float64. Weights are constants; in a model with experts so
    is their choice. Raises UnsupportedError where the model is streamed or torch cannot differentiate it.
    """
    require_gradients(model)
    width = model.unembedding.weight.shape[1]
    chosen = torch.arange(width) if coordinates is None else torch.tensor(coordinates)
    copies = min(len(chosen), max(1, at_once // ids.shape[1]))
    try:
        # Tensors made in inference mode cannot be differentiated, so it is left, whoever calls.
        with torch.inference_mode(False), torch.enable_grad():
            found = torch.zeros(model.depth, len(chosen), width, dtype=torch.float64, device=model.device)
            *sources, last = _streams(model, ids.to(model.device).clone().repeat(copies, 1))
            for start in range(0, len(chosen), copies):
                part = chosen[start : start + copies].clone().to(last.device)
                cotangent = torch.zeros_like(last)
                cotangent[torch.arange(len(part), device=last.device), :, part] = 1
                again = start + copies < len(chosen)
                gradients = torch.autograd.grad(last, sources, cotangent, retain_graph=again)
                for of_depth, gradient in zip(found, gradients, strict=True):
                    of_depth[start : start + len(part)] = gradient[: len(part), skip:].double().mean(1)
    except RuntimeError as error:
        if short_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
        raise UnsupportedError(
            f"{model.name} ({model.family}): torch cannot differentiate its blocks ({reason}), which the Jacobian lens needs; "
            "the logit lens and the tuned lens do not"
        ) from error
    return found


def _streams(model: Model, ids: TokenIds) -> list[Residual]:
    """x_0 … x_L with the graph that connects them, from a leaf at x_0."""
    with torch.no_grad():
        entry = model.stack.enter(ids)
    streams, state = [entry.residual.detach().clone().requires_grad_()], copied(entry.state)
    for block in range(model.depth):
        state = copied(state)
        streams.append(model.visit(Step(block), streams[-1], entry.arguments, state))
    return streams

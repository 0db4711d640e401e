"""The final norm with its scale frozen: what the unembedding reads of an edited stream, divided by the unmodified one's scale.

A LayerNorm or RMSNorm gives n(x) = γ ⊙ c(x) / s(x) + β, where c takes the mean out (LayerNorm) or nothing (RMSNorm), and s(x)
is the root mean square of c(x), with the norm's epsilon. With s frozen at the unmodified stream x₀, an edited stream x gives

    γ ⊙ c(x) / s(x₀) + β = n(x₀) + γ ⊙ c(x − x₀) / s(x₀),

which is the norm's own output where x = x₀. As in Stolfo et al. 2024, only the scale is frozen: a LayerNorm still takes the
mean of the edited stream out. 1 / s(x₀) is read off the module's own output by least squares over the features, so the epsilon
need not be known.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from depthscope.engine.baseline import Baseline
from depthscope.errors import UnsupportedError
from depthscope.models.model import Model
from depthscope.models.weights import norm_affine
from depthscope.shapes import Hidden, Residual

PROBE_TOKENS = 16
TOLERANCE = 32
"""Rounding errors, of the dtype and relative to the largest output, by which the norm may differ from the form above."""


@dataclass(frozen=True, slots=True)
class FrozenScale:
    """The norm's output and the reciprocal of its scale at every position of an unmodified stream."""

    residual: Residual
    normed: Residual
    inverse: Float[Tensor, "batch seq one"]


class FrozenNorm:
    """The final norm of a model. Raises UnsupportedError, by name, unless a single LayerNorm or RMSNorm stands between the last
    block and the unembedding, and its output has the form above on a probe text."""

    def __init__(self, model: Model) -> None:
        head = model.unembedding
        named = ", ".join(type(module).__name__ for module in head.modules) or "nothing"
        if len(head.modules) != 1 or isinstance(head.modules[0], nn.Linear):
            raise UnsupportedError(
                f"{model.name}: a frozen scale needs a single norm between the last block and the unembedding, found {named}"
            )
        self.head, self.norm = head, head.modules[0]
        try:
            self.affine = norm_affine(self.norm, head.weight.shape[1])
        except UnsupportedError as error:
            raise UnsupportedError(f"{model.name}: the scale of the final norm cannot be frozen: {error}") from error
        ids = model.probe_ids(PROBE_TOKENS)
        with model.measuring():
            self._check(model, Baseline(model, ids, ids).residuals[-1])

    def freeze(self, own: Residual) -> FrozenScale:
        """The scales of an unmodified stream."""
        normed = self.norm(own)
        centred = self._scaled(own.float())
        shown = ((normed.float() - self.affine.shift) * centred).sum(-1, keepdim=True)
        squares = centred.square().sum(-1, keepdim=True)
        inverse = torch.where(squares > 0, shown / squares, torch.zeros_like(squares))  # a constant stream has no scale
        return FrozenScale(own, normed, inverse)

    def hidden(self, frozen: FrozenScale, edited: Residual) -> Hidden:
        """What the unembedding reads of an edited stream if the norm keeps the scales, one row per position."""
        change = self._scaled(edited.float() - frozen.residual.float()) * frozen.inverse
        return self.head.scale((frozen.normed.float() + change).to(frozen.normed.dtype)).flatten(0, 1)

    def _scaled(self, residual: Float[Tensor, "batch seq d_model"]) -> Float[Tensor, "batch seq d_model"]:
        """γ ⊙ c(x)."""
        if self.affine.centring:
            residual = residual - residual.mean(-1, keepdim=True)
        return residual * self.affine.scale.to(residual.device)

    def _check(self, model: Model, own: Residual) -> None:
        frozen = self.freeze(own)
        made = self._scaled(own.float()) * frozen.inverse + self.affine.shift
        worst, largest = float((made - frozen.normed.float()).abs().max()), float(frozen.normed.float().abs().max())
        allowed = TOLERANCE * torch.finfo(own.dtype).eps * largest
        if not worst <= allowed:
            raise UnsupportedError(
                f"{model.name}: the scale of the final norm ({type(self.norm).__name__}) cannot be frozen: on a probe text its "
                f"output differs from scale, centring and shift by {worst:.2g}, expected at most {allowed:.2g}"
            )

"""The Jacobian lens (Gurnee et al. 2026): at each depth the mean Jacobian of the last residual stream, then final norm and
unembedding.

At depth l < L the stream x becomes J_l x, with J_l the mean over windows and positions t of Σ_{t' ≥ t} ∂x_{L,t'}/∂x_{l,t}
(`fit_jacobian`): what a change of x makes the model say here and later, to first order. Nothing is trained. After the last
block it is the identity. On disk it is a directory like that of the tuned lens (`tuned_lens`):

    params.safetensors   jacobian [L, d_model, d_model]
    config.json          the model, the text, the recipe, how the fit went; `lens` is "jacobian"
"""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from depthscope.experiments.tuned_lens import FittedLens
from depthscope.models.model import Model
from depthscope.schema.lens import JACOBIAN, LENSES
from depthscope.shapes import Residual


class JacobianLens(FittedLens):
    """Mean Jacobians for depths 0 … L−1 of a model. A Lens.

    `jacobian` is float32, or float64 for a float64 model; row i is the gradient of coordinate i of the last stream.
    """

    kind, called = JACOBIAN, LENSES[JACOBIAN].called

    def __init__(
        self, model: Model, jacobian: Float[Tensor, "depth d_model d_model"], config: dict[str, Any] | None = None
    ) -> None:
        super().__init__(model, config)
        self.jacobian = jacobian.to(model.device)

    def moved(self, stream: Residual, depth: int) -> Residual:
        """J_l x."""
        return stream @ self.jacobian[depth].T

    @property
    def tensors(self) -> dict[str, Tensor]:
        """J of all depths."""
        return {"jacobian": self.jacobian}

    @classmethod
    def shapes(cls, model: Model) -> dict[str, tuple[int, ...]]:
        """[depth, d_model, d_model]."""
        width = model.unembedding.weight.shape[1]
        return {"jacobian": (model.depth, width, width)}

"""Sums over the training text from which the tuned lens starts: least squares, and the scales of the streams' coordinates."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from depthscope.models.model import Model

Matrices = Float[Tensor, "depth d_model d_model"]
Vectors = Float[Tensor, "depth d_model"]
Positions = Float[Tensor, "tokens d_model"]


@dataclass(frozen=True, slots=True)
class Coordinates:
    """Standardised coordinates: z = (x_l − centre) / spread, and a map's output in units of x_L's standard deviations.

    In them a map is x_l → x_l + final_spread · (M_l z + c_l).
    """

    centre: Vectors
    spread: Vectors
    final_spread: Float[Tensor, " d_model"]

    def moved(self, depth: int, stream: Positions, matrix: Matrices, bias: Vectors) -> tuple[Positions, Positions]:
        """z and the stream after the depth's map, in the dtype of the map."""
        stream = stream.to(matrix.dtype)
        standard = (stream - self.centre[depth]) / self.spread[depth]
        return standard, stream + self.final_spread * (standard @ matrix[depth].T + bias[depth])

    def plain(self, matrix: Matrices, bias: Vectors) -> tuple[Matrices, Vectors]:
        """A_l and b_l of x_l → x_l + A_l x_l + b_l, exactly 0 where M_l and c_l are."""
        whole = self.final_spread[:, None] * matrix / self.spread[:, None]
        return whole, self.final_spread * bias - (whole @ self.centre[..., None])[..., 0]


@dataclass(slots=True)
class LensSums:
    """Σ w, Σ w a, Σ w a aᵀ and Σ w a rᵀ for each depth, in float64, with a = x_l − shift_l and r = (x_L − shift_L) − a.

    The weight w of a position is d_model / |x_L|². Shifts are the means of the first positions: sums of numbers far from 0
    would lose the digits in which their spread lies.
    """

    shift: Float64[Tensor, "depths d_model"]
    moments: Float64[Tensor, "depth d_model_1 two_d_model_1"]
    """Σ w [a, 1]ᵀ [a, 1, r]."""
    final: Float64[Tensor, "2 d_model"]
    """Σ w (x_L − shift_L), and of its squares."""
    tokens: int

    @classmethod
    def empty(cls, model: Model) -> "LensSums":
        """Sums over nothing."""
        depth, width = model.depth, model.unembedding.weight.shape[1]
        shapes = (depth + 1, width), (depth, width + 1, 2 * width + 1), (2, width)
        shift, moments, final = (torch.zeros(shape, dtype=torch.float64, device=model.device) for shape in shapes)
        return cls(shift, moments, final, 0)

    def add(self, streams: Sequence[Positions]) -> None:
        """Add positions, given the streams x_0 … x_L at them."""
        exact = torch.float64 if streams[-1].dtype == torch.float64 else torch.float32
        wide = [stream.to(exact) for stream in streams]
        if self.tokens == 0:
            self.shift = torch.stack([stream.double().mean(0) for stream in wide])
        weight = wide[-1].shape[1] / wide[-1].square().sum(-1, keepdim=True)
        one = torch.ones_like(weight)
        shift = self.shift.to(exact)
        final = wide[-1] - shift[-1]
        for depth, stream in enumerate(wide[:-1]):
            a = stream - shift[depth]
            self.moments[depth] += (torch.cat([a, one], 1) * weight).T @ torch.cat([a, one, final - a], 1)
        self.final += torch.stack([(weight * final).sum(0), (weight * final.square()).sum(0)])
        self.tokens += len(final)

    def solved(self, dtype: torch.dtype) -> tuple[Coordinates, Matrices, Vectors]:
        """The coordinates, and M and c of least squares with a ridge of d_model / tokens on the correlation matrix."""
        width = self.final.shape[1]
        total = self.moments[:, width, width]
        mean = self.moments[:, :width, width] / total[:, None]
        mean_out = self.moments[:, width, width + 1 :] / total[:, None]
        covariance = self.moments[:, :width, :width] / total[:, None, None] - mean[:, :, None] * mean[:, None]
        cross = self.moments[:, :width, width + 1 :] / total[:, None, None] - mean[:, :, None] * mean_out[:, None]
        spread = _root(covariance.diagonal(dim1=1, dim2=2))
        first, second = self.final / total[0]
        final_spread = _root((second - first**2)[None])[0]
        correlation = covariance / spread[:, :, None] / spread[:, None]
        ridge = torch.eye(width, dtype=torch.float64, device=mean.device) * (width / self.tokens)
        matrix = torch.linalg.solve(correlation + ridge, cross / spread[:, :, None]).mT / final_spread[:, None]
        bias = (mean_out + self.shift[-1] - self.shift[:-1]) / final_spread
        coordinates = Coordinates(*(part.to(dtype) for part in (mean + self.shift[:-1], spread, final_spread)))
        return coordinates, matrix.to(dtype), bias.to(dtype)


def _root(variance: Float64[Tensor, "depth d_model"]) -> Float64[Tensor, "depth d_model"]:
    """Standard deviations, none below a thousandth of the depth's root mean variance: a constant coordinate says nothing."""
    least = 1e-6 * variance.mean(-1, keepdim=True).clamp(min=1e-30)
    return variance.clamp(min=0).maximum(least).sqrt()

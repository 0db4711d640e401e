"""Affine maps from each block's input to its output by least squares, in closed form from sums over the text.

With a = x_l and w = x_{l+1} − x_l, the stream before block l and what the block writes, one pass over the text adds up Σ a,
Σ a aᵀ and Σ a wᵀ of every block: d_model × 2 d_model numbers, whatever the number of tokens. From them follow the map

    x → x + w̄ + (x − x̄) M,    M = argmin Σ ‖w − w̄ − (a − x̄) M‖²,

and its squared error. The maps from x_l to x_{l+1} and to the write have the same residuals, so one of them gives both scores;
they differ in what the error is divided by. All in float64.

The ridge is RIDGE on the correlation matrix of a: it determines M in directions that the text never uses and changes nothing
elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from depthscope.models.memory import require_memory
from depthscope.models.model import Model
from depthscope.shapes import Residual

RIDGE = 1e-8
VARIANTS = 2
"""Maps fitted on all positions, and on all but the first of each window: ON_ALL and ON_LATER."""
ON_ALL, ON_LATER = range(VARIANTS)
_FIRST, _LATER = range(2)
"""Groups of positions that are summed apart."""
ERROR, STREAM_SPREAD, WRITE_SPREAD = range(3)
"""In `LinearMaps.fitted`: mean squares per token of the residual, and of x_{l+1} and the write about their means."""


@dataclass(slots=True)
class LinearSums:
    """The sums, apart for the first position of each window and the later ones, with streams relative to `shift`.

    Shifts are the means of the first windows: sums of numbers far from 0 would lose the digits in which their spread lies.
    """

    shift: Float64[Tensor, "depths d_model"]
    totals: Float64[Tensor, "2 depths d_model"]
    """Σ a_l."""
    products: Float64[Tensor, "2 depth d_model two_d_model"]
    """Σ a_l [a_l, w_l]ᵀ."""
    squares: Float64[Tensor, "2 2 depth"]
    """Σ ‖a_{l+1}‖² and Σ ‖w_l‖²."""
    tokens: Int64[Tensor, "2"]

    @classmethod
    def empty(cls, model: Model) -> "LinearSums":
        """Sums over nothing. Raises MemoryShortError where there is no memory for them."""
        depth, width = model.depth, model.unembedding.weight.shape[1]
        if model.device.type == "cpu":
            needed = 2 * depth * width * 2 * width * 8
            what = f"sums of {depth} blocks of {width} coordinates for their affine maps"
            require_memory(needed, what, "Leave the experiment linearity out")
        shapes = (depth + 1, width), (2, depth + 1, width), (2, depth, width, 2 * width), (2, 2, depth)
        sums = (torch.zeros(shape, dtype=torch.float64, device=model.device) for shape in shapes)
        return cls(*sums, tokens=torch.zeros(2, dtype=torch.int64))

    def add(self, streams: Sequence[Residual]) -> None:
        """Add windows, given the streams x_0 … x_L."""
        if not self.tokens.any():
            self.shift = torch.stack([stream.double().mean((0, 1)) for stream in streams])
        for group, part in ((_FIRST, slice(0, 1)), (_LATER, slice(1, None))):
            before = streams[0][:, part].double().flatten(0, 1) - self.shift[0]
            for depth in range(len(streams) - 1):
                after = streams[depth + 1][:, part].double().flatten(0, 1) - self.shift[depth + 1]
                write = after - before
                self.totals[group, depth] += before.sum(0)
                self.products[group, depth] += before.T @ torch.cat([before, write], 1)
                self.squares[group, 0, depth] += after.square().sum()
                self.squares[group, 1, depth] += write.square().sum()
                before = after
            self.totals[group, -1] += before.sum(0)
            self.tokens[group] += len(before)

    def solved(self, dtype: torch.dtype) -> "LinearMaps":
        """The maps, in `dtype`, and how well they fit."""
        tokens = torch.stack([self.tokens.sum(), self.tokens[_LATER]])
        depth = self.products.shape[1]
        maps = [[self._solved(variant, block) for block in range(depth)] for variant in range(VARIANTS)]
        matrix, fitted = (
            torch.stack([torch.stack([one[part] for one in row]) for row in maps]).to(kind)
            for part, kind in ((0, dtype), (1, torch.float64))
        )
        means = torch.stack([self._means(variant) for variant in range(VARIANTS)])
        write = (means.diff(dim=1) + self.shift.diff(dim=0)).to(dtype)
        return LinearMaps((means + self.shift)[:, :-1].to(dtype), write, matrix, fitted.cpu(), tokens)

    def _of(self, sums: Tensor, variant: int) -> Tensor:
        return sums[_LATER] if variant == ON_LATER else sums.sum(0)

    def _means(self, variant: int) -> Float64[Tensor, "depths d_model"]:
        return self._of(self.totals, variant) / self._of(self.tokens, variant).to(self.totals.device)

    def _solved(self, variant: int, block: int) -> tuple[Float64[Tensor, "d_model d_model"], Float64[Tensor, "3"]]:
        """M of a block, and its entry of `fitted`."""
        count = float(self._of(self.tokens, variant))
        mean, after = self._means(variant)[block : block + 2]
        products = self._of(self.products[:, block], variant) / count
        both = torch.cat([mean, after - mean])
        covariance, cross = (products - mean[:, None] * both).split(len(mean), 1)
        spread = _root(covariance.diagonal())
        correlation = covariance / spread[:, None] / spread
        correlation.diagonal().add_(RIDGE)
        matrix = torch.linalg.solve(correlation, cross / spread[:, None]) / spread[:, None]
        of_stream, of_write = self._of(self.squares[:, :, block], variant) / count
        stream_spread = of_stream - after.square().sum()
        write_spread = of_write - (after - mean).square().sum()
        error = write_spread - 2 * (matrix * cross).sum() + (matrix * (covariance @ matrix)).sum()
        return matrix, torch.stack([error, stream_spread, write_spread]).clamp(min=0)


@dataclass(frozen=True, slots=True)
class LinearMaps:
    """x → x + write + (x − centre) matrix for each block, for both VARIANTS."""

    centre: Float[Tensor, "variants depth d_model"]
    write: Float[Tensor, "variants depth d_model"]
    matrix: Float[Tensor, "variants depth d_model d_model"]
    fitted: Float64[Tensor, "variants depth 3"]
    """Mean squares on the text that the maps were fitted on: ERROR, STREAM_SPREAD, WRITE_SPREAD."""
    tokens: Int64[Tensor, " variants"]
    """Tokens of that text."""

    def written(self, variant: int, block: int, stream: Residual) -> Residual:
        """What the map of a block adds to the stream before it, in the maps' dtype."""
        standard = stream.to(self.matrix.dtype) - self.centre[variant, block]
        return standard @ self.matrix[variant, block] + self.write[variant, block]

    def after(self, variant: int, block: int, stream: Residual) -> Residual:
        """The stream after the block by its map, in the dtype of the stream before it."""
        return (stream.to(self.matrix.dtype) + self.written(variant, block, stream)).to(stream.dtype)


def _root(variance: Float64[Tensor, " d_model"]) -> Float64[Tensor, " d_model"]:
    """Standard deviations, none below a millionth of their root mean square: a constant coordinate says nothing."""
    least = 1e-12 * variance.mean().clamp(min=1e-30)
    return variance.clamp(min=0).maximum(least).sqrt()

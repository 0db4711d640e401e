"""The distribution of the cosines of output weights with a whole vocabulary, streamed over the vocabulary.

For a neuron with output weight w and the unembedding's rows u_v (vocabulary size V), the cosines are c_v = ŵ·û_v with
ŵ = w/‖w‖ and û_v = u_v/‖u_v‖. Directions are kept as d_v = û_v − mean û, so that ŵ·d_v is a cosine minus the neuron's mean
cosine, and central moments need no differences of large sums:

    mean      ŵ · mean(û)                      closed form
    variance  m₂ = ŵᵀ (Σ d_v d_vᵀ / V) ŵ       closed form, from one d_model × d_model matrix
    skew      m₃ / m₂^1.5, m₃ = Σ (ŵ·d_v)³ / V  streamed
    kurtosis  m₄ / m₂²,    m₄ = Σ (ŵ·d_v)⁴ / V  streamed; raw, 3 for a normal distribution

These are population moments (divided by V, not V − 1), as in Gurnee et al. 2024 (arXiv:2401.12181). Only one
tile of neurons × vocabulary is in memory at a time: products in float32, sums over tiles in float64.

A weight of zero has no direction: its cosines are set to 0, and so are those of a row of zeros of the unembedding. If all
cosines of a neuron are equal up to float32 rounding (`CONSTANT`), skew and kurtosis do not exist and are NaN.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

TILES = {"cpu": (1024, 1024), "accelerator": (8192, 8192)}
"""Neurons and vocabulary entries of a tile. On a CPU two tiles of float32 should stay in the cache."""
ROWS_AT_ONCE = 4096
"""Vocabulary entries converted to float64 at a time."""
FEW_AT_ONCE = 32
"""Rows whose cosines with the whole vocabulary are in memory at once in `moments_of_few`."""
CONSTANT = 1e-14
"""A variance of cosines below this is that of equal numbers rounded to float32 (2⁻²⁴ squared, times a small factor)."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The quantities with a closed form, one number per neuron, float64 on the CPU."""

    norm: Float64[Tensor, " neurons"]
    """‖w‖."""
    mean: Float64[Tensor, " neurons"]
    """Mean cosine."""
    variance: Float64[Tensor, " neurons"]
    """Variance of the cosines."""
    effect_variance: Float64[Tensor, " neurons"]
    """Variance over the vocabulary of the logit effect u_v·w, in squared logits per squared unit of activation."""


@dataclass(frozen=True, slots=True)
class Moments(Spread):
    """The first four moments, one number per neuron, float64 on the CPU."""

    skew: Float64[Tensor, " neurons"]
    kurtosis: Float64[Tensor, " neurons"]


class VocabularyDirections:
    """An unembedding prepared for moments: centred unit directions, and roots of the two covariance matrices.

    Uses memory for one float32 copy of the unembedding and twice d_model² numbers; `unembedding` itself is not kept.
    """

    def __init__(self, unembedding: Float[Tensor, "vocab d_model"]) -> None:
        self.size = len(unembedding)
        self._directions = unit_rows(unembedding)
        self.mean = self._directions.sum(0, dtype=torch.float64) / self.size
        self._directions -= self.mean.to(self._directions)
        row_mean = unembedding.sum(0, dtype=torch.float64) / self.size
        self._root = _covariance_root(self._directions, torch.zeros_like(row_mean))
        self._effect_root = _covariance_root(unembedding, row_mean)

    def spread(self, w_out: Float[Tensor, "neurons d_model"]) -> Spread:
        """Norm, mean, variance and effect variance of each neuron, without a pass over the vocabulary."""
        unit = unit_rows(w_out)
        return Spread(
            _lengths(w_out).cpu(),
            (unit.double() @ self.mean).cpu(),
            _lengths(unit @ self._root.T).square().cpu(),
            _lengths(w_out @ self._effect_root.T).square().cpu(),
        )

    def moments(self, w_out: Float[Tensor, "neurons d_model"]) -> Moments:
        """All four moments of each neuron, in one pass over the vocabulary."""
        spread = self.spread(w_out)
        cubes, fourths = self.power_sums(unit_rows(w_out))
        variance = spread.variance.where(spread.variance > CONSTANT, torch.nan)
        return Moments(
            spread.norm,
            spread.mean,
            spread.variance,
            spread.effect_variance,
            skew=cubes / self.size / variance**1.5,
            kurtosis=fourths / self.size / variance**2,
        )

    def power_sums(
        self, unit: Float[Tensor, "neurons d_model"]
    ) -> tuple[Float64[Tensor, " neurons"], Float64[Tensor, " neurons"]]:
        """Σ x³ and Σ x⁴ over the vocabulary, where x is a cosine minus its neuron's mean, for weights of length 1."""
        neurons, entries = TILES["cpu" if unit.device.type == "cpu" else "accelerator"]
        sums = torch.zeros(2, len(unit), dtype=torch.float64, device=unit.device)
        tile = min(neurons, len(unit)) * min(entries, self.size)
        buffers = torch.empty(
            2, tile, dtype=unit.dtype, device=unit.device
        )  # allocated once: new pages cost more than the sums
        for low in range(0, self.size, entries):
            columns = self._directions[low : low + entries].T
            for start in range(0, len(unit), neurons):
                rows = unit[start : start + neurons]
                shape = (len(rows), columns.shape[1])
                x, squares = (buffer[: shape[0] * shape[1]].view(shape) for buffer in buffers)
                torch.mm(rows, columns, out=x)
                torch.mul(x, x, out=squares)
                sums[0, start : start + neurons] += torch.linalg.vecdot(squares, x)
                sums[1, start : start + neurons] += torch.linalg.vecdot(squares, squares)
        return sums[0].cpu(), sums[1].cpu()

    def cosines(self, w_out: Float[Tensor, "neurons d_model"]) -> Float[Tensor, "neurons vocab"]:
        """The cosines, float32, for a few neurons: all of them are in memory."""
        unit = unit_rows(w_out)
        return unit @ self._directions.T + (unit @ self.mean.to(unit))[:, None]


def moments_of_few(
    rows: Float[Tensor, "rows d_model"], directions: Float[Tensor, "vocab d_model"]
) -> tuple[Float64[np.ndarray, " rows"], Float64[np.ndarray, " rows"]]:
    """Raw kurtosis and skew, over the vocabulary, of the cosines of each row with `directions`, which have unit length.

    The same numbers as `VocabularyDirections.moments`, up to float32 rounding, but computed by definition in float64 and
    without preparing the vocabulary: for a few hundred rows. A row of zeros has kurtosis and skew 0.
    """
    kurtosis, skew = np.zeros(len(rows)), np.zeros(len(rows))
    for start in range(0, len(rows), FEW_AT_ONCE):
        part = slice(start, start + FEW_AT_ONCE)
        values = (rows[part] @ directions.T).double()
        values -= values.mean(1, keepdim=True)
        spread = values.square().mean(1, keepdim=True).sqrt()
        values /= torch.where(spread > 0, spread, 1.0)
        kurtosis[part], skew[part] = (values.pow(power).mean(1).cpu().numpy() for power in (4, 3))
    return kurtosis, skew


def _covariance_root(
    rows: Float[Tensor, "vocab d_model"], mean: Float64[Tensor, " d_model"]
) -> Float[Tensor, "d_model d_model"]:
    """R with RᵀR = Σ (row − mean)(row − mean)ᵀ / V, summed in float64, returned in float32.

    A standard deviation is then the length ‖R w‖: no difference of large numbers, so the error in float32 is about 10⁻⁷ of
    the largest standard deviation that any w of that length can have. It also resolves neurons that hardly distinguish tokens.
    """
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64, device=rows.device)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        centred = rows[start : start + ROWS_AT_ONCE].double() - mean
        covariance += centred.T @ centred / len(rows)
    # Not Cholesky: with a vocabulary smaller than d_model, or equal rows, eigenvalues are 0, or negative by rounding.
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()).T.float().contiguous()


def _lengths(rows: Float[Tensor, "rows d_model"]) -> Float64[Tensor, " rows"]:
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)


def unit_rows(weights: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows d_model"]:
    """Rows divided by their length; a row of zeros stays zero."""
    norm = weights.norm(dim=1, keepdim=True)
    return weights / norm.where(norm > 0, 1.0)


def group_sums(
    rows: Float[Tensor, "vocab d_model"], member: Bool[Tensor, "groups vocab"]
) -> Float64[Tensor, "groups d_model"]:
    """For each group of vocabulary entries, the sum of its rows minus the mean of all rows, float64, on the rows' device."""
    mean = rows.sum(0, dtype=torch.float64) / len(rows)
    sums = torch.zeros(len(member), rows.shape[1], dtype=torch.float64, device=rows.device)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        stop = start + ROWS_AT_ONCE
        sums += member[:, start:stop].to(rows.device, torch.float64) @ (rows[start:stop].double() - mean)
    return sums


def group_separation(
    w_out: Float[Tensor, "neurons d_model"],
    sums: Float64[Tensor, "groups d_model"],
    sizes: Float64[Tensor, " groups"],
    spread: Spread,
    entries: int,
) -> tuple[Float64[Tensor, "neurons groups"], Float64[Tensor, "neurons groups"]]:
    """How well each neuron's logit effect separates each group of vocabulary entries from the rest.

    (η², d): η² is the share of the effect's variance that lies between group and rest (the correlation ratio of a two-group
    split); d is the group's mean effect minus the rest's, in standard deviations of the effect over the vocabulary. With S
    the sum over a group of n of V entries, as `group_sums` returns it, S·w is the sum of centred effects, so that

        d = (S·w) V / (n (V − n)) / √var,    η² = d² n (V − n) / V²

    One matrix product for all groups and neurons. `spread` is that of the same neurons. NaN for neurons whose cosines are
    all equal. No group may contain all entries.
    """
    deviation = spread.effect_variance.sqrt().where(spread.variance > CONSTANT, torch.nan)
    split = sizes * (entries - sizes) / entries**2
    difference = (w_out.double() @ sums.T).cpu() / (entries * split) / deviation[:, None]
    return difference**2 * split, difference


def robust_z(values: Float64[np.ndarray, " values"]) -> Float64[np.ndarray, " values"]:
    """(x − median) / (1.4826 · median absolute deviation): z-scores that are robust to outliers.

    The factor 1.4826 makes the denominator the standard deviation for a normal distribution. NaN stays NaN and is left out of
    the medians. If half of the values or more are equal, the deviation is 0, and all scores are 0.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return values
    median = np.median(known)
    deviation = 1.4826 * np.median(np.abs(known - median))
    return np.where(np.isnan(values), np.nan, (values - median) / deviation if deviation > 0 else 0.0)

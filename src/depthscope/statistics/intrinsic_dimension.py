"""Intrinsic dimension of a set of points from the distances to their neighbours; anisotropy and effective rank.

If points are spread evenly over a manifold of dimension d at the scale of the distances r_n and r_2n to the n-th and 2n-th
neighbours of each, the ratio μ = r_2n / r_n has the density

    f(μ) = d (μ^d − 1)^(n−1) / (B(n, n) μ^(d(2n−1)+1)),    μ > 1

whatever the density of the points (Denti, Doimo, Laio, Mira 2022, Scientific Reports 12, equation 3, with n₂ = 2 n₁). GRIDE
is the d of the largest likelihood, at larger n on larger scales. TwoNN (Facco et al. 2017, Scientific Reports 7) is the case
n = 1 with a fit that leaves out the largest tenth of the ratios, as its authors do. Both are DADApy's definitions; DADApy
itself requires numpy below 2, which the rest of this package cannot use.

Points must differ: copies are counted once. All in float64.
"""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float64
from scipy import optimize
from scipy.spatial import distance

FRACTION = 0.9
"""The share of the ratios that TwoNN fits."""
LARGEST = 1e5

Points = Float64[np.ndarray, "points d_model"]
Distances = Float64[np.ndarray, "points points"]


def distances(points: Points) -> Distances:
    """Euclidean distances between all pairs of points."""
    # By differences: from norms and products, those of nearly equal points would be lost in rounding.
    return distance.squareform(distance.pdist(points))


def neighbours(apart: Distances, most: int) -> Float64[np.ndarray, "points most"]:
    """Distances of each point to its nearest `most` neighbours, nearest first."""
    return np.sort(np.partition(apart, most, axis=1)[:, : most + 1], axis=1)[:, 1:]


def two_nn(nearest: Float64[np.ndarray, "points most"]) -> float:
    """TwoNN, from the distances to the nearest neighbours; NaN for fewer than 3 points or where no ratio is above 1."""
    if len(nearest) < 3 or nearest.shape[1] < 2:
        return np.nan
    ratios = np.sort(np.log(nearest[:, 1] / nearest[:, 0]))
    kept = ratios[: int(FRACTION * len(ratios))]
    beyond = -np.log1p(-np.arange(1, len(kept) + 1) / len(ratios))
    squares = (kept**2).sum()
    return float((kept * beyond).sum() / squares) if squares > 0 else np.nan


def gride(nearest: Float64[np.ndarray, "points most"], n: int) -> float:
    """GRIDE on the scale of n and 2n neighbours; NaN where there are too few points or no ratio above 1."""
    if nearest.shape[1] < 2 * n or len(nearest) <= 2 * n:
        return np.nan
    logs = np.log(nearest[:, 2 * n - 1] / nearest[:, n - 1])
    logs = logs[logs > 0]
    if not len(logs):
        return np.nan

    def slope(d: float) -> float:
        """The derivative of the log-likelihood by d, divided by the number of points; it decreases."""
        # d/dd of (n − 1) log(μ^d − 1) is (n − 1) log μ / (1 − μ^−d).
        inner = 0.0 if n == 1 else (n - 1) * (logs / -np.expm1(-d * logs)).mean()
        return 1 / d + inner - (2 * n - 1) * logs.mean()

    low, high = 1e-6, 1.0
    while slope(high) > 0 and high < LARGEST:
        low, high = high, 2 * high
    root: Any = optimize.brentq(slope, low, high, xtol=1e-9) if high < LARGEST else np.nan
    return float(root)


def spectrum(points: Points) -> Float64[np.ndarray, " values"]:
    """Eigenvalues of the points' covariance divided by their sum, largest first; empty if all points are the same."""
    centred = points - points.mean(0)
    gram = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
    values = np.maximum(np.linalg.eigvalsh(gram)[::-1], 0)
    total = values.sum()
    return values / total if total > 0 else values[:0]


def distinct(points: Points) -> Bool[np.ndarray, " points"]:
    """The first of each set of equal points."""
    _, first = np.unique(points, axis=0, return_index=True)
    member = np.zeros(len(points), dtype=bool)
    member[first] = True
    return member

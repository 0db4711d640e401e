"""Where several signals over layers change together: segmentation, and how many segments there is reason to see.

Segments are found by ruptures' exact search (KernelCPD with the linear kernel: the segmentation with the least squared
distance from segment means, all signals together). How many changes are real is decided by the gap statistic (Tibshirani,
Walther and Hastie 2001): the logarithm of what a segmentation leaves unexplained is compared with what the same search
leaves of Gaussian noise with the signals' own covariance, layers independent. The least number of changes is taken whose
gap is not beaten by one more beyond its simulation error; none where no gap stands clear of zero.
"""

from dataclasses import dataclass

import numpy as np
import ruptures
from jaxtyping import Float64

SIMULATIONS = 400
CLEAR = 1.645
"""A gap must stand this many standard deviations of its simulations above that of no change: one in twenty by chance."""

Signals = Float64[np.ndarray, "layers signals"]


@dataclass(frozen=True, slots=True)
class Choice:
    """How many changes, and the gap of each number of changes from 1 on with its simulations' standard deviation."""

    changes: int
    gaps: tuple[float, ...]
    deviations: tuple[float, ...]


def segment(signals: Signals, changes: int) -> tuple[int, ...]:
    """First layers of the later segments, for a given number of changes."""
    if changes == 0:
        return ()
    search = ruptures.KernelCPD(kernel="linear", min_size=1).fit(np.ascontiguousarray(signals))
    ends = search.predict(n_bkps=changes)
    assert ends is not None, "ruptures finds as many changes as it is asked for"
    return tuple(int(end) for end in ends[:-1])


def unexplained(signals: Signals, bounds: tuple[int, ...]) -> float:
    """Squared distance of the signals from their segments' means."""
    return float(sum(((part - part.mean(0)) ** 2).sum() for part in np.split(signals, bounds)))


def choose(signals: Signals, most: int, seed: int = 0, simulations: int = SIMULATIONS) -> Choice:
    """How many changes, of at most `most`, there is reason to see in standardised signals."""
    most = min(most, len(signals) - 2)
    if most < 1 or not signals.any():
        return Choice(0, (), ())
    generator = np.random.default_rng(seed)
    spread = np.linalg.svd(signals - signals.mean(0), full_matrices=False)
    own = _path(signals, most)
    scale = spread.S / np.sqrt(len(signals) - 1)
    noise = [
        _path(generator.standard_normal((len(signals), len(scale))) * scale @ spread.Vh, most)
        for _ in range(simulations)
    ]
    # Each path is relative to no change at all, so that the noise's own size does not matter.
    gaps = np.mean(noise, 0) - own
    deviations = np.std(noise, 0, ddof=1)
    chosen = 0
    for count in range(1, most + 1):
        if gaps[count - 1] > CLEAR * deviations[count - 1] and (
            chosen == 0 or gaps[count - 1] > gaps[chosen - 1] + deviations[count - 1]
        ):
            chosen = count
    return Choice(chosen, tuple(map(float, gaps)), tuple(map(float, deviations)))


def _path(signals: Signals, most: int) -> Float64[np.ndarray, " changes"]:
    """log(unexplained with k changes / unexplained with none) for k = 1 … most."""
    whole = unexplained(signals, ())
    left = np.array([unexplained(signals, segment(signals, count)) for count in range(1, most + 1)])
    return np.log(np.maximum(left, 1e-12 * whole) / whole)

"""Where several signals over layers change together: segmentation, and how many segments the data support.

Segments are found by ruptures' exact search (KernelCPD with the linear kernel: the segmentation with the smallest squared
distance from segment means, all signals together). The gap statistic (Tibshirani, Walther and Hastie 2001) decides how many
changes are real: the logarithm of what a segmentation leaves unexplained is compared with what the same search leaves
unexplained in Gaussian noise with the signals' covariance and independent layers. The result is the smallest number of
changes whose gap one more change does not exceed by more than the simulation error; zero if no gap is clearly above zero.
"""

from dataclasses import dataclass

import numpy as np
import ruptures
from jaxtyping import Float64

SIMULATIONS = 400
CLEAR = 1.645
"""How many standard deviations of the simulations a gap must exceed that of no change by: one in twenty does by chance."""

Signals = Float64[np.ndarray, "layers signals"]


@dataclass(frozen=True, slots=True)
class Choice:
    """The number of changes, and for each number of changes from 1 on its gap with the simulations' standard deviation."""

    changes: int
    gaps: tuple[float, ...]
    deviations: tuple[float, ...]


def segment(signals: Signals, changes: int) -> tuple[int, ...]:
    """First layers of all segments but the first, for a given number of changes."""
    if changes == 0:
        return ()
    search = ruptures.KernelCPD(kernel="linear", min_size=1).fit(np.ascontiguousarray(signals))
    ends = search.predict(n_bkps=changes)
    assert ends is not None, "ruptures finds as many changes as requested"
    return tuple(int(end) for end in ends[:-1])


def unexplained(signals: Signals, bounds: tuple[int, ...]) -> float:
    """Squared distance of the signals from their segments' means."""
    return float(sum(((part - part.mean(0)) ** 2).sum() for part in np.split(signals, bounds)))


def choose(signals: Signals, most: int, seed: int = 0, simulations: int = SIMULATIONS) -> Choice:
    """How many changes, at most `most`, standardised signals support."""
    most = min(most, len(signals) - 2)  # as many segments as layers would leave nothing unexplained: log 0
    if most < 1 or not signals.any():
        return Choice(0, (), ())
    generator = np.random.default_rng(seed)
    spread = np.linalg.svd(signals - signals.mean(0), full_matrices=False)
    own = _path(signals, most)
    # Noise with the signals' covariance, drawn in their principal axes: signals are correlated, so a few changes shared by all
    # of them must not count as many.
    scale = spread.S / np.sqrt(len(signals) - 1)
    noise = [
        _path(generator.standard_normal((len(signals), len(scale))) * scale @ spread.Vh, most)
        for _ in range(simulations)
    ]
    # Each path is relative to no change, so that the scale of the noise does not matter.
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

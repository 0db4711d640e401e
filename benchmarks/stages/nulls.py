"""Signals over layers that have no stages: smooth, autocorrelated, heavy-tailed, spiky. Correlated between signals."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64

Signals = Float64[np.ndarray, "layers signals"]
Null = Callable[[int, int, np.random.Generator], Signals]
SHARED = 0.3
"""Correlation between any two signals."""


def noise(layers: int, signals: int, rho: float, generator: np.random.Generator) -> Signals:
    """A stationary first-order autoregression of unit variance."""
    lead = 100
    own = generator.standard_normal((layers + lead, signals)) * np.sqrt(1 - SHARED)
    shocks = own + np.sqrt(SHARED) * generator.standard_normal((layers + lead, 1))
    values = np.zeros_like(shocks)
    for at in range(1, len(shocks)):
        values[at] = rho * values[at - 1] + np.sqrt(1 - rho**2) * shocks[at]
    return values[lead:]


def _over(layers: int) -> Float64[np.ndarray, "layers one"]:
    return np.linspace(0, 1, layers)[:, None]


def _gaussian_process(length: float, scatter: float) -> Null:
    def draw(layers: int, signals: int, generator: np.random.Generator) -> Signals:
        apart = np.subtract.outer(_over(layers)[:, 0], _over(layers)[:, 0])
        root = np.linalg.cholesky(np.exp(-(apart**2) / 2 / length**2) + 1e-6 * np.eye(layers))
        return 2 * root @ noise(layers, signals, 0, generator) + scatter * noise(layers, signals, 0, generator)

    return draw


def _autoregression(rho: float) -> Null:
    return lambda layers, signals, generator: noise(layers, signals, rho, generator)


def _walk(layers: int, signals: int, generator: np.random.Generator) -> Signals:
    return np.cumsum(noise(layers, signals, 0, generator), 0)


def _line(layers: int, signals: int, generator: np.random.Generator) -> Signals:
    """A straight line with as much variance as the noise."""
    return noise(layers, signals, 0, generator) + np.sqrt(12) * _over(layers) * generator.choice([-1, 1], signals)


def _parabola(layers: int, signals: int, generator: np.random.Generator) -> Signals:
    bent = (_over(layers) - generator.uniform(0.3, 0.7, signals)) ** 2 * generator.choice([-12, 12], signals)
    return bent + noise(layers, signals, 0, generator) / 2


def _both_ends(layers: int, signals: int, generator: np.random.Generator) -> Signals:
    """Exponential approach to a plateau, and departure from it: what drop costs look like."""
    first, last = generator.uniform(3, 12, (2, signals))
    bent = 3 * np.exp(-_over(layers) * first) + 2 * np.exp(-(1 - _over(layers)) * last)
    return bent + 0.2 * noise(layers, signals, 0.3, generator)


def _sigmoid(layers: int, signals: int, generator: np.random.Generator) -> Signals:
    """A gradual change over most of the depth, elsewhere in every signal."""
    at, pace = generator.uniform(0.3, 0.7, signals), generator.uniform(4, 8, signals)
    return 3 / (1 + np.exp(-(_over(layers) - at) * pace)) + noise(layers, signals, 0, generator) / 2


def _mixed(layers: int, signals: int, generator: np.random.Generator) -> Signals:
    half = signals // 2
    return np.hstack([noise(layers, half, 0, generator), noise(layers, signals - half, 0.9, generator)])


def _heavy(layers: int, signals: int, generator: np.random.Generator) -> Signals:
    return generator.standard_t(3, (layers, signals))


def _spikes(layers: int, signals: int, generator: np.random.Generator) -> Signals:
    """Single catastrophic layers, in all signals at once."""
    hit = generator.random((layers, 1)) < 0.08
    return noise(layers, signals, 0.3, generator) + 6 * hit * generator.uniform(0.3, 1, signals)


def _alternating(layers: int, signals: int, generator: np.random.Generator) -> Signals:
    """Every other layer of another kind, as with sliding-window attention."""
    parity = np.where(np.arange(layers)[:, None] % 2, 1, -1)
    return 0.4 * noise(layers, signals, 0, generator) + parity * generator.uniform(0.5, 1, signals)


NULLS: dict[str, Null] = {
    "white noise": _autoregression(0.0),
    "autoregression, 0.5": _autoregression(0.5),
    "autoregression, 0.8": _autoregression(0.8),
    "autoregression, 0.95": _autoregression(0.95),
    "random walk": _walk,
    "half white, half autoregression 0.9": _mixed,
    "straight line and noise": _line,
    "parabola and noise": _parabola,
    "exponential at both ends": _both_ends,
    "sigmoid and noise": _sigmoid,
    "Gaussian process, length L/4": _gaussian_process(0.25, 0.5),
    "Gaussian process, length L/8": _gaussian_process(0.12, 0.3),
    "heavy tails (t, 3)": _heavy,
    "catastrophic layers": _spikes,
    "alternating layers": _alternating,
}

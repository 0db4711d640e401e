"""Evidence for a step in values over layers, against smooth change with depth and autocorrelated noise.

Without a step, a signal over n layers is y = trend + u: the trend is a polynomial of degree DEGREE with free coefficients, and
u is Gaussian with covariance σ² (A_ρ + λ W), where A_ρ is that of a first-order autoregression and W that of an integrated
Wiener process, the prior under which the posterior mean is a cubic smoothing spline (Wahba 1978). A step at b adds δ for all
layers from b on. The coefficients and log σ have flat priors, ρ and λ equal weights on a grid, and δ Zellner's g-prior with the
information of one layer in G: the Bayes factor is then exact, and ρ and λ, which few layers cannot determine, are averaged over
instead of estimated (that a step inflates an estimate of ρ is what Perron 1989 is about).

A Bayes factor has no error rate. Those come from `nulls`: signals without a step, drawn from the posterior of ρ and λ and with
the signals' own correlation, which go through the same computation.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float64
from scipy.ndimage import median_filter
from scipy.special import ndtr

DEGREE = 2
RHO = (0.0, 0.3, 0.6, 0.8, 0.92)
LAMBDA = (0.0, 0.03, 0.3, 3.0, 30.0, 300.0)
"""Variance that the integrated Wiener process gains over all layers, in units of the noise's."""
G = 9.0
WINDOW, OUTLYING = 5, 3.0
TO_SPREAD = 1.4826
"""From a median absolute deviation to the standard deviation of a normal distribution."""
PART_OF_SPREAD = 0.1
SHRINKAGE = 0.05

Signals = Float64[np.ndarray, "layers signals"]
Cells = Float64[np.ndarray, "places signals"]
Columns = Bool[np.ndarray, " signals"]


@dataclass(frozen=True, slots=True)
class Evidence:
    """For each place of a step (rows) and signal (columns): `log_bayes`, the log Bayes factor of a step there against none, and
    `rises`, the posterior probability that the step is upward. `weights` are the posterior weights of (ρ, λ) without a step.
    """

    log_bayes: Cells
    rises: Cells
    weights: Float64[np.ndarray, "grid signals"]

    def directed(self, directions: Float64[np.ndarray, " signals"]) -> Cells:
        """Log Bayes factors of a step of this sign (+1 or −1) against none."""
        along = np.where(directions > 0, self.rises, 1 - self.rises)
        return self.log_bayes + np.log(np.maximum(2 * along, 1e-300))


class SmoothSteps:
    """The model for signals over `layers` layers, with steps that leave at least `edge` layers on both sides."""

    def __init__(self, layers: int, edge: int) -> None:
        time = np.linspace(-1, 1, layers)
        self.layers, self.edge = layers, edge
        self.places = np.arange(edge, layers - edge + 1)
        """The first layer of the later side, for each place."""
        self.trend = np.polynomial.legendre.legvander(time, DEGREE)
        self.free = layers - self.trend.shape[1]
        steps = (np.arange(layers)[:, None] >= self.places).astype(np.float64)
        grid = [self._prepared(rho, share, steps) for rho in RHO for share in LAMBDA]
        self._roots, self._left, self._contrasts, self._constants = map(np.stack, zip(*grid, strict=True))

    def _prepared(self, rho: float, share: float, steps: Float64[np.ndarray, "layers places"]) -> tuple:
        """For one ρ and λ: Cholesky root, map to what the trend leaves, unit contrasts of the steps, log determinants."""
        apart = np.abs(np.subtract.outer(np.arange(self.layers), np.arange(self.layers)))
        root = np.linalg.cholesky(rho**apart + share * _wiener(self.layers))
        whitened = np.linalg.inv(root)
        basis, triangle = np.linalg.qr(whitened @ self.trend)
        left = whitened - basis @ (basis.T @ whitened)
        own = left @ steps
        contrasts = (own / np.linalg.norm(own, axis=0)).T @ left
        return root, left, contrasts, -np.log(np.diag(root)).sum() - np.log(np.abs(np.diag(triangle))).sum()

    def evidence(self, signals: Signals) -> Evidence:
        """Evidence for a step at each place in each signal, taken alone. The scale of a signal has no influence."""
        scaled = _scaled(signals)
        left = np.stack([(part @ scaled) for part in self._left])
        unexplained = np.maximum((left**2).sum(1), 1e-24)
        without = self._constants[:, None] - self.free / 2 * np.log(unexplained)
        most = without.max(0)
        weights = np.exp(without - most)
        total = weights.sum(0)
        with_step = np.zeros((len(self.places), scaled.shape[1]))
        upward = np.zeros_like(with_step)
        shrink = G / (1 + G)
        for place, contrast in enumerate(self._contrasts):
            explained = contrast @ scaled
            rest = np.maximum(unexplained[place] - shrink * explained**2, 1e-24)
            weight = np.exp(self._constants[place] - self.free / 2 * np.log(rest) - most)
            with_step += weight
            # The posterior of δ is Student's t with `free` degrees of freedom: close enough to normal for its sign.
            upward += weight * ndtr(explained * np.sqrt(shrink * self.free / rest))
        with np.errstate(invalid="ignore", divide="ignore"):
            log_bayes = np.log(with_step / total) - np.log(1 + G) / 2
            return Evidence(log_bayes, upward / with_step, weights / total)

    def nulls(
        self, signals: Signals, evidence: Evidence, count: int, generator: np.random.Generator
    ) -> Float64[np.ndarray, "layers signals nulls"]:
        """Signals without a step: noise as these signals have it, if all they show is smooth.

        ρ and λ are drawn from their posterior, with prior weights 1 / (1 − ρ) here: the posterior of a strongly autocorrelated
        signal of few layers reaches too far down. The trend is zero, because evidence does not depend on it.
        """
        correlated = np.linalg.cholesky(self._correlation(signals, evidence))
        noise = generator.standard_normal((count, self.layers, signals.shape[1])) @ correlated.T
        prior = np.repeat([1 / (1 - rho) for rho in RHO], len(LAMBDA))[:, None]
        weights = evidence.weights * prior
        drawn = np.empty((self.layers, signals.shape[1], count))
        for column, share in enumerate((weights / weights.sum(0)).T):
            places = generator.choice(len(share), size=count, p=share)
            for place in np.unique(places):
                own = places == place
                drawn[:, column, own] = self._roots[place] @ noise[own, :, column].T
        return drawn

    def _correlation(self, signals: Signals, evidence: Evidence) -> Float64[np.ndarray, "signals signals"]:
        best = evidence.weights.argmax(0)
        scaled = _scaled(signals)
        left = np.stack([self._left[place] @ scaled[:, column] for column, place in enumerate(best)], 1)
        left /= np.maximum(np.linalg.norm(left, axis=0), 1e-12)
        return (1 - SHRINKAGE) * left.T @ left + SHRINKAGE * np.eye(signals.shape[1])

    def smooth(self, signals: Signals, evidence: Evidence) -> Signals:
        """The posterior mean of trend and Wiener process without a step, at the most probable ρ and λ of each signal."""
        fitted = np.empty_like(signals)
        for column, place in enumerate(evidence.weights.argmax(0)):
            root, values = self._roots[place], signals[:, column]
            inverse = np.linalg.inv(root @ root.T)
            middle = np.linalg.solve(self.trend.T @ inverse @ self.trend, self.trend.T @ inverse @ values)
            line = self.trend @ middle
            wiener = LAMBDA[place % len(LAMBDA)] * _wiener(self.layers)
            fitted[:, column] = line + wiener @ inverse @ (values - line)
        return fitted

    def with_steps(self, signals: Signals, evidence: Evidence, steps: Sequence[tuple[int, Columns]]) -> "Fitted":
        """The signals as a smooth curve with steps before these layers, each in some of the signals, and noise."""
        curve, spread, rho, left = np.empty_like(signals), [], [], np.empty_like(signals)
        for column, best in enumerate(evidence.weights.argmax(0)):
            own = [np.arange(self.layers) >= layer for layer, columns in steps if columns[column]]
            design = np.column_stack([self.trend, *own])
            whitened, values = np.linalg.inv(self._roots[best]), signals[:, column]
            solved, *_ = np.linalg.lstsq(whitened @ design, whitened @ values)
            away = whitened @ (values - design @ solved)
            rest = design @ solved
            wiener = LAMBDA[best % len(LAMBDA)] * _wiener(self.layers)
            curve[:, column] = rest + wiener @ whitened.T @ away
            spread.append(np.sqrt((away**2).sum() / max(self.layers - design.shape[1], 1)))
            rho.append(RHO[best // len(LAMBDA)])
            left[:, column] = away / max(float(np.linalg.norm(away)), 1e-12)
        correlation = (1 - SHRINKAGE) * left.T @ left + SHRINKAGE * np.eye(signals.shape[1])
        return Fitted(curve, np.array(spread), np.array(rho), correlation)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A curve with steps, and the noise around it: an autoregression per signal, correlated between signals."""

    curve: Signals
    spread: Float64[np.ndarray, " signals"]
    rho: Float64[np.ndarray, " signals"]
    correlation: Float64[np.ndarray, "signals signals"]

    def noise(self, count: int, generator: np.random.Generator) -> Float64[np.ndarray, "layers signals sets"]:
        """Draws of the noise."""
        layers, signals = self.curve.shape
        drawn = generator.standard_normal((count, layers, signals)) @ np.linalg.cholesky(self.correlation).T
        apart = np.abs(np.subtract.outer(np.arange(layers), np.arange(layers)))
        for column, (rho, spread) in enumerate(zip(self.rho, self.spread, strict=True)):
            root = np.linalg.cholesky(rho**apart)
            drawn[:, :, column] = spread * drawn[:, :, column] @ root.T
        return drawn.transpose(1, 2, 0)


@lru_cache(maxsize=64)
def smooth_steps(layers: int, edge: int) -> SmoothSteps:
    """The model for this many layers, kept: the grid's decompositions cost more than a signal's evidence."""
    return SmoothSteps(layers, edge)


def despiked(signals: Signals) -> Signals:
    """Values that stand out from the median of the five layers around them replaced by it (Hampel's identifier).

    A step survives a running median; a single catastrophic layer does not, and is no boundary.
    """
    middle = median_filter(signals, size=(WINDOW, 1), mode="nearest")
    away = np.abs(signals - middle)
    spread = TO_SPREAD * 1.25 * np.median(away, axis=0)
    whole = TO_SPREAD * np.median(np.abs(signals - np.median(signals, axis=0)), axis=0)
    return np.where(away > OUTLYING * np.maximum(spread, PART_OF_SPREAD * whole), middle, signals)


def pieces(total: int, most: int) -> Iterator[slice]:
    """Slices of at most `most` out of `total`, so that simulations fit into little memory."""
    yield from (slice(start, min(start + most, total)) for start in range(0, total, most))


def _scaled(signals: Signals) -> Signals:
    spread = signals.std(0)
    return (signals - signals.mean(0)) / np.where(spread > 0, spread, 1.0)


def _wiener(layers: int) -> Float64[np.ndarray, "layers layers"]:
    """Covariance of an integrated Wiener process on (0, 1), 1 at the end (Wahba 1978)."""
    time = (np.arange(layers) + 0.5) / layers
    first, second = np.minimum.outer(time, time), np.maximum.outer(time, time)
    return first**2 * (3 * second - first) / 2

"""Which shape over depth predicts a layer that was left out: smooth curves, a knee, or segments with common edges.

For every layer in turn each shape is fitted to the other layers, its knees and edges searched again, and predicts the
layer's signals. Curves and knees are each signal's own; edges are common to all signals, as stages would be.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import ruptures
from jaxtyping import Float64

DEGREES = {0: "a constant", 1: "a straight line", 2: "a parabola", 3: "a cubic", 4: "a polynomial of degree 4"}
SEGMENTS = (2, 3, 4)
KNEE = "a straight line with a knee"

Signals = Float64[np.ndarray, "layers signals"]
Values = Float64[np.ndarray, " signals"]


@dataclass(frozen=True, slots=True)
class Shape:
    """A shape, whether it is smooth, and its squared error at left-out layers in units of the signals' variance."""

    title: str
    smooth: bool
    errors: Float64[np.ndarray, " layers"]

    @property
    def error(self) -> float:
        """The mean over layers."""
        return float(self.errors.mean())


def shapes(signals: Signals) -> list[Shape]:
    """All shapes that so many layers allow. No signal is constant."""
    scaled = (signals - signals.mean(0)) / signals.std(0)
    layers = len(signals)
    found = [
        Shape(title, True, _errors(scaled, lambda at, rest, where, d=degree: _curve(at, rest, where, d)))
        for degree, title in DEGREES.items()
        if degree + 3 <= layers
    ]
    if layers >= 6:
        found.append(Shape(KNEE, True, _errors(scaled, _knee)))
    found += [
        Shape(
            f"{count} segments", False, _errors(scaled, lambda at, rest, where, c=count: _segments(at, rest, where, c))
        )
        for count in SEGMENTS
        if 2 * count + 1 <= layers
    ]
    return found


Predict = Callable[[float, Signals, Float64[np.ndarray, " layers"]], Values]


def _errors(scaled: Signals, predict: Predict) -> Float64[np.ndarray, " layers"]:
    """Squared error at each layer, mean over signals, with the shape fitted to the others."""
    where = np.linspace(-1, 1, len(scaled))
    away = [
        scaled[layer] - predict(float(where[layer]), np.delete(scaled, layer, 0), np.delete(where, layer))
        for layer in range(len(scaled))
    ]
    return (np.array(away) ** 2).mean(1)


def _curve(at: float, rest: Signals, where: Float64[np.ndarray, " layers"], degree: int) -> Values:
    legendre = np.polynomial.legendre
    return np.asarray(legendre.legval(at, legendre.legfit(where, rest, degree)))


def _knee(at: float, rest: Signals, where: Float64[np.ndarray, " layers"]) -> Values:
    least, best = np.full(rest.shape[1], np.inf), np.zeros(rest.shape[1])
    for turn in where[2:-2]:
        design = np.stack([np.ones_like(where), where, np.maximum(where - turn, 0)], 1)
        solved, *_ = np.linalg.lstsq(design, rest)
        left = ((rest - design @ solved) ** 2).sum(0)
        predicted = np.array([1.0, at, max(at - turn, 0.0)]) @ solved
        best, least = np.where(left < least, predicted, best), np.minimum(left, least)
    return best


def _segments(at: float, rest: Signals, where: Float64[np.ndarray, " layers"], count: int) -> Values:
    search = ruptures.KernelCPD(kernel="linear", min_size=2).fit(np.ascontiguousarray(rest))
    ends = search.predict(n_bkps=count - 1)
    assert ends is not None, "ruptures finds as many changes as requested"
    place = int(np.searchsorted(where, at))
    # Between two segments a left-out layer could be of either: the one on its left, unless it is the first.
    segment = int(np.searchsorted(ends, max(place - 1, 0), side="right"))
    start = 0 if segment == 0 else ends[segment - 1]
    return rest[start : ends[segment]].mean(0)

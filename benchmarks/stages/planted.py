"""Signals with the hypothesis's transitions planted: how often they are named, and whether intervals cover their places."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from benchmarks.stages.nulls import noise
from depthscope.schema.stages import SIGNALS, TRANSITIONS

RHO = 0.3
PLACES = ((0.13, 0.33), (0.4, 0.65), (0.72, 0.87))
"""Where each transition may be, as shares of the depth."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps of `size` standard deviations of the noise over layers, in `share` of the signals, `width` × depth wide."""

    size: float
    share: float = 1.0
    width: float = 0.0


def planted(
    depth: int, plan: Plan, generator: np.random.Generator
) -> tuple[Float64[np.ndarray, "layers signals"], list[int]]:
    """Signals over all layers, and the first layer of the later stage at each transition (of a ramp: after its middle)."""
    values = noise(depth, len(SIGNALS), RHO, generator)
    layers = []
    for transition in range(len(TRANSITIONS)):
        low, high = (round(share * depth) for share in PLACES[transition])
        layer = int(generator.integers(max(low, 3), min(high, depth - 3) + 1))
        away = (np.arange(depth) + 0.5 - layer) / max(plan.width * depth, 1e-9)
        ramp = np.clip(away + 0.5, 0, 1)
        for column, signal in enumerate(SIGNALS.values()):
            if generator.random() < plan.share:
                values[:, column] += plan.size * signal.directions.get(transition, 0) * ramp
        layers.append(layer)
    return values, layers

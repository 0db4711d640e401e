"""Stages of inference: their names, the signals used to find them, and what each signal is evidence for. Torch-free."""

from collections.abc import Mapping
from dataclasses import dataclass

DETOKENIZATION = "detokenization"
FEATURE_ENGINEERING = "feature_engineering"
PREDICTION_ENSEMBLING = "prediction_ensembling"
RESIDUAL_CALIBRATION = "residual_calibration"

STAGES = {
    DETOKENIZATION: "Detokenization",
    FEATURE_ENGINEERING: "Feature engineering",
    PREDICTION_ENSEMBLING: "Prediction ensembling",
    RESIDUAL_CALIBRATION: "Residual calibration",
}
"""In order of depth. The last is called residual sharpening in the paper's first version."""

TRANSITIONS = tuple(zip(list(STAGES)[:-1], list(STAGES)[1:], strict=True))
"""(stage before, stage after)."""


@dataclass(frozen=True, slots=True)
class Signal:
    """A number per layer from which stages are found.

    `smallest` is the spread over layers below which it counts as flat, in its unit: smaller differences are not inflated
    until they look like a change. `directions` states for which transition a rise (+1) or a fall (−1) is evidence.
    """

    name: str
    title: str
    unit: str
    sentence: str
    smallest: float
    half: str
    """INTERVENTION or READING."""
    directions: dict[int, int]
    """Transition (0, 1, 2) to direction."""


INTERVENTION, READING = "intervention", "reading"
"""The two halves of the signals: boundaries are fitted on interventions and tested on readings."""

LEVEL = 0.05
FEWEST_LAYERS = 16
"""With fewer, a clear step is rarely distinguished from smooth change (docs/stages.md), and no stage is named."""
NOT_NAMED = "not_named"
"""Layers between named transitions whose own defining signature is not supported."""

FURTHEST = 3.0
"""Standardised signals are clipped at this many robust spreads from the median."""
FLOOR = 0.01
"""KL divergences below this many nats are set to it: a change of the predictions too small to matter."""

SIGNALS = {
    signal.name: signal
    for signal in (
        Signal(
            "drop",
            "Cost of dropping the layer",
            "log10 nats",
            "log10 of the KL divergence when the layer is dropped",
            0.1,
            INTERVENTION,
            {0: -1, 2: 1},
        ),
        Signal(
            "swap",
            "Cost of swapping it with the next",
            "log10 nats",
            "log10 of the KL divergence when the layer and the next are swapped",
            0.1,
            INTERVENTION,
            {0: -1, 2: 1},
        ),
        Signal(
            "drop_attention",
            "Cost of dropping its attention",
            "log10 nats",
            "log10 of the KL divergence when the layer's attention is ablated",
            0.1,
            INTERVENTION,
            {0: -1, 1: -1},
        ),
        Signal(
            "drop_mlp",
            "Cost of dropping its MLP",
            "log10 nats",
            "log10 of the KL divergence when the layer's MLP is ablated",
            0.1,
            INTERVENTION,
            {0: -1, 1: 1, 2: 1},
        ),
        Signal(
            "local_attention",
            "Local attention",
            "share",
            "share of attention on the five previous tokens, mean over heads",
            0.02,
            READING,
            {0: -1},
        ),
        Signal(
            "norm_ratio",
            "Attention over MLP",
            "log2",
            "log2 of the mean ratio of the attention output's norm to the MLP output's",
            0.15,
            READING,
            {1: -1},
        ),
        Signal(
            "progress",
            "Progress of the lens",
            "nats",
            "decrease of the lens's KL divergence to the final distribution across the layer",
            0.05,
            READING,
            {1: 1},
        ),
        Signal(
            "prediction",
            "Prediction neurons",
            "root of share",
            "square root of the share of prediction neurons",
            0.02,
            READING,
            {1: 1},
        ),
        Signal(
            "suppression",
            "Suppression over prediction",
            "share",
            "share of suppression neurons minus share of prediction neurons",
            0.002,
            READING,
            {2: 1},
        ),
        Signal(
            "mlp_norm",
            "MLP norm",
            "log2",
            "log2 of the mean norm of the MLP's output",
            0.15,
            READING,
            {2: 1},
        ),
        Signal(
            "entropy_move",
            "Change in entropy",
            "nats",
            "absolute change of the lens's entropy across the layer",
            0.05,
            READING,
            {2: 1},
        ),
    )
}


def written(value: float, unit: str) -> str:
    """A number for display: shares in per cent, differences of shares (`points`) in percentage points, `62.5×`."""
    hundredfold = {"share": "%", "points": " points"}
    if unit in hundredfold:
        return f"{100 * value:.3g}{hundredfold[unit]}".replace("-", "−")
    suffix = {"times": "×", "": "", "none": ""}.get(unit, f" {unit}")
    return f"{value:.3g}{suffix}".replace("-", "−")


SUPPORTED, NOT_SUPPORTED, CANNOT_TELL = "supported", "not supported", "cannot be told"
"""Verdicts as files hold them."""


def verdict_shown(verdict: str) -> str:
    """A verdict for display."""
    return "inconclusive" if verdict == CANNOT_TELL else verdict


def votes_near(layer: int, votes: Mapping[str, int | None]) -> int:
    """How many of the signals that are evidence for a boundary change, each taken alone, within one layer of it."""
    return sum(vote is not None and abs(vote - layer) <= 1 for vote in votes.values())

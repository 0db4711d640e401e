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
    directions: dict[int, int]
    """Transition (0, 1, 2) to direction."""


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
            0.25,
            {0: -1, 2: 1},
        ),
        Signal(
            "swap",
            "Cost of swapping it with the next",
            "log10 nats",
            "log10 of the KL divergence when the layer and the next are swapped; the last layer has the value of its only swap",
            0.25,
            {0: -1, 2: 1},
        ),
        Signal(
            "local_attention",
            "Local attention",
            "share",
            "share of attention on the five previous tokens, mean over heads",
            0.05,
            {0: -1},
        ),
        Signal(
            "norm_ratio",
            "Attention over MLP",
            "log2",
            "log2 of the mean ratio of the attention output's norm to the MLP output's",
            0.5,
            {1: -1},
        ),
        Signal(
            "importance",
            "MLP's cost over attention's",
            "log10",
            "log10 of the KL divergence without the MLP over that without the attention",
            0.25,
            {1: 1},
        ),
        Signal(
            "progress",
            "Progress of the lens",
            "nats",
            "decrease of the logit lens's KL divergence to the final distribution across the layer",
            0.1,
            {1: 1},
        ),
        Signal("prediction", "Prediction neurons", "share", "share of prediction neurons", 0.005, {1: 1}),
        Signal(
            "suppression",
            "Suppression over prediction",
            "share",
            "share of suppression neurons minus share of prediction neurons",
            0.005,
            {2: 1},
        ),
        Signal("mlp_norm", "MLP norm", "log2", "log2 of the mean norm of the MLP's output", 0.5, {2: 1}),
        Signal(
            "entropy_move",
            "Change in entropy",
            "nats",
            "absolute change of the logit lens's entropy across the layer",
            0.1,
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


@dataclass(frozen=True, slots=True)
class Signature:
    """A row of the paper's table 1 as a test: the effect must reach the threshold.

    Unit `points` is a difference of shares.
    """

    name: str
    stage: str
    title: str
    test: str
    unit: str
    threshold: float


SIGNATURES = {
    signature.name: signature
    for signature in (
        Signature(
            "first_layer_sensitivity",
            DETOKENIZATION,
            "The first layer is catastrophic to lose",
            "KL of dropping layer 0 over the median KL of dropping a middle layer, at least 3 times",
            "times",
            3.0,
        ),
        Signature(
            "local_attention_early",
            DETOKENIZATION,
            "Attention is local early",
            "share of attention on the five previous tokens, first quarter of layers minus the rest, at least 5 points",
            "points",
            0.05,
        ),
        Signature(
            "robust_middle",
            FEATURE_ENGINEERING,
            "The middle is robust",
            "top-1 agreement after dropping one middle layer, mean over middle layers, at least 72 % (the paper's 72–95 %)",
            "share",
            0.72,
        ),
        Signature(
            "little_early_progress",
            FEATURE_ENGINEERING,
            "The lens makes little progress early",
            "share of the decrease of lens KL from x_1 to x_L that falls in the second half, at least two thirds",
            "share",
            2 / 3,
        ),
        Signature(
            "onset_of_prediction",
            PREDICTION_ENSEMBLING,
            "The fall of lens KL sets in",
            "slope of lens KL after the best breakpoint minus the slope before it, as a share of the total decrease per tenth "
            "of depth, at least 5 points steeper",
            "points",
            0.05,
        ),
        Signature(
            "prediction_neurons_emerge",
            PREDICTION_ENSEMBLING,
            "Prediction neurons emerge late",
            "share of prediction neurons, second half of layers minus the first, at least half a point",
            "points",
            0.005,
        ),
        Signature(
            "mlp_over_attention",
            PREDICTION_ENSEMBLING,
            "From attention to MLP",
            "mean ratio of attention norm to MLP norm, first half of layers (without layer 0) over second, at least 1.25 times",
            "times",
            1.25,
        ),
        Signature(
            "mlp_importance",
            PREDICTION_ENSEMBLING,
            "MLPs come to matter more than attention",
            "KL without the MLP over KL without the attention, geometric mean over the second half, at least 1.25 times",
            "times",
            1.25,
        ),
        Signature(
            "prediction_neurons_subside",
            PREDICTION_ENSEMBLING,
            "Prediction neurons peak, then subside",
            "share of prediction neurons at its peak, in the second half but before the last layer, minus that of the last "
            "layer, at least half a point",
            "points",
            0.005,
        ),
        Signature(
            "suppression_outnumbers",
            RESIDUAL_CALIBRATION,
            "Suppression outnumbers prediction",
            "share of suppression neurons minus prediction neurons in the last layer, at least half a point",
            "points",
            0.005,
        ),
        Signature(
            "last_layer_sensitivity",
            RESIDUAL_CALIBRATION,
            "The last layer is costly to lose",
            "KL of dropping the last layer over the median KL of dropping a middle layer, at least 3 times",
            "times",
            3.0,
        ),
        Signature(
            "mlp_norm_peaks_last",
            RESIDUAL_CALIBRATION,
            "The MLP's output is largest at the end",
            "mean norm of the MLP output, last eighth of layers over the median middle layer, at least 1.5 times",
            "times",
            1.5,
        ),
        Signature(
            "entropy_moves_last",
            RESIDUAL_CALIBRATION,
            "Entropy's last move",
            "absolute change of lens entropy across the last layer minus the median over middle layers, at least 0.1 nats",
            "nats",
            0.1,
        ),
    )
}


def votes_near(layer: int, votes: Mapping[str, int | None]) -> int:
    """How many of the signals that are evidence for a boundary change, each taken alone, within one layer of it."""
    return sum(vote is not None and abs(vote - layer) <= 1 for vote in votes.values())

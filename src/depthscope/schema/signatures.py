"""The signatures of the stages: every cell of the paper's table 1, and additions from its text, as tests. Torch-free.

Each is an effect, computed in `stages/effects.py`, that must reach a threshold. Thresholds are in `thresholds.toml`, with a
date and a reason each.
"""

import datetime
import math
import tomllib
from dataclasses import dataclass
from importlib.resources import files

from depthscope.schema.stages import (
    DETOKENIZATION,
    FEATURE_ENGINEERING,
    PREDICTION_ENSEMBLING,
    RESIDUAL_CALIBRATION,
    written,
)

TABLE_1 = "table 1"
_FILE = tomllib.loads(files("depthscope.schema").joinpath("thresholds.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """The smallest effect that counts as the signature, and why. Unit `points` is a difference of shares."""

    threshold: float
    unit: str
    reason: str


THRESHOLDS_DATE: datetime.date = _FILE.pop("date")
"""When the thresholds were last changed."""
THRESHOLDS = {name: Threshold(**entry) for name, entry in _FILE.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """A signature of a stage: the effect must reach the threshold.

    The effect is between `lowest` and `highest` for any measurement. `defining`: the stage is not named without it; one per
    stage. `shown_by`: the experiment whose tables show it, if no verdict is drawn from them: then it is always inconclusive.
    """

    name: str
    stage: str
    title: str
    effect: str
    source: str
    """Where in the paper it is: `table 1`, or the section or figure."""
    lowest: float = 0.0
    highest: float = math.inf
    defining: bool = False
    shown_by: str = ""

    @property
    def threshold(self) -> float:
        """The smallest effect that counts, in `unit`."""
        return THRESHOLDS[self.name].threshold

    @property
    def unit(self) -> str:
        """The unit of effect and threshold."""
        return THRESHOLDS[self.name].unit

    @property
    def definition(self) -> str:
        """The effect and its threshold in a sentence."""
        return f"{self.effect}, at least {written(self.threshold, self.unit)}"


SIGNATURES = {
    signature.name: signature
    for signature in (
        Signature(
            name="first_layer_sensitivity",
            stage=DETOKENIZATION,
            title="The first layer is catastrophic to lose",
            effect="KL of dropping layer 0 over the median KL of dropping a middle layer",
            source=TABLE_1,
            defining=True,
        ),
        Signature(
            name="first_swap_sensitivity",
            stage=DETOKENIZATION,
            title="The first swap is catastrophic",
            effect="KL of swapping layers 0 and 1 over the median KL of swapping two middle layers",
            source=TABLE_1,
        ),
        Signature(
            name="local_attention_early",
            stage=DETOKENIZATION,
            title="Attention is local early",
            effect="share of attention on the five previous tokens, first quarter of layers minus the rest",
            source="section 5.1, figure 4",
            lowest=-1.0,
            highest=1.0,
        ),
        Signature(
            name="little_early_progress",
            stage=FEATURE_ENGINEERING,
            title="The lens makes little progress early",
            effect="share of the lens's progress from x_1 to x_L that is made in the second half of the depth",
            source=TABLE_1,
            highest=1.0,
            defining=True,
        ),
        Signature(
            name="probing_accuracy_rises",
            stage=FEATURE_ENGINEERING,
            title="Probing accuracy rises",
            effect="accuracy of a probe for a feature of the text at half depth minus its accuracy at x_1",
            source=TABLE_1,
            lowest=-1.0,
            highest=1.0,
            shown_by="depth_probes",
        ),
        Signature(
            name="patching_importance_rises",
            stage=FEATURE_ENGINEERING,
            title="Patching importance rises",
            effect="share of the original answer's probability that is restored by patching the residual stream of one "
            "position, at half depth minus at x_1",
            source=TABLE_1,
            lowest=-1.0,
            highest=1.0,
            shown_by="patching",
        ),
        Signature(
            name="attention_heavy",
            stage=FEATURE_ENGINEERING,
            title="Attention writes more than the MLP",
            effect="r / (1 + r) for the mean ratio r of attention norm to MLP norm, mean over the first half of layers without "
            "layer 0",
            source=TABLE_1,
            highest=1.0,
        ),
        Signature(
            name="robust_middle",
            stage=FEATURE_ENGINEERING,
            title="The middle is robust",
            effect="top-1 agreement after dropping one middle layer, mean over middle layers",
            source="section 4.1, figure 3",
            highest=1.0,
        ),
        Signature(
            name="mlp_importance_rises",
            stage=PREDICTION_ENSEMBLING,
            title="MLPs gain importance over attention",
            effect="KL without the MLP over KL without the attention, geometric mean over the second half of layers, over that "
            "of the first half without layer 0",
            source=TABLE_1,
        ),
        Signature(
            name="prediction_neurons_emerge",
            stage=PREDICTION_ENSEMBLING,
            title="Prediction neurons emerge late",
            effect="share of prediction neurons, second half of layers minus the first",
            source=TABLE_1,
            lowest=-1.0,
            highest=1.0,
            defining=True,
        ),
        Signature(
            name="progress_sets_in",
            stage=PREDICTION_ENSEMBLING,
            title="The lens's progress sets in",
            effect="rate of the lens's progress after its knee over the sum of the rates before and after the knee",
            source=TABLE_1,
            highest=1.0,
        ),
        Signature(
            name="mlp_over_attention",
            stage=PREDICTION_ENSEMBLING,
            title="From attention to MLP",
            effect="mean ratio of attention norm to MLP norm, first half of layers (without layer 0) over second",
            source="section 1, figure 5",
        ),
        Signature(
            name="prediction_neurons_subside",
            stage=PREDICTION_ENSEMBLING,
            title="Prediction neurons peak, then subside",
            effect="share of prediction neurons at its peak, in the second half but before the last layer, minus that of the "
            "last layer",
            source="section 5.3, figure 6",
            lowest=-1.0,
            highest=1.0,
        ),
        Signature(
            name="suppression_outnumbers",
            stage=RESIDUAL_CALIBRATION,
            title="Suppression outnumbers prediction",
            effect="share of suppression neurons minus prediction neurons in the last layer",
            source=TABLE_1,
            lowest=-1.0,
            highest=1.0,
            defining=True,
        ),
        Signature(
            name="last_layer_sensitivity",
            stage=RESIDUAL_CALIBRATION,
            title="The last layer is costly to lose",
            effect="KL of dropping the last layer over the median KL of dropping a middle layer",
            source="section 1, figure 3",
        ),
        Signature(
            name="last_swap_sensitivity",
            stage=RESIDUAL_CALIBRATION,
            title="The last swap is costly",
            effect="KL of swapping the last two layers over the median KL of swapping two middle layers",
            source="section 1, figure 3",
        ),
        Signature(
            name="mlp_norm_peaks_last",
            stage=RESIDUAL_CALIBRATION,
            title="The MLP's output is largest at the end",
            effect="mean norm of the MLP output, last eighth of layers over the median middle layer",
            source="section 5.4, figure 7",
        ),
        Signature(
            name="entropy_moves_last",
            stage=RESIDUAL_CALIBRATION,
            title="Entropy's last move",
            effect="absolute change of lens entropy across the last layer minus the median over middle layers",
            source="section 5.4, figure 8",
            lowest=-math.inf,
        ),
    )
}
"""In the order of depth; in the table's order within a stage, then what the text adds."""

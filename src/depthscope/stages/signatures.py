"""The paper's table 1 as tests: each signature's effect with its interval from resampling documents, and a verdict.

Supported: the whole 95 % interval reaches the threshold. Not supported: the whole interval is below it. Otherwise the test is
inconclusive, as it is if the model is too shallow, a measurement is missing or there are too few documents for an interval.
Neuron counts have no interval: they cover all neurons, not a sample.
"""

from collections.abc import Callable
from dataclasses import asdict

import numpy as np
from jaxtyping import Float64

from depthscope.schema.found_stages import SignatureVerdict
from depthscope.schema.stages import CANNOT_TELL, FLOOR, NOT_SUPPORTED, SIGNATURES, SUPPORTED
from depthscope.stages.signals import Layers, ResampledLayers

FEWEST_LAYERS = 4
"""With fewer there is no middle to compare the first and last layer with."""
FEWEST_DOCUMENTS = 8
SMALLEST_FALL = 0.5
"""In nats. If lens KL falls by less over the whole depth, its progress is negligible, and shares are of this value instead."""

Effects = Float64[np.ndarray, " rows"]


def verdicts(measured: ResampledLayers) -> list[SignatureVerdict]:
    """All signatures, in the order of depth."""
    return [_verdict(name, measured) for name in SIGNATURES]


def _verdict(name: str, measured: ResampledLayers) -> SignatureVerdict:
    described = asdict(SIGNATURES[name])
    needs, effect = EFFECTS[name]
    missing = [need for need in needs if need not in measured.values]

    def concluded(verdict: str, reason: str, value=None, low=None, high=None) -> SignatureVerdict:
        return SignatureVerdict(**described, effect=value, ci_low=low, ci_high=high, verdict=verdict, reason=reason)

    if missing:
        return concluded(CANNOT_TELL, f"not measured: {', '.join(missing)}")
    if measured.depth < FEWEST_LAYERS:
        return concluded(CANNOT_TELL, f"{measured.depth} layers leave no middle: expected at least {FEWEST_LAYERS}")
    effects = effect(*(measured.values[need] for need in needs))
    value = float(effects[0])
    if not np.isfinite(value):
        return concluded(CANNOT_TELL, "the effect is not a number on this model")
    if len(effects) == 1:
        reached = value >= described["threshold"]
        return concluded(SUPPORTED if reached else NOT_SUPPORTED, "counted, not sampled: no interval", value)
    if measured.documents < FEWEST_DOCUMENTS:
        few = f"{measured.documents} documents are too few for an interval: expected at least {FEWEST_DOCUMENTS}"
        return concluded(CANNOT_TELL, few, value)
    low, high = (float(bound) for bound in np.nanquantile(effects[1:], (0.025, 0.975)))
    if low >= described["threshold"]:
        return concluded(SUPPORTED, "the whole interval reaches the threshold", value, low, high)
    if high < described["threshold"]:
        return concluded(NOT_SUPPORTED, "the whole interval stays below the threshold", value, low, high)
    return concluded(CANNOT_TELL, "the interval contains the threshold", value, low, high)


def _floored(kl: Layers) -> Layers:
    return np.maximum(kl, FLOOR)


def _first_over_middle(kl: Layers) -> Effects:
    kl = _floored(kl)
    return kl[:, 0] / np.median(kl[:, 1:-1], axis=1)


def _last_over_middle(kl: Layers) -> Effects:
    kl = _floored(kl)
    return kl[:, -1] / np.median(kl[:, 1:-1], axis=1)


def _early_over_rest(local: Layers) -> Effects:
    quarter = -(-local.shape[1] // 4)
    return local[:, :quarter].mean(1) - local[:, quarter:].mean(1)


def _middle_agreement(agreement: Layers) -> Effects:
    return agreement[:, 1:-1].mean(1)


def _whole_fall(lens_kl: Layers) -> Effects:
    """From x_1 to x_L, at least SMALLEST_FALL; x_0 is the embedding, which a lens can read only because of tied weights."""
    return np.maximum(lens_kl[:, 1] - lens_kl[:, -1], SMALLEST_FALL)


def _late_progress(lens_kl: Layers) -> Effects:
    half = lens_kl.shape[1] // 2
    return (lens_kl[:, half] - lens_kl[:, -1]) / _whole_fall(lens_kl)


def _onset(lens_kl: Layers) -> Effects:
    """Change of slope at the best breakpoint of two straight lines, as a share of the whole fall per tenth of depth."""
    fall = (lens_kl[:, 1:] - lens_kl[:, -1:]) / _whole_fall(lens_kl)[:, None]
    depth = np.linspace(0, 10, fall.shape[1])
    fits = [_hinge(depth, at) for at in depth[1:-1]]
    errors, turns = zip(*((((fall - fall @ fit.T) ** 2).sum(1), turn) for fit, turn in fits), strict=True)
    best = np.argmin(errors, axis=0)
    return -np.stack([fall @ turn for turn in turns])[best, np.arange(len(best))]


def _hinge(depth: Float64[np.ndarray, " depths"], at: float) -> tuple[np.ndarray, np.ndarray]:
    """The projection onto two lines that meet at a depth, and the weights that give the change of slope there."""
    design = np.stack([np.ones_like(depth), depth, np.maximum(depth - at, 0)], 1)
    solve = np.linalg.pinv(design)
    return design @ solve, solve[2]


def _late_less_early(share: Layers) -> Effects:
    half = share.shape[1] // 2
    return share[:, half:].mean(1) - share[:, :half].mean(1)


def _ratio_falls(ratio: Layers) -> Effects:
    half = ratio.shape[1] // 2
    return ratio[:, 1:half].mean(1) / ratio[:, half:].mean(1)


def _mlp_importance(mlp: Layers, attention: Layers) -> Effects:
    half = mlp.shape[1] // 2
    return np.exp((np.log(_floored(mlp)) - np.log(_floored(attention)))[:, half:].mean(1))


def _peak_less_last(share: Layers) -> Effects:
    return share[:, share.shape[1] // 2 : -1].max(1) - share[:, -1]


def _excess_in_last(suppression: Layers, prediction: Layers) -> Effects:
    return suppression[:, -1] - prediction[:, -1]


def _last_norm(norm: Layers) -> Effects:
    eighth = -(-norm.shape[1] // 8)
    return norm[:, -eighth:].mean(1) / np.median(norm[:, 1:-eighth], axis=1)


def _last_move(entropy: Layers) -> Effects:
    moves = np.abs(np.diff(entropy, axis=1))
    return moves[:, -1] - np.median(moves[:, 1:-1], axis=1)


EFFECTS: dict[str, tuple[tuple[str, ...], Callable[..., Effects]]] = {
    "first_layer_sensitivity": (("drop.kl",), _first_over_middle),
    "local_attention_early": (("attention.local",), _early_over_rest),
    "robust_middle": (("drop.agreement",), _middle_agreement),
    "little_early_progress": (("lens.kl",), _late_progress),
    "onset_of_prediction": (("lens.kl",), _onset),
    "prediction_neurons_emerge": (("neurons.prediction",), _late_less_early),
    "mlp_over_attention": (("norms.norm_ratio",), _ratio_falls),
    "mlp_importance": (("drop_mlp.kl", "drop_attn.kl"), _mlp_importance),
    "prediction_neurons_subside": (("neurons.prediction",), _peak_less_last),
    "suppression_outnumbers": (("neurons.suppression", "neurons.prediction"), _excess_in_last),
    "last_layer_sensitivity": (("drop.kl",), _last_over_middle),
    "mlp_norm_peaks_last": (("norms.mlp_norm",), _last_norm),
    "entropy_moves_last": (("lens.entropy",), _last_move),
}
"""The measurements that each signature needs, and the function that computes its effect per row."""

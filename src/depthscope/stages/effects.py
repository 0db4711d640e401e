"""The effect of each signature, from measurements by layer: one number per row of documents or resampled documents.

Layers in the middle are all but the first and the last. Effects on the lens start at x_1: x_0 is the embedding, which a lens
can read only because of tied weights. The lens's *progress* to x_l is what its KL falls and never rises above again: the fall
of the monotone envelope m_l = max of KL_k over k ≥ l. It equals the fall of KL where that is monotone, and shares of it are
between 0 and 1 for any curve.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64

from depthscope.schema.stages import FLOOR
from depthscope.stages.signals import Layers

SMALLEST_FALL = 0.5
"""In nats. If the lens makes less progress from x_1 to x_L, it is negligible, and shares are of this value instead."""

Depths = Float64[np.ndarray, "rows depths"]
"""At x_0 to x_L: one more than layers."""
Effects = Float64[np.ndarray, " rows"]


def _floored(kl: Layers) -> Layers:
    return np.maximum(kl, FLOOR)


def _first_over_middle(kl: Layers) -> Effects:
    """Of dropping a layer, or of swapping it with the next: middle swaps move neither the first nor the last layer."""
    kl = _floored(kl)
    return kl[:, 0] / np.median(kl[:, 1:-1], axis=1)


def _last_over_middle(kl: Layers) -> Effects:
    kl = _floored(kl)
    return kl[:, -1] / np.median(kl[:, 1:-1], axis=1)


def _early_less_rest(local: Layers) -> Effects:
    quarter = -(-local.shape[1] // 4)
    return local[:, :quarter].mean(1) - local[:, quarter:].mean(1)


def _middle_agreement(agreement: Layers) -> Effects:
    return agreement[:, 1:-1].mean(1)


def _envelope(lens_kl: Depths) -> Float64[np.ndarray, "rows depths-1"]:
    """The smallest non-increasing curve on or above lens KL, from x_1 to x_L."""
    return np.maximum.accumulate(lens_kl[:, :0:-1], axis=1)[:, ::-1]


def _late_progress(lens_kl: Depths) -> Effects:
    envelope, half = _envelope(lens_kl), lens_kl.shape[1] // 2
    whole = np.maximum(envelope[:, 0] - envelope[:, -1], SMALLEST_FALL)
    return (envelope[:, half - 1] - envelope[:, -1]) / whole


def _knee(lens_kl: Depths) -> Effects:
    """Rate of progress after the knee over the sum of the rates on both sides.

    The knee is the inner depth at which the envelope is farthest above the chord from x_1 to x_L, that is, at which progress
    is farthest behind an even pace (Satopaa et al. 2011).
    """
    envelope = _envelope(lens_kl)
    steps = envelope.shape[1] - 1
    first, last = envelope[:, :1], envelope[:, -1:]
    chord = first + (last - first) * np.arange(steps + 1) / steps
    knee = 1 + np.argmax((envelope - chord)[:, 1:-1], axis=1)[:, None]
    there = np.take_along_axis(envelope, knee, axis=1)
    before, after = (first - there) / knee, (there - last) / (steps - knee)
    return (after / np.maximum(before + after, 2 * SMALLEST_FALL / steps))[:, 0]


def _late_less_early(share: Layers) -> Effects:
    half = share.shape[1] // 2
    return share[:, half:].mean(1) - share[:, :half].mean(1)


def _attention_share(ratio: Layers) -> Effects:
    early = ratio[:, 1 : ratio.shape[1] // 2]
    return 1 - (1 / (1 + early)).mean(1)


def _ratio_falls(ratio: Layers) -> Effects:
    half = ratio.shape[1] // 2
    return ratio[:, 1:half].mean(1) / ratio[:, half:].mean(1)


def _importance_rises(mlp: Layers, attention: Layers) -> Effects:
    half = mlp.shape[1] // 2
    importance = np.log(_floored(mlp)) - np.log(_floored(attention))
    return np.exp(importance[:, half:].mean(1) - importance[:, 1:half].mean(1))


def _peak_less_last(share: Layers) -> Effects:
    return share[:, share.shape[1] // 2 : -1].max(1) - share[:, -1]


def _excess_in_last(suppression: Layers, prediction: Layers) -> Effects:
    return suppression[:, -1] - prediction[:, -1]


def _last_norm(norm: Layers) -> Effects:
    eighth = -(-norm.shape[1] // 8)
    return norm[:, -eighth:].mean(1) / np.median(norm[:, 1:-eighth], axis=1)


def _last_move(entropy: Depths) -> Effects:
    moves = np.abs(np.diff(entropy[:, 1:], axis=1))
    return moves[:, -1] - np.median(moves[:, :-1], axis=1)


EFFECTS: dict[str, tuple[tuple[str, ...], Callable[..., Effects]]] = {
    "first_layer_sensitivity": (("drop.kl",), _first_over_middle),
    "first_swap_sensitivity": (("swap.kl",), _first_over_middle),
    "local_attention_early": (("attention.local",), _early_less_rest),
    "little_early_progress": (("lens.kl",), _late_progress),
    "attention_heavy": (("norms.norm_ratio",), _attention_share),
    "robust_middle": (("drop.agreement",), _middle_agreement),
    "mlp_importance_rises": (("drop_mlp.kl", "drop_attn.kl"), _importance_rises),
    "prediction_neurons_emerge": (("neurons.prediction",), _late_less_early),
    "progress_sets_in": (("lens.kl",), _knee),
    "mlp_over_attention": (("norms.norm_ratio",), _ratio_falls),
    "prediction_neurons_subside": (("neurons.prediction",), _peak_less_last),
    "suppression_outnumbers": (("neurons.suppression", "neurons.prediction"), _excess_in_last),
    "last_layer_sensitivity": (("drop.kl",), _last_over_middle),
    "last_swap_sensitivity": (("swap.kl",), _last_over_middle),
    "mlp_norm_peaks_last": (("norms.mlp_norm",), _last_norm),
    "entropy_moves_last": (("lens.entropy",), _last_move),
}
"""The measurements that each signature needs, and the function that computes its effect per row. `lens.…` stands for the lens
that can be read."""

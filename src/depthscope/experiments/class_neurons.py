"""MLP neurons that write towards a class of tokens, or away from it (E11 and figure 16 of the paper).

A neuron adds W_U · w_out to the logits per unit of activation. Its *difference* for a class is the mean of that over the
tokens of the class − the mean over all others; it needs only w_out · (mean row of W_U of the class − of the others). Weights
are processed as in appendix D of the paper (depthscope.models.weights). The paper selects by the "greatest mean absolute
difference"; here the sign determines a neuron's group: prediction neurons have a positive difference, suppression neurons a
negative one.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from depthscope.models.model import Model
from depthscope.models.weights import mlp_output_weights, unembedding
from depthscope.schema.neurons import PEAKED
from depthscope.schema.probes import BY_CLASS, BY_DIFFERENCE
from depthscope.statistics.moments import moments_of_few

CANDIDATES = 512
"""How many neurons of each sign, those with the largest differences, have their kurtosis computed."""


@dataclass(frozen=True, slots=True)
class ClassNeurons:
    """Neurons selected for a class of tokens, the largest absolute difference first."""

    layer: Int64[np.ndarray, " neurons"]
    neuron: Int64[np.ndarray, " neurons"]
    difference: Float64[np.ndarray, " neurons"]
    kurtosis: Float64[np.ndarray, " neurons"]
    """Raw kurtosis of the cosines between w_out and the rows of W_U."""
    skew: Float64[np.ndarray, " neurons"]
    selected_by: str
    """`class` if all are prediction (or suppression) neurons, `difference` if there are too few of these."""

    def __len__(self) -> int:
        return len(self.layer)


def class_differences(model: Model, tokens: Bool[np.ndarray, " vocab"]) -> list[Float64[np.ndarray, " neurons"]]:
    """The difference of every MLP neuron, block by block, for the class `tokens` (neither none nor all of them).

    Raises UnsupportedError if a block does not have output weights with one row per neuron.
    """
    with torch.inference_mode():
        return _differences(model, unembedding(model)[0], tokens)


def class_neurons(model: Model, tokens: Bool[np.ndarray, " vocab"], count: int) -> tuple[ClassNeurons, ClassNeurons]:
    """`count` prediction and `count` suppression neurons with the largest absolute difference for the class.

    Prediction neurons: kurtosis > 10, skew > 0, positive difference. Suppression neurons: kurtosis > 10, skew < 0, negative
    difference. If fewer than `count` of the CANDIDATES with the largest differences qualify, any neuron with a difference
    of that sign may be selected. Raises UnsupportedError as class_differences does.
    """
    with torch.inference_mode():
        weight = unembedding(model)[0]
        differences = _differences(model, weight, tokens)
        weight /= torch.linalg.vector_norm(weight, dim=1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
        prediction, suppression = (_chosen(model, weight, differences, sign, count) for sign in (1, -1))
    return prediction, suppression


def _differences(
    model: Model, weight: Float[Tensor, "vocab d_model"], tokens: Bool[np.ndarray, " vocab"]
) -> list[Float64[np.ndarray, " neurons"]]:
    inside = torch.from_numpy(tokens).to(weight.device)
    direction = _mean_row(weight, inside) - _mean_row(weight, ~inside)
    found = []
    for block in range(model.depth):
        rows = mlp_output_weights(model, block)
        parts = [part.double() @ direction for part in rows.split(4096)]  # in parts: float64 copies are twice as large
        found.append(torch.cat(parts).cpu().numpy())
    return found


def _mean_row(weight: Float[Tensor, "vocab d_model"], tokens: Bool[Tensor, " vocab"]) -> Float64[Tensor, " d_model"]:
    """The mean row over the tokens, float64, a part of the vocabulary at a time."""
    parts = zip(weight.split(4096), tokens.split(4096), strict=True)
    return torch.stack([rows[chosen].double().sum(0) for rows, chosen in parts]).sum(0) / tokens.sum()


def _chosen(
    model: Model,
    directions: Float[Tensor, "vocab d_model"],
    differences: list[Float64[np.ndarray, " neurons"]],
    sign: int,
    count: int,
) -> ClassNeurons:
    places = np.array([(layer, i) for layer, values in enumerate(differences) for i in range(len(values))])
    signed = np.concatenate(differences) * sign
    order = np.argsort(-signed, kind="stable")[: max(CANDIDATES, count)]
    order = order[signed[order] > 0]
    layer, neuron = places[order].T
    rows = torch.empty(len(order), directions.shape[1], device=directions.device)
    for block in np.unique(layer):
        here = torch.from_numpy(layer == block).to(rows.device)
        rows[here] = mlp_output_weights(model, int(block))[torch.from_numpy(neuron[layer == block]).to(rows.device)]
    kurtosis, skew = moments_of_few(rows, directions)
    of_class = np.flatnonzero((kurtosis > PEAKED) & (skew * sign > 0))
    kept, how = (of_class, BY_CLASS) if len(of_class) >= count else (np.arange(len(order)), BY_DIFFERENCE)
    kept = kept[:count]
    return ClassNeurons(layer[kept], neuron[kept], signed[order][kept] * sign, kurtosis[kept], skew[kept], how)

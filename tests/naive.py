"""Naive float64 definitions, from whole logits and from plain forwards of models rebuilt by hand."""

import numpy as np
from rebuilt import block_list, logits_of, with_order, without_component
from scipy import stats
from torch import Tensor
from transformers import PreTrainedModel


def measures(own: Tensor, edited: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """M1-M4 of the paper from logits shaped [..., vocab]."""
    log_p, log_q = own.double().log_softmax(-1), edited.double().log_softmax(-1)
    return {
        "kl": (log_p.exp() * (log_p - log_q)).sum(-1),
        "agreement": (own.argmax(-1) == edited.argmax(-1)).double(),
        "entropy": -(log_q.exp() * log_q).sum(-1),
        "loss": -log_q.gather(-1, targets[..., None])[..., 0],
    }


def residuals(model: PreTrainedModel, ids: Tensor) -> list[Tensor]:
    """x_0 … x_L of a plain forward of the model, seen by hooks on its blocks."""
    holder, name = block_list(model)
    blocks = getattr(holder, name)
    seen: list[Tensor] = []

    def before(_module, args, kwargs):
        seen.append((args[0] if args else kwargs["hidden_states"]).clone())

    def after(_module, _args, output):
        seen.append((output[0] if isinstance(output, tuple) else output).clone())

    handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks]
    handles.append(blocks[-1].register_forward_hook(after))
    logits_of(model, ids)
    for handle in handles:
        handle.remove()
    return seen


def contributions(
    model: PreTrainedModel, ids: Tensor, layer: int, order: list[int] | None = None
) -> tuple[Tensor, Tensor]:
    """What attention and MLP of block `layer` add to the residual stream: with the MLP's weights zeroed, and the rest.

    `order`: in a model whose blocks stand in this order.
    """
    order = order or list(range(model.config.num_hidden_layers))
    place = order.index(layer)
    whole = residuals(with_order(model, order), ids)
    silent = residuals(with_order(without_component(model, layer, "mlp"), order), ids)
    return silent[place + 1] - whole[place], whole[place + 1] - silent[place + 1]


def estimate(values: np.ndarray, documents: np.ndarray) -> tuple[float, float, float]:
    """Mean over tokens and its 95 % interval over documents, from values [windows, tokens]: loops over the definition."""
    sums = {d: values[documents == d].sum() for d in np.unique(documents)}
    counts = {d: values[documents == d].size for d in np.unique(documents)}
    mean = sum(sums.values()) / sum(counts.values())
    spread = sum((sums[d] - mean * counts[d]) ** 2 for d in sums)
    error = np.sqrt(len(sums) / (len(sums) - 1) * spread) / sum(counts.values())
    half = stats.t.ppf(0.975, len(sums) - 1) * error
    return mean, mean - half, mean + half

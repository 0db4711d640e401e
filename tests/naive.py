"""Naive float64 definitions of the measures, from whole logits."""

from torch import Tensor


def measures(own: Tensor, edited: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """M1-M4 of the paper from logits shaped [..., vocab]."""
    log_p, log_q = own.double().log_softmax(-1), edited.double().log_softmax(-1)
    return {
        "kl": (log_p.exp() * (log_p - log_q)).sum(-1),
        "agreement": (own.argmax(-1) == edited.argmax(-1)).double(),
        "entropy": -(log_q.exp() * log_q).sum(-1),
        "loss": -log_q.gather(-1, targets[..., None])[..., 0],
    }

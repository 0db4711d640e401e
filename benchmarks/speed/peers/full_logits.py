"""What one computes who has both models' logits whole: KL, agreement, entropy and loss, in float32. Only torch."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Cached:
    """The model's own predictions on a batch, computed once: log p and p, shaped [batch, seq, vocab], and the argmax."""

    log_p: Tensor
    p: Tensor
    top: Tensor


def cached(logits: Tensor) -> Cached:
    """What of the model's own logits every edit is compared with."""
    log_p = logits.float().log_softmax(-1)
    return Cached(log_p, log_p.exp(), logits.argmax(-1))


def measured(own: Cached, logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """KL(p‖q), agreement, H(q) and −log q(next token) from the edited model's logits; each shaped [batch, seq]."""
    log_q = logits.float().log_softmax(-1)
    kl = torch.linalg.vecdot(own.p, own.log_p - log_q)
    entropy = -torch.linalg.vecdot(log_q.exp(), log_q)
    loss = -log_q.gather(-1, targets[..., None])[..., 0]
    return kl, logits.argmax(-1) == own.top, entropy, loss

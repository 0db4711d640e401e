"""The gradient of KL(p‖q) with respect to a residual stream that the unembedding decodes, for training a lens.

With logits z = map(W h) and h the final norm of the stream, the gradient with respect to z is q − p. It is taken back through
the map and W as one product, without an autograd graph over the vocabulary; only the modules before the unembedding, which are
as wide as the stream, are differentiated by torch.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from depthscope.models.unembedding import Unembedding
from depthscope.shapes import Hidden, Logits

ALL_LOGITS = 2**22
"""Logits in memory at once: 16 MiB of float32, a few times."""
FEWEST, MOST = 64, 512
"""Positions per step whatever the vocabulary: fewer make noisy gradients and slow products, more give little."""


def positions_at_once(head: Unembedding) -> int:
    """Positions whose full logits are computed together: 512, or fewer where the vocabulary is larger than 8,192."""
    return min(MOST, max(FEWEST, ALL_LOGITS // head.vocabulary))


def log_probabilities(head: Unembedding, hidden: Hidden) -> Logits:
    """log p of what the unembedding reads, in float32 (float64 for a float64 model)."""
    return _exact(head.logits(hidden)).log_softmax(-1)


def kl_gradient(
    head: Unembedding, log_p: Logits, stream: Float[Tensor, "tokens d_model"]
) -> tuple[Float[Tensor, " tokens"], Float[Tensor, "tokens d_model"]]:
    """KL(p‖q) of each position in nats, and its gradient with respect to `stream`, in the dtype of `stream`.

    `stream` may have a finer dtype than the model: it is decoded in the model's.
    """
    with torch.enable_grad():
        leaf = stream.detach().requires_grad_()
        hidden = head.hidden(leaf.to(head.weight.dtype)[None])
    with torch.no_grad():
        logits = head.logits(hidden.detach())
        log_q = _exact(logits).log_softmax(-1)
        p = log_p.exp()
        kl = (p * (log_p - log_q)).sum(-1)
        back = log_q.exp_().sub_(p).mul_(head.map.slope(_exact(logits)))
        into_hidden = back.to(head.weight.dtype) @ head.weight
    (gradient,) = torch.autograd.grad(hidden, leaf, into_hidden)
    return kl, gradient


def _exact(logits: Logits) -> Logits:
    return logits if logits.dtype == torch.float64 else logits.float()

"""The authors' loop on TransformerLens 2: one document at a time, the baseline recomputed for every layer and edit.

Full logits kept, float entropies from a clamped softmax, per-token lists, as in the published script. What it does once per
layer or per token outside the models is left out, in its favour: the model rebuilt for each swap (here the two blocks change
places in the list), token strings, the table of all rows. The script has swaps and whole drops; components are silenced as it
silences whole layers, by hooks that write zeros. Runs in an environment of its own: see `workers`.
"""

from typing import Any

import torch
from serve import serve
from torch import Tensor
from torch.nn import functional as F
from transformer_lens import HookedTransformer, HookedTransformerConfig, utils  # pyright: ignore[reportMissingImports]

SILENCED = {"drop": ("attn_out", "mlp_out"), "drop_attn": ("attn_out",), "drop_mlp": ("mlp_out",), "swap": ()}


def _silence(value: Tensor, hook: Any) -> Tensor:
    value[:] = 0.0
    return value


def _kl(z_p: Tensor, z_q: Tensor) -> Tensor:
    log_p, log_q = z_p.log_softmax(-1), z_q.log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def _entropy_bits(z: Tensor) -> Tensor:
    p = F.softmax(z, -1).clamp(min=1e-9)
    return -(p * p.log() / torch.log(torch.tensor(2.0))).sum(-1)


class AuthorsLoop:
    """Both runs and the measures of every document, for one layer and edit."""

    def __init__(self, spec: dict[str, Any], ids: Tensor, targets: Tensor) -> None:
        torch.set_grad_enabled(False)
        dtype = getattr(torch, spec["dtype"])
        config = HookedTransformerConfig(**spec["lens_config"], dtype=dtype, device="cpu", seed=0)
        self.model = HookedTransformer(config).eval()
        self.documents = [window[None] for window in ids]

    def baseline(self) -> None:
        """Nothing: the loop has no baseline done once."""

    def pair(self, kind: str, layer: int) -> float:
        """One layer's turn of the loop."""
        divergences: list[float] = []
        hooks = [(utils.get_act_name(name, layer), _silence) for name in SILENCED[kind]]
        for tokens in self.documents:
            z_p, loss_p = self._run(tokens, [])
            if kind == "swap":
                self._exchange(layer)
            z_q, loss_q = self._run(tokens, hooks)
            if kind == "swap":
                self._exchange(layer)
            z_p, z_q = z_p[0, 1:], z_q[0, 1:]
            rows = [_kl(z_p, z_q), _entropy_bits(z_p), _entropy_bits(z_q), (loss_p - loss_q)[0]]
            rows += [z_p.argmax(-1), z_q.argmax(-1), loss_p[0], loss_q[0]]
            lists = [row.tolist() for row in rows]
            divergences += lists[0]
        return sum(divergences) / len(divergences)

    def _run(self, tokens: Tensor, hooks: list[Any]) -> tuple[Tensor, Tensor]:
        logits = self.model.run_with_hooks(tokens, return_type="logits", fwd_hooks=hooks)
        return logits, self.model.loss_fn(logits, tokens, per_token=True)

    def _exchange(self, layer: int) -> None:
        blocks = self.model.blocks
        blocks[layer], blocks[layer + 1] = blocks[layer + 1], blocks[layer]


if __name__ == "__main__":
    serve(AuthorsLoop)

"""The same as the hooks, written with nnsight: a trace per edit and batch, the baseline traced once.

Drops skip the block, components are set to zero inside the trace, swaps permute the model's list of blocks. Runs in an
environment of its own: see `workers`.
"""

import time
from typing import Any

import torch
from full_logits import Cached, cached, measured
from nnsight import NNsight  # pyright: ignore[reportMissingImports]
from serve import serve
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

PLACES = {
    "gpt2": ("transformer.h", "attn", "mlp"),
    "gpt_neox": ("gpt_neox.layers", "attention", "mlp"),
    "llama": ("model.layers", "self_attn", "mlp"),
}
"""Blocks, and attention and MLP inside a block, per family."""


class NNsightLoop:
    """One full forward per edit, whole logits saved from the trace."""

    def __init__(self, spec: dict[str, Any], ids: Tensor, targets: Tensor) -> None:
        torch.set_grad_enabled(False)
        config = AutoConfig.for_model(spec["family"], **spec["config"])
        dtype = getattr(torch, spec["dtype"])
        hf = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
        with torch.no_grad():
            for parameter in hf.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(spec["spread"])
        path, self.attention, self.mlp = PLACES[spec["family"]]
        self.blocks = hf.get_submodule(path)
        self.model = NNsight(hf)
        self.envoys: Any = self.model
        for name in path.split("."):
            self.envoys = getattr(self.envoys, name)
        self.ids, self.targets, self.own = ids, targets, []
        self.batch = self._faster_batch()

    def _faster_batch(self) -> int:
        spent = {}
        for size in sorted({1, len(self.ids)}):
            self.batch = size
            self.baseline()
            self.pair("drop", 0)
            start = time.perf_counter()
            self.pair("drop", 0)
            spent[size] = time.perf_counter() - start
        return min(spent, key=lambda size: spent[size])

    def baseline(self) -> None:
        """The model's own predictions, kept for all pairs."""
        self.own: list[Cached] = []
        for ids in self.ids.split(self.batch):
            with self.model.trace(input_ids=ids, use_cache=False):
                logits = self.model.output.logits.save()
            self.own.append(cached(logits))

    def pair(self, kind: str, layer: int) -> float:
        """All text with one edit; the mean KL."""
        if kind == "swap":
            self._exchange(layer)
        batches = zip(self.own, self.ids.split(self.batch), self.targets.split(self.batch), strict=True)
        rows = [measured(own, self._edited(kind, layer, ids), targets)[0] for own, ids, targets in batches]
        if kind == "swap":
            self._exchange(layer)
        return float(torch.cat(rows).mean())

    def _exchange(self, layer: int) -> None:
        blocks = self.blocks
        blocks[layer], blocks[layer + 1] = blocks[layer + 1], blocks[layer]

    def _edited(self, kind: str, layer: int, ids: Tensor) -> Tensor:
        block = self.envoys[layer]
        if kind == "drop":
            with self.model.trace(input_ids=ids, use_cache=False):
                block.skip(block.input)
                logits = self.model.output.logits.save()
        elif kind == "drop_attn":
            attention = getattr(block, self.attention)
            with self.model.trace(input_ids=ids, use_cache=False):
                attention.output[0][:] = 0
                logits = self.model.output.logits.save()
        elif kind == "drop_mlp":
            mlp = getattr(block, self.mlp)
            with self.model.trace(input_ids=ids, use_cache=False):
                mlp.output[:] = 0
                logits = self.model.output.logits.save()
        else:
            with self.model.trace(input_ids=ids, use_cache=False):
                logits = self.model.output.logits.save()
        return logits


if __name__ == "__main__":
    serve(NNsightLoop)

"""What a competent user would write with transformers: the baseline cached, one full forward per edit, batched.

Drops pass the residual stream on, swaps permute the model's ModuleList, components are zeroed by forward hooks; sdpa
attention, no key-value cache, inference mode, measures from the full logits in float32. One window or all windows go in
at once, whichever is faster here; on an accelerator as many as fit into its memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.ours import drawn_pairs
from benchmarks.speed.peers.full_logits import Cached, cached, measured
from benchmarks.speed.rounds import Seconds, seconds
from benchmarks.speed.routes import layers
from depthscope.models.model import Model


class Hooks:
    """A pair costs the same at every layer of a kind: one of each kind is timed, and the sweep's time follows."""

    name = "hooks"

    def __init__(self, model: Model, ids: Tensor, targets: Tensor, sweeps: Mapping[str, Sequence[str]]) -> None:
        self.hf: Any = model.hf
        self.components = model.require_components()
        self.blocks = self.hf.get_submodule(model.stack.path)
        self.ids, self.targets, self.sweeps = ids, targets, sweeps
        self.kinds = list(dict.fromkeys(kind for kinds in sweeps.values() for kind in kinds))
        self.batch = 1

    def warm(self) -> None:
        """One pair with each batch size; the fastest stays."""
        spent = {}
        device, count = str(self.ids.device), len(self.ids)
        sizes = {1, count} if device == "cpu" else {1, count, *(2**power for power in range(count.bit_length()))}
        for self.batch in sorted(sizes):
            try:
                own = self.baseline()
                self.pair(own, self.kinds[0], 0)
                spent[self.batch] = seconds(lambda own=own: self.pair(own, self.kinds[0], 0), device)
            except torch.OutOfMemoryError:
                break
        self.batch = min(spent, key=lambda size: spent[size])

    @torch.inference_mode()
    def baseline(self) -> list[Cached]:
        """The model's own predictions, batch by batch."""
        return [cached(self._logits(ids)) for ids in self.ids.split(self.batch)]

    @torch.inference_mode()
    def pair(self, own: list[Cached], kind: str, layer: int) -> tuple[Tensor, ...]:
        """All text with one edit: KL, agreement, entropy and loss per token, each shaped [windows, length]."""
        rows = []
        with self.edited(kind, layer):
            for one, ids, targets in zip(own, self.ids.split(self.batch), self.targets.split(self.batch), strict=True):
                rows.append(measured(one, self._logits(ids), targets))
        return tuple(map(torch.cat, zip(*rows, strict=True)))

    def mean_kl(self, chosen: Sequence[tuple[str, int]]) -> dict[tuple[str, int], float]:
        """Mean KL of some (kind, layer) pairs."""
        own = self.baseline()
        return {pair: float(self.pair(own, *pair)[0].mean()) for pair in chosen}

    def repetition(self, number: int) -> Seconds:
        """The baseline and one pair of each kind, scaled to each sweep."""
        own: list[Cached] = []
        device = str(self.ids.device)
        base = seconds(lambda: own.extend(self.baseline()), device)
        spent = {
            kind: seconds(lambda kind=kind, layer=layer: self.pair(own, kind, layer), device)
            for kind, layer in drawn_pairs(self.kinds, len(self.blocks), number)
        }
        return scaled(base, spent, self.sweeps, len(self.blocks))

    @contextmanager
    def edited(self, kind: str, layer: int) -> Iterator[None]:
        """The model changed for the time of the context."""
        block = self.blocks[layer]
        if kind == "swap":
            self.blocks[layer], self.blocks[layer + 1] = self.blocks[layer + 1], block
            undo = lambda: self._put_back(layer, block)  # noqa: E731
        elif kind == "drop":
            block.forward = lambda hidden_states, *_args, **_kwargs: hidden_states
            undo = lambda: delattr(block, "forward")  # noqa: E731
        else:
            (silent,) = self.components.parts[layer][kind.removeprefix("drop_")]
            undo = silent.register_forward_hook(_zero).remove
        try:
            yield
        finally:
            undo()

    def _put_back(self, layer: int, block: nn.Module) -> None:
        self.blocks[layer + 1], self.blocks[layer] = self.blocks[layer], block

    def _logits(self, ids: Tensor) -> Tensor:
        return self.hf(input_ids=ids, use_cache=False).logits


def scaled(base: float, spent: Mapping[str, float], sweeps: Mapping[str, Sequence[str]], depth: int) -> Seconds:
    """Seconds of whole sweeps from one baseline and one pair of each kind."""
    return {sweep: base + sum(layers(kind, depth) * spent[kind] for kind in kinds) for sweep, kinds in sweeps.items()}


def _zero(_module: nn.Module, _args: Any, output: Any) -> Any:
    return (torch.zeros_like(output[0]), *output[1:]) if isinstance(output, tuple) else torch.zeros_like(output)

"""Switching a model to transformers' eager attention, the one kind that returns its pattern, and watching for patterns."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from depthscope.models.hooks import hooked, replaced


def eager_attention(hf: nn.Module) -> AbstractContextManager[None]:
    """While open, all parts of a model are on eager attention: it is set in their configurations, which each call reads."""
    # By identity: configurations compare by value, and of two equal ones each must be set.
    configs: dict[int, Any] = {id(module.config): module.config for module in hf.modules() if hasattr(module, "config")}
    return replaced([*configs.values()], "_attn_implementation", ["eager"] * len(configs))


@contextmanager
def watched_pattern(
    block: nn.Module, shape: tuple[int, ...], seen: list[Tensor], device: torch.device
) -> Iterator[None]:
    """Keep, on a device, the first pattern that a module of the block returns after its output, [batch, heads, seq, seq]."""

    def keep(_module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        for value in output[1:] if isinstance(output, tuple | list) and not seen else ():
            if (
                isinstance(value, Tensor)
                and value.ndim == 4
                and (value.shape[0], *value.shape[2:]) == (*shape, shape[1])
            ):
                seen.append(value.to(device))
                return

    with hooked(after=[(module, keep) for module in block.modules()]):
        yield

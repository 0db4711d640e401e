"""How wide a model's attention and MLPs are: heads, neurons and experts, from its modules where they hold the number."""

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from depthscope.models.components import Components
from depthscope.routes import ATTN, MLP

KV_HEADS = ("num_kv_heads", "kv_heads")
"""Attributes of attention modules with the number of heads of keys and values; other families have it in the configuration."""
HEAD_WIDTH = ("qk_head_dim", "head_dim", "head_size")


def widths(config: Any, components: Components | None, d_model: int) -> dict[str, int | None]:
    """heads, kv_heads, head_width, mlp_width and experts; None for what a model does not have.

    Blocks may differ (the first ones of some families have no experts): the numbers are those of the last one that has them.
    """
    heads = _whole(getattr(config, "num_attention_heads", None))
    attention, mlp = (_last(components, kind) for kind in (ATTN, MLP))
    experts, mlp_width = _neurons(mlp, d_model) if mlp is not None else (None, None)
    sizes: dict[str, int | None] = {"heads": heads, "kv_heads": None, "head_width": None}
    if heads is not None:
        sizes["kv_heads"] = _own(attention, KV_HEADS) or _whole(getattr(config, "num_key_value_heads", None)) or heads
        sizes["head_width"] = (
            _own(attention, HEAD_WIDTH) or _whole(getattr(config, "head_dim", None)) or d_model // heads
        )
    return sizes | {"mlp_width": mlp_width, "experts": experts}


def _last(components: Components | None, kind: str) -> nn.Module | None:
    """The component of the last block that has it; of an MLP with experts and a dense part the experts."""
    having = [parts[kind][0] for parts in components.parts if kind in parts] if components else []
    return having[-1] if having else None


def _own(module: nn.Module | None, names: tuple[str, ...]) -> int | None:
    """A number that a module, or one within it, has as an attribute."""
    modules = () if module is None else module.modules()
    return next((found for one in modules for name in names if (found := _whole(getattr(one, name, None)))), None)


def _neurons(mlp: nn.Module, d_model: int) -> tuple[int | None, int | None]:
    """(routed experts, neurons of one of them); (None, neurons) of a dense MLP."""
    for name, parameter in mlp.named_parameters():
        if parameter.ndim == 3 and "down" in name and "bias" not in name and d_model in parameter.shape[1:]:
            experts, first, second = parameter.shape
            return experts, first if second == d_model else second
    lists = [module for name, module in mlp.named_modules() if isinstance(module, nn.ModuleList) and "experts" in name]
    routed = lists[0] if lists else mlp
    # An adapter's own map to the residual stream is narrower than the one it adapts.
    maps = [_map(module) for module in routed.modules()]
    into = max((inputs for inputs, outputs in filter(None, maps) if outputs == d_model), default=None)
    return len(lists[0]) if lists else None, into


def _map(module: nn.Module) -> tuple[int, int] | None:
    """(inputs, outputs) of a linear map."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    return (module.nx, module.nf) if isinstance(module, Conv1D) else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

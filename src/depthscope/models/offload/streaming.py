"""Loading a model larger than memory: everything but its blocks, which are read when they are run (`residency`).

transformers loads the checkpoint as usual, from deferred tensors: names, conversions and tied weights stay its own business.
What it recorded for the blocks' tensors is kept as the recipe for reading a block; all other tensors get their values at once.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from depthscope.errors import ModelError, UnsupportedError
from depthscope.models.memory import available_memory
from depthscope.models.offload.checkpoint import StoredTensor
from depthscope.models.offload.deferred import Deferred
from depthscope.models.offload.residency import CAPACITY, BlockReader, Residency
from depthscope.models.stack import find_blocks

CHOICES = ("auto", "yes", "no")
SHARE = 0.7
"""Share of the memory available; weights that take more are streamed if streaming is `auto`."""
ROOM = 0.5
"""Share of the memory left by the blocks that the residual streams of routes in progress may take."""


def to_stream(
    source: str, stored: Mapping[str, StoredTensor] | None, stream: str, dtype: torch.dtype, device: torch.device
) -> bool:
    """Whether a checkpoint is to be streamed. `stream` is one of CHOICES; `stored` is None for quantised weights.

    Raises ModelError for another choice, UnsupportedError where "yes" cannot be done.
    """
    check_choice(stream)
    if stored is None:
        if stream == "yes":
            raise UnsupportedError(f"{source} cannot be streamed: its weights are quantised. Load it whole (stream no)")
        return False
    if stream == "auto":
        limit = device_memory(device)
        return limit is not None and weight_bytes(stored, dtype) > SHARE * limit
    return stream == "yes"


def check_choice(stream: str) -> None:
    """Raise ModelError for a choice that is not one of CHOICES."""
    if stream not in CHOICES:
        raise ModelError(f"unknown choice {stream!r} for streaming: expected one of {', '.join(CHOICES)}")


def weight_bytes(stored: Mapping[str, StoredTensor], dtype: torch.dtype) -> int:
    """Bytes of the tensors in memory, floating ones in `dtype`."""
    sizes = ((t.bytes // t.dtype.itemsize, dtype if t.dtype.is_floating_point else t.dtype) for t in stored.values())
    return sum(count * kind.itemsize for count, kind in sizes)


def device_memory(device: torch.device) -> int | None:
    """Bytes available on a device; None where that is not known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return available_memory() if device.type == "cpu" else None


def load_deferred(model_class: Any, stored: Mapping[str, StoredTensor], **settings: Any) -> tuple[Any, Any]:
    """transformers' model and loading report, every weight deferred; `settings` go to `from_pretrained`."""
    return load_state(model_class, {name: Deferred.of(tensor) for name, tensor in stored.items()}, **settings)


def load_state(model_class: Any, state: Mapping[str, Any], **settings: Any) -> tuple[Any, Any]:
    """transformers' model and loading report from tensors it is given, so that it opens no file."""
    return model_class.from_pretrained(None, state_dict=dict(state), output_loading_info=True, **settings)


def keep_blocks_out(model: PreTrainedModel, device: torch.device) -> Residency:
    """Give every deferred tensor its values except the blocks' own parameters, and put a Residency in charge of those.

    Raises UnsupportedError when the model has no list of blocks.
    """
    blocks = find_blocks(model)[1]
    owners = [[(m, n, p) for m in block.modules() for n, p in m._parameters.items()] for block in blocks]
    # Only what a single module uses is streamed: evicting a tied weight would take it from the other module too.
    uses = Counter(id(p) for m in model.modules() for p in m._parameters.values())
    parameters = [[(m, n, p) for m, n, p in block if isinstance(p, Deferred) and uses[id(p)] == 1] for block in owners]
    streamed = {id(parameter) for block in parameters for _, _, parameter in block}
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                key = id(parameter)
                made[key] = made.get(key) or _kept(parameter, device, key in streamed)
                module._parameters[name] = made[key][0]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _numbers(buffer).to(device)
    keep = device.type != "cpu" and _fits_host(parameters)
    reader = BlockReader(parameters, keep)
    left = (device_memory(device) or 0) - CAPACITY * max(reader.bytes(block) for block in range(len(blocks)))
    return Residency(blocks, reader, device, CAPACITY, room=int(max(0, left) * ROOM))


def _kept(parameter: nn.Parameter, device: torch.device, streamed: bool) -> tuple[nn.Parameter, nn.Parameter]:
    """What replaces a parameter, and the parameter itself: kept alive, so that no other object gets its id."""
    if streamed:
        absent = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
        return nn.Parameter(absent, requires_grad=False), parameter
    return nn.Parameter(_numbers(parameter).detach().to(device), requires_grad=False), parameter


def _numbers(tensor: Tensor) -> Tensor:
    return tensor.numbers() if isinstance(tensor, Deferred) else tensor


def _fits_host(parameters: Sequence[Sequence[tuple[nn.Module, str, Deferred]]]) -> bool:
    """Whether the host's memory has room for all blocks, so that the disk is read once."""
    total = sum(p.numel() * p.dtype.itemsize for block in parameters for _, _, p in block)
    limit = available_memory()
    return limit is not None and total <= SHARE * limit

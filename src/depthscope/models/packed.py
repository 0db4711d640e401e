"""Packed weights: what quantisation leaves in a module instead of a weight that can be read.

A library may store codes and scales as parameters of their own (bitsandbytes) or as one tensor whose class computes with its
parts (torchao). Neither is the weight that the module multiplies with. A library may also round what the module is given
("dynamic" quantisation): then the module is linear only up to that rounding.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

EIGHT_BITS = 0.02
"""Largest error, as a share of the largest output, of a map whose input is rounded to eight bits for each token; as much as a
product in half precision is allowed."""


def as_stored(tensor: Tensor) -> bool:
    """Whether a tensor holds the numbers it stands for: an ordinary one, of floating values in 16 bits or more."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.is_floating_point() and tensor.dtype.itemsize > 1


def packed(module: nn.Module) -> bool:
    """Whether a module holds a parameter that is not as stored."""
    return not all(map(as_stored, module.parameters(recurse=False)))


def parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The ordinary tensors that a tensor consists of, by name: itself, or the codes and scales it is packed in."""
    if not is_traceable_wrapper_subclass(tensor):
        yield name, tensor
        return
    inner: Any = tensor
    for one in inner.__tensor_flatten__()[0]:
        yield from parts(f"{name}.{one}", getattr(tensor, one))


TRIED = 8
"""Numbers of an input that are moved, each alone, to see whether a module notices."""


@torch.inference_mode()
def rounds_input(module: nn.Module, width: int, dtype: torch.dtype) -> bool:
    """Whether a packed module rounds what it is given to about eight bits: it does not notice when a number is moved by a
    hundredth of a step, and does when it is moved by many. `width`: numbers that it is given for each token.
    """
    if (
        not packed(module) or dtype.itemsize < 4
    ):  # half precision may not notice either, and is allowed as large an error
        return False
    generator = torch.Generator().manual_seed(0)
    given = torch.rand(width, generator=generator).to(next(module.parameters()).device, dtype) * 1.6 - 0.8
    given[0], given[-1] = 1.0, -1.0  # the largest and smallest, which decide the steps, stay
    tried = torch.arange(1, min(TRIED + 1, width - 1))

    def made(moved: float) -> Tensor:
        rows = given.repeat(len(tried), 1)
        rows[torch.arange(len(tried)), tried] += moved
        return module(rows)

    # As many rows each time: a product of one row may add in another order than that of several.
    own = made(0.0)
    noticed, unnoticed = (made(0.2) != own).any(-1), (made(1e-4) == own).all(-1)
    # A number may lie at the border between two steps.
    return int((noticed & unnoticed).sum()) > len(tried) / 2

"""Deferred tensors: how a weight is computed from the checkpoint, without its values.

transformers renames a checkpoint's tensors as it loads them, converts their dtype, and for some families joins many into
one (the experts of a block). None of that is repeated here. transformers loads *deferred* tensors, which know their shape and
dtype and record what is done to them. The values are computed on request, as often as needed, by the same operations on what
the checkpoint holds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from depthscope.errors import UnsupportedError
from depthscope.models.offload.checkpoint import StoredTensor


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One function called on deferred tensors."""

    function: Callable[..., Any]
    positional: tuple[Any, ...]
    keyword: dict[str, Any]


class Deferred(Tensor):
    """A tensor on the meta device that knows its origin: a stored tensor, or an operation on other tensors."""

    origin: StoredTensor | Operation
    output: int | None = None
    """Which of several results of the operation."""

    @classmethod
    def of(cls, stored: StoredTensor) -> "Deferred":
        """A stored tensor, deferred."""
        deferred = torch.empty(stored.shape, dtype=stored.dtype, device="meta").as_subclass(cls)
        deferred.origin = stored
        return deferred

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function on shapes alone and record it, unless it changes no values."""
        given = dict(kwargs or {})
        name = getattr(func, "__name__", str(func))
        if func is Tensor.to:  # which device is decided when the numbers are read
            given.pop("device", None)
            args = tuple(arg for arg in args if not isinstance(arg, str | torch.device))
            if given.get("dtype") is None and len(args) == 1:
                return args[0]
        # An operation in place has no output to record it on, and what was recorded of the tensor before would be wrong.
        if name.endswith("_") and not name.endswith("__") and func is not Tensor.requires_grad_:
            raise UnsupportedError(f"a weight is changed by {name} while it is loaded, which cannot be repeated later")
        result = super().__torch_function__(func, types, args, given)
        unchanged = (
            func in UNCHANGING or (func is Tensor.__getitem__ and args[1] is ...) or _same_dtype(func, args, result)
        )
        operation = Operation(func, args, given)
        results = list(enumerate(result)) if isinstance(result, tuple | list) else [(None, result)]
        for output, one in results:
            # One that has an origin is an argument that was returned itself.
            if isinstance(one, Deferred) and not hasattr(one, "origin"):
                one.origin, one.output = (args[0].origin, args[0].output) if unchanged else (operation, output)
        return result

    def write_into(self, tensor: Tensor, read: dict[Operation, Any]) -> None:
        """Put the values into `tensor`, of the same shape and dtype. `read` caches operations with several results."""
        origin = self.origin
        if isinstance(origin, StoredTensor) and origin.dtype == tensor.dtype and tensor.is_contiguous():
            origin.read_into(tensor)
        else:
            tensor.copy_(_numbers(self, read))

    def dense_strides(self) -> tuple[int, ...]:
        """Strides as transformers would have them, without holes: memory layout decides which kernel computes a product, and
        so its rounding."""
        with torch._C.DisableTorchFunctionSubclass():
            return torch.empty_like(self).stride()

    def numbers(self) -> Tensor:
        """The values, in memory of their own."""
        made = torch.empty_strided(self.shape, self.dense_strides(), dtype=self.dtype)
        self.write_into(made, {})
        return made


UNCHANGING = (Tensor.detach, Tensor.requires_grad_, Tensor.contiguous, Tensor.data.__get__)  # type: ignore[attr-defined]


def _same_dtype(function: Callable[..., Any], args: tuple[Any, ...], result: Any) -> bool:
    return function is Tensor.to and result.dtype == args[0].dtype


def _numbers(value: Any, read: dict[Operation, Any]) -> Any:
    """A value with every deferred tensor in it replaced by its values."""
    if isinstance(value, Deferred):
        return _made(value.origin, value.output, read)
    if isinstance(value, tuple | list):
        return type(value)(_numbers(one, read) for one in value)
    if isinstance(value, dict):
        return {key: _numbers(one, read) for key, one in value.items()}
    return value


def _made(origin: StoredTensor | Operation, output: int | None, read: dict[Operation, Any]) -> Tensor:
    if isinstance(origin, StoredTensor):
        return origin.read()
    if origin in read:
        return read[origin][output]
    result = origin.function(*_numbers(origin.positional, read), **_numbers(origin.keyword, read))
    if output is None:
        return result
    read[origin] = result  # the other results belong to other weights of the block, so nothing is read twice
    return result[output]

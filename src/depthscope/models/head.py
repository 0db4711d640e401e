"""The head: everything between the last block and the logits, found in the model and read in slices of the vocabulary.

The final norm (and whatever other modules stand there) is the model's own, called again. The unembedding is a linear
map, so any slice of its rows gives the same logits as the whole. What a family does to the logits afterwards (a soft
cap, a scale) is elementwise; it is found by showing the model known values in place of the unembedding's output.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from depthscope.errors import UnsupportedError
from depthscope.models.stack import BlockStack, residual_of
from depthscope.shapes import Hidden, Logits, LogitSlice, Residual


@dataclass(frozen=True, slots=True)
class ElementwiseMap:
    """What a model does to each number: `identity`, `multiply`, `divide` or `softcap` by a constant."""

    kind: str = "identity"
    constant: float = 1.0

    @property
    def linear(self) -> bool:
        """Whether sums over logits commute with it."""
        return self.kind != "softcap"

    def __call__(self, logits: Tensor) -> Tensor:
        """The map applied, any shape."""
        if self.kind == "multiply":
            return logits * self.constant
        if self.kind == "divide":
            return logits / self.constant
        if self.kind == "softcap":
            return torch.tanh(logits / self.constant) * self.constant
        return logits


class Head:
    """Final norm, unembedding and logit map of a model.

    Raises UnsupportedError when something other than modules and a scale stands between the last block and the
    unembedding, when there is no linear unembedding, or when the logits are mapped in a way that is none of
    ElementwiseMap's.
    """

    def __init__(self, model: PreTrainedModel, stack: BlockStack) -> None:
        unembedding = model.get_output_embeddings()
        if not isinstance(unembedding, nn.Linear):
            raise UnsupportedError(
                f"{type(model).__name__} has no linear unembedding (found {type(unembedding).__name__})"
            )
        self.unembedding = unembedding
        self.modules, self.scale = _before_unembedding(model, stack, unembedding)
        self.map = _find_logit_map(model, unembedding)

    @property
    def weight(self) -> Tensor:
        """W_U, shaped [vocab, d_model]."""
        return self.unembedding.weight

    @property
    def vocabulary(self) -> int:
        """Number of logits."""
        return self.unembedding.weight.shape[0]

    def hidden(self, residual: Residual) -> Hidden:
        """What the unembedding reads for the residual stream after the last block, positions laid end to end."""
        for module in self.modules:
            residual = module(residual)
        return self.scale(residual).flatten(0, 1)

    def slice(self, hidden: Hidden, start: int, stop: int) -> LogitSlice:
        """Logits of vocabulary entries `start … stop-1`, in the model's own dtype."""
        bias = self.unembedding.bias
        return self.map(
            nn.functional.linear(hidden, self.weight[start:stop], None if bias is None else bias[start:stop])
        )

    def logits(self, hidden: Hidden) -> Logits:
        """All logits, in the model's own dtype, as the model gives them."""
        return self.map(self.unembedding(hidden))

    def next_token_logits(self, hidden: Hidden, targets: Tensor) -> Tensor:
        """The logit of one vocabulary entry per position, float32: `targets` is shaped [tokens]."""
        return self.mapped((hidden.float() * self.weight[targets].float()).sum(-1), targets)

    def mapped(self, products: Tensor, targets: Tensor) -> Tensor:
        """The logits of entries `targets`, given the products of their rows of W_U with what the unembedding reads."""
        bias = self.unembedding.bias
        return self.map(products if bias is None else products + bias[targets].float())


def _before_unembedding(
    model: PreTrainedModel, stack: BlockStack, unembedding: nn.Module
) -> tuple[list[nn.Module], ElementwiseMap]:
    """The modules the model calls between its last block and the unembedding, and the scale it applies after them.

    Checked to be all that happens there.
    """
    trace = _Trace()
    for module in model.modules():
        trace.watch(module)
    try:
        after_last = {}

        def last_block_done(_m: nn.Module, _a: Any, output: Any) -> None:
            after_last["residual"] = residual_of(output)
            trace.calls.clear()

        trace.handles.append(stack.blocks[-1].register_forward_hook(last_block_done))
        ids = torch.arange(3, device=model.device)[None]
        model(input_ids=ids, use_cache=False)
    finally:
        trace.stop()
    between, read = [], None
    for module, given in trace.calls:
        if module is unembedding:
            read = given
            break
        between.append(module)
    residual = after_last["residual"]
    for module in between:
        residual = module(residual)
    if read is not None and residual.shape == read.shape:
        largest = residual.abs().argmax()
        scale = _scale(residual, read, float(read.flatten()[largest].double() / residual.flatten()[largest].double()))
        if scale is not None:
            return between, scale
    names = ", ".join(type(module).__name__ for module in between) or "nothing"
    raise UnsupportedError(
        f"{type(model).__name__}: the unembedding does not read what the modules after the last block give ({names}), "
        "scaled or not; expected the final norm's output"
    )


class _Trace:
    """Outermost module calls in order, with their first input."""

    def __init__(self) -> None:
        self.calls: list[tuple[nn.Module, Tensor | None]] = []
        self.handles: list[Any] = []
        self._open: list[nn.Module] = []

    def watch(self, module: nn.Module) -> None:
        self.handles.append(module.register_forward_pre_hook(self._begin, with_kwargs=True))
        self.handles.append(module.register_forward_hook(self._end))

    def stop(self) -> None:
        for handle in self.handles:
            handle.remove()

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inside_call = any(opened is module_called for opened in self._open for module_called, _ in self.calls)
        if not inside_call:
            given = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
            self.calls.append((module, given))
        self._open.append(module)

    def _end(self, module: nn.Module, _args: Any, _output: Any) -> None:
        self._open.remove(module)


def _find_logit_map(model: PreTrainedModel, unembedding: nn.Linear) -> ElementwiseMap:
    """Which ElementwiseMap takes the unembedding's output to the model's logits."""
    width = unembedding.out_features
    shown = torch.linspace(-50, 50, width, device=model.device, dtype=torch.float32).to(unembedding.weight.dtype)

    def seen(values: Tensor) -> Tensor:
        def show(_module: nn.Module, _args: Any, output: Any) -> Tensor:
            return values.expand_as(output)

        handle = unembedding.register_forward_hook(show)
        try:
            ids = torch.arange(3, device=model.device)[None]
            return model(input_ids=ids, use_cache=False).logits[0, -1]
        finally:
            handle.remove()

    got = seen(shown)
    found = _scale(shown, got, float(got[-1].double() / shown[-1].double()))
    if found is None and abs(cap := float(seen(torch.full_like(shown, 1e4))[-1])) < 1e4:
        found = _first_that_agrees(_rounded("softcap", cap), shown, got)
    if found is not None:
        return found
    raise UnsupportedError(
        f"{type(model).__name__} maps its logits in a way that is neither a scale nor a soft cap: "
        f"{float(shown[-1]):.4g} became {float(got[-1]):.4g}"
    )


def _scale(given: Tensor, got: Tensor, ratio: float) -> ElementwiseMap | None:
    """The scale, if it is one, that takes `given` to `got`: none, by multiplication or by division."""
    return _first_that_agrees(scale_between(ratio), given, got)


def scale_between(ratio: float) -> list[ElementwiseMap]:
    """What may have multiplied numbers by about `ratio`, the likeliest first: nothing, a factor, a divisor."""
    return [ElementwiseMap(), *_rounded("multiply", ratio), *_rounded("divide", 1 / ratio if ratio else 1.0)]


def _first_that_agrees(candidates: list[ElementwiseMap], given: Tensor, got: Tensor) -> ElementwiseMap | None:
    """Bit for bit if one does, else within the dtype's rounding."""
    for tolerance in (0.0, max(1e-5, 2 * torch.finfo(got.dtype).eps)):
        for candidate in candidates:
            if _agree(candidate(given), got, tolerance):
                return candidate
    return None


def _rounded(kind: str, constant: float) -> list[ElementwiseMap]:
    """The constant as it was probably written, then as measured: rounding, of half precision most, is off its digits."""
    return (
        [ElementwiseMap(kind, float(f"{constant:.{digits}g}")) for digits in (1, 2, 3, 4, 5, 6, 7, 9)]
        if constant
        else []
    )


def _agree(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool(((a.float() - b.float()).abs() <= tolerance * b.float().abs()).all())

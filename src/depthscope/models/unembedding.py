"""The unembedding: everything between the last block and the logits, found in the model, computed in slices of the vocabulary.

The final norm (and any other modules between the two) is the model's own, called again. W_U is a linear map, so any slice of
its rows gives the same logits as the whole. What a family does to the logits afterwards (a soft cap, a scale) is elementwise;
it is found by putting known values in place of W_U's output.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from depthscope.errors import UnsupportedError
from depthscope.models.hooks import hooked
from depthscope.models.packed import packed
from depthscope.models.stack import BlockStack, residual_of
from depthscope.shapes import Hidden, Logits, LogitSlice, Residual


@dataclass(frozen=True, slots=True)
class ElementwiseMap:
    """What a model does to each logit: `identity`, `multiply`, `divide` or `softcap` by a constant."""

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

    def slope(self, mapped: Tensor) -> Tensor | float:
        """Its derivative where its value is `mapped`; one number for a linear map."""
        if self.kind == "softcap":
            return 1 - (mapped / self.constant) ** 2
        return {"multiply": self.constant, "divide": 1 / self.constant}.get(self.kind, 1.0)


class Unembedding:
    """Final norm, unembedding and logit map of a model.

    Raises UnsupportedError when something other than modules and a scale stands between the last block and the
    unembedding, when there is no linear unembedding, or when the logits are mapped in a way that is none of
    ElementwiseMap's.
    """

    def __init__(self, model: PreTrainedModel, stack: BlockStack) -> None:
        linear = model.get_output_embeddings()
        if not isinstance(linear, nn.Linear):
            raise UnsupportedError(f"{type(model).__name__} has no linear unembedding (found {type(linear).__name__})")
        if packed(linear):
            raise UnsupportedError(
                f"{type(model).__name__}: the unembedding is quantised, and logits are computed from slices of its rows: "
                "expected a checkpoint whose lm_head is not (modules_to_not_convert)"
            )
        self.linear = linear
        self.modules, self.scale = _before_linear(model, stack, linear)
        self.map = _find_logit_map(model, linear)

    @property
    def weight(self) -> Tensor:
        """W_U, shaped [vocab, d_model]."""
        return self.linear.weight

    @property
    def vocabulary(self) -> int:
        """Number of logits."""
        return self.linear.weight.shape[0]

    def hidden(self, residual: Residual) -> Hidden:
        """What W_U reads for the residual stream after the last block: normalised, positions laid end to end, in W_U's dtype
        (Mamba's residual stream is in float32 in a model of any dtype)."""
        for module in self.modules:
            residual = module(residual)
        return self.scale(residual).flatten(0, 1).to(self.weight.dtype)

    def slice(self, hidden: Hidden, start: int, stop: int) -> LogitSlice:
        """Logits of vocabulary entries `start … stop-1`, in the model's own dtype."""
        bias = self.linear.bias
        return self.map(
            nn.functional.linear(hidden, self.weight[start:stop], None if bias is None else bias[start:stop])
        )

    def logits(self, hidden: Hidden) -> Logits:
        """All logits, in the model's own dtype, as the model gives them."""
        return self.map(self.linear(hidden))

    def next_token_logits(self, hidden: Hidden, targets: Tensor) -> Tensor:
        """The logit of one vocabulary entry per position, float32: `targets` is shaped [tokens]."""
        return self.mapped((hidden.float() * self.weight[targets].float()).sum(-1), targets)

    def mapped(self, products: Tensor, targets: Tensor) -> Tensor:
        """The logits of entries `targets`, given the products of their rows of W_U with what the unembedding reads."""
        bias = self.linear.bias
        return self.map(products if bias is None else products + bias[targets].float())


def _before_linear(
    model: PreTrainedModel, stack: BlockStack, linear: nn.Module
) -> tuple[list[nn.Module], ElementwiseMap]:
    """The modules the model calls between its last block and W_U, and the scale it applies after them.

    Calling them again on the last residual stream has to give what W_U reads, so nothing else happens there.
    """
    trace = _Trace()
    after_last = {}

    def last_block_done(_module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> None:
        after_last["residual"] = residual_of(output)
        trace.calls.clear()

    # Of the last block the function comes after the trace's own, so that the block's call is cleared with those before it.
    with hooked(
        before=[(module, trace.begin) for module in model.modules()],
        after=[*((module, trace.end) for module in model.modules()), (stack.blocks[-1], last_block_done)],
    ):
        model(input_ids=torch.arange(3, device=model.device)[None], use_cache=False)
    between, read = [], None
    for module, given in trace.calls:
        if module is linear:
            read = given
            break
        between.append(module)
    residual = after_last["residual"]
    for module in between:
        residual = module(residual)
    if read is not None and residual.shape == read.shape:
        # Where the number is largest: a ratio of two small ones would be mostly rounding.
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
        self._open: list[nn.Module] = []

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # Modules that were opened before `calls` was cleared (the whole model) contain no call any more: only those count that
        # are in it.
        inside_call = any(opened is module_called for opened in self._open for module_called, _ in self.calls)
        if not inside_call:
            given = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
            self.calls.append((module, given))
        self._open.append(module)

    def end(self, module: nn.Module, _args: Any, _kwargs: Any, _output: Any) -> None:
        self._open.remove(module)


def _find_logit_map(model: PreTrainedModel, linear: nn.Linear) -> ElementwiseMap:
    """Which ElementwiseMap takes W_U's output to the model's logits."""
    width = linear.out_features
    shown = torch.linspace(-50, 50, width, device=model.device, dtype=torch.float32).to(linear.weight.dtype)

    def seen(values: Tensor) -> Tensor:
        def show(_module: nn.Module, _args: Any, _kwargs: Any, output: Any) -> Tensor:
            return values.expand_as(output)

        with hooked(after=[(linear, show)]):
            ids = torch.arange(3, device=model.device)[None]
            return model(input_ids=ids, use_cache=False).logits[0, -1]

    got = seen(shown)
    found = _scale(shown, got, float(got[-1].double() / shown[-1].double()))
    # tanh is 1 for what is far above the cap, so a large enough logit comes out as the cap itself.
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
    """Maps that may have multiplied numbers by about `ratio`, the likeliest first: none, a factor, a divisor.

    x · 0.5 and x / 2 are one map, but x · 0.3 and x / 3.3333 round differently: to be bit for bit, the model's own is needed.
    """
    return [ElementwiseMap(), *_rounded("multiply", ratio), *_rounded("divide", 1 / ratio if ratio else 1.0)]


def _first_that_agrees(candidates: list[ElementwiseMap], given: Tensor, got: Tensor) -> ElementwiseMap | None:
    """Bit for bit if one does, else within the dtype's rounding."""
    for tolerance in (0.0, max(1e-5, 2 * torch.finfo(got.dtype).eps)):
        for candidate in candidates:
            if _agree(candidate(given), got, tolerance):
                return candidate
    return None


def _rounded(kind: str, constant: float) -> list[ElementwiseMap]:
    """Maps with the constant as it was probably written in the configuration, with few digits, then as it was measured:
    rounding, in half precision above all, changes its last digits."""
    return (
        [ElementwiseMap(kind, float(f"{constant:.{digits}g}")) for digits in (1, 2, 3, 4, 5, 6, 7, 9)]
        if constant
        else []
    )


def _agree(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool(((a.float() - b.float()).abs() <= tolerance * b.float().abs()).all())

"""Weights as analysis wants them: norms folded in, directions the model cannot see taken out. Views; nothing is changed.

Three facts let weights be rewritten without changing a prediction (appendix D of the paper):

- A norm's scale g and shift β can move into the weights that read it: W (g ⊙ n + β) + b = (W diag g) n + (W β + b).
- A LayerNorm takes the mean of the residual stream out, so what weights write along the all-ones direction is never
  read: written vectors can be centred, and so can the weights that read a LayerNorm. RMSNorm sees the mean: no centring.
- Softmax ignores a number added to all logits, so W_U can be centred over the vocabulary.

What a norm does is read off its behaviour on a known vector, not off its parameters' names (Gemma's scale is 1 + weight).
Everything comes in float32, on the model's device.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from depthscope.errors import UnsupportedError
from depthscope.models.components import is_norm
from depthscope.models.finite import require_finite_weights
from depthscope.models.hooks import hooked
from depthscope.models.maps import Called, is_linear, linear_map, plain
from depthscope.models.model import Model
from depthscope.models.neurons import mlp_calls, module_rows, neuron_rows
from depthscope.models.packed import packed
from depthscope.routes import MLP


@dataclass(frozen=True, slots=True)
class Affine:
    """What a norm does after normalising: scale and shift, and whether it takes the mean out first."""

    scale: Float[Tensor, " d_model"]
    shift: Float[Tensor, " d_model"]
    centring: bool


def norm_affine(norm: nn.Module, width: int) -> Affine:
    """Scale, shift and centring of a norm over `width` features, found by showing it vectors whose normal form is known.

    Raises UnsupportedError for a module that is neither a LayerNorm nor an RMSNorm with scale and shift.
    """
    exact = copy.deepcopy(norm).double()
    device = next((p.device for p in norm.parameters()), torch.device("cpu"))
    shown = torch.randn(3, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(device) * 1e4
    with torch.inference_mode():
        seen, mirrored, lifted = exact(shown), exact(-shown), exact(shown + 1e4)
    centring = bool(torch.allclose(seen, lifted, rtol=1e-5, atol=1e-5))
    normal = normalised(shown, centring)
    shift = (seen + mirrored)[0] / 2
    scale = ((seen - mirrored) / 2 / normal)[0]
    if not torch.allclose(normal * scale + shift, seen, rtol=1e-4, atol=1e-4):
        raise UnsupportedError(f"{type(norm).__name__} is neither a LayerNorm nor an RMSNorm with a scale and a shift")
    return Affine(scale.float(), shift.float(), centring)


def normalised(residual: Float[Tensor, "*shape d_model"], centring: bool) -> Float[Tensor, "*shape d_model"]:
    """What a norm makes of the residual stream before its scale and shift: unit mean square, mean 0 if it centres."""
    residual = residual - residual.mean(-1, keepdim=True) if centring else residual
    return residual / residual.square().mean(-1, keepdim=True).sqrt()


def unembedding(model: Model, processed: bool = True) -> tuple[Float[Tensor, "vocab d_model"], Float[Tensor, " vocab"]]:
    """W_U with the final norm folded in and centred, and its bias, to be read with the normalised residual stream.

    Logits follow as W n(x_L) + b up to a number per position (and up to a scale or soft cap of the family's own), where n
    normalises without scale or shift. Not `processed`: both as they are in the model. Raises NumericError for NaN or infinity.
    """
    weight = model.unembedding.weight.detach().float()
    bias = model.unembedding.linear.bias
    bias = torch.zeros(weight.shape[0], device=weight.device) if bias is None else bias.detach().float()
    before = [parameter for module in model.unembedding.modules for parameter in module.parameters()]
    require_finite_weights(model, None, [weight, bias, *before], "the final norm or the unembedding")
    if not processed:
        return weight, bias
    for module in reversed(model.unembedding.modules):
        if isinstance(module, nn.Linear):
            bias = bias if module.bias is None else bias + weight @ module.bias.detach().float()
            weight = weight @ module.weight.detach().float()
        else:
            affine = norm_affine(module, weight.shape[1])
            bias, weight = bias + weight @ affine.shift, weight * affine.scale
            if affine.centring:
                weight = weight - weight.mean(1, keepdim=True)
    return weight - weight.mean(0), bias - bias.mean()


def mlp_output_weights(model: Model, block: int, processed: bool = True) -> Float[Tensor, "neurons d_model"]:
    """w_out of every MLP neuron of a block: what it adds to the residual stream per unit of activation.

    Of a gated MLP the rows of the down projection. Of experts all neurons of all experts, one expert after the other. A
    norm between MLP and residual stream (Gemma 2, OLMo 2) or a scale (Granite) is folded in; in LayerNorm models the
    vectors are centred. Not `processed`: the rows as they are in the model. Raises UnsupportedError where no weights
    with one row per neuron write to the residual stream, NumericError for NaN or infinity.
    """
    with model.stack.resident(block):
        require_finite_weights(model, block, [*model.stack.blocks[block].parameters()], "the weights")
        calls = mlp_calls(model, block)
        written = [
            (rows.float().flatten(0, -2).to(model.device), place)
            for place, module in enumerate(model.component(MLP, block))
            for rows in module_rows(model, block, module, calls)
        ]
        if processed:
            written = [(_as_added(model, block, rows, place), place) for rows, place in written]
        parts = [rows for rows, _ in written]
        rows = parts[0] if len(parts) == 1 else torch.cat(parts)
        rows = rows.clone() if model.stack.streamed else rows
    if not processed:
        return rows
    rows = model.writers.scales[block](rows)
    return rows - rows.mean(1, keepdim=True) if centres_writing(model) else rows


def _as_added(model: Model, block: int, rows: Tensor, place: int) -> Tensor:
    """Rows of the MLP's module at `place`, through the norm between it and the residual stream."""
    module, writer = model.component(MLP, block)[place], model.writers.parts[block][MLP][place]
    return rows if writer is module else rows * norm_affine(writer, rows.shape[1]).scale.to(rows.device)


def centres_writing(model: Model) -> bool:
    """Whether all that reads the residual stream takes its mean out, so that what is written may be centred."""
    return model.facts.norm == "LayerNorm"


def require_mlp_output_weights(model: Model) -> None:
    """Raise UnsupportedError unless every block has weights with one row of d_model per neuron, and they are all that its
    MLP writes with: W x is compared with the module's own output.
    """
    if model.components is None:
        raise UnsupportedError(
            f"{model.name} ({model.family}) has no separate MLP that its blocks add to the residual stream, so it has no "
            "neurons to read"
        )
    for block in range(model.depth):
        with model.stack.resident(block):
            for rows in neuron_rows(model, block):
                if rows.shape[-1] != model.unembedding.weight.shape[1]:
                    raise UnsupportedError(
                        f"{model.name}: the MLP of block {block} writes rows of {rows.shape[-1]} numbers, expected "
                        f"{model.unembedding.weight.shape[1]}, the width the unembedding reads"
                    )


EXPERTS_BY_ROW = {"gpt_oss"}
"""Families that keep an expert's input weights as [d_model, features]; the others keep [features, d_model]."""


@dataclass(frozen=True, slots=True)
class ReadingWeights:
    """What a module reads the residual stream with: its weights, with the norm between the two folded in.

    A fused projection (query, key and value in one; gate and up in one) keeps its module's own order of features.
    """

    norm: str | None
    """Path in the block of the norm folded in; None where the module reads the residual stream itself (OLMo 2)."""
    weight: Float[Tensor, "features d_model"]
    bias: Float[Tensor, " features"]
    centring: bool
    """Whether the norm takes the mean out. Then the rows are centred: nothing is read along the all-ones direction."""

    def __call__(self, residual: Float[Tensor, "*shape d_model"]) -> Float[Tensor, "*shape features"]:
        """What the module gives for a residual stream, up to the norm's epsilon."""
        read = residual if self.norm is None else normalised(residual, self.centring)
        return read @ self.weight.T + self.bias


def reading_weights(model: Model, block: int) -> dict[str, ReadingWeights]:
    """The weights a block reads the residual stream with, by module path: attention's query, key and value, the MLP's input
    and gate. Of experts all features of all experts, one expert after the other, under the path of the parameter; a router
    counts where it is a plain linear layer.

    Found by running the block: a module reads the residual stream if it is given what a norm over d_model makes, or what its
    attention or MLP is given as it is. Raises UnsupportedError where nothing is found to read it.
    """
    with model.stack.resident(block):
        require_finite_weights(model, block, [*model.stack.blocks[block].parameters()], "the weights")
        return _reading_weights(model, block)


def _reading_weights(model: Model, block: int) -> dict[str, ReadingWeights]:
    modules = dict(model.stack.blocks[block].named_modules())
    given, made = _traced(model, block, modules)
    normed = {_place(made[n]): n for n, m in modules.items() if is_norm(m) and n in made and _wide(model, made[n])}
    raw = {_place(given[n]) for n in _containers(model, block, modules) if n in given}
    found: dict[str, ReadingWeights] = {}
    wrapped: list[str] = []
    """Paths of maps that are made of several modules (adapters, quantised layers): what is inside them is not read again."""
    for name, module in modules.items():
        if name not in given or not ((place := _place(given[name])) in normed or place in raw):
            continue
        if any(name.startswith(f"{path}.") for path in wrapped):
            continue
        norm = normed.get(place)
        maps = _linear_maps(name, module, model.family)
        if not plain(module) and name in made and any(True for _ in module.parameters()):
            called = Called((given[name],), {}, made[name])
            if is_linear(module, called):
                whole = linear_map(module, called)
                maps, wrapped = [(name, whole.weight, whole.bias)], [*wrapped, name]
            elif packed(module):
                raise UnsupportedError(
                    f"{model.name}: {name} of block {block} ({type(module).__name__}) is quantised and not linear in its "
                    "input, so it has no weights that can be read"
                )
        for path, weight, bias in maps:
            if weight.shape[1] == model.unembedding.weight.shape[1]:
                own = _folded(weight, bias, None if norm is None else modules[norm], norm)
                found[path] = _kept(own, model)
    if not found:
        raise UnsupportedError(f"{model.name}: nothing in block {block} is seen to read the residual stream linearly")
    return found


def _kept(read: ReadingWeights, model: Model) -> ReadingWeights:
    """Where the residual stream is; of a streamed model in memory of their own, as a view would keep the whole block."""
    copied = {"device": model.device, "copy": model.stack.streamed}
    return replace(read, weight=read.weight.to(**copied), bias=read.bias.to(**copied))


def _folded(weight: Tensor, bias: Tensor | None, norm: nn.Module | None, name: str | None) -> ReadingWeights:
    weight = weight.float()
    bias = torch.zeros(len(weight), device=weight.device) if bias is None else bias.float()
    if norm is None:
        return ReadingWeights(name, weight, bias, False)
    affine = norm_affine(norm, weight.shape[1])
    bias, weight = bias + weight @ affine.shift, weight * affine.scale
    return ReadingWeights(
        name, weight - weight.mean(1, keepdim=True) if affine.centring else weight, bias, affine.centring
    )


def _linear_maps(name: str, module: nn.Module, family: str) -> list[tuple[str, Tensor, Tensor | None]]:
    """(path, weight as [features, inputs], bias) of a module's own linear maps."""
    if isinstance(module, nn.Linear | Conv1D):
        weight = module.weight.detach()
        bias = None if module.bias is None else module.bias.detach()
        return [(name, weight.T if isinstance(module, Conv1D) else weight, bias)]
    own = {key: parameter.detach() for key, parameter in module.named_parameters(recurse=False)}
    maps: list[tuple[str, Tensor, Tensor | None]] = []
    for key, weight in own.items():
        if weight.ndim == 3 and ("gate" in key or "up" in key):
            rows = weight.transpose(1, 2) if family in EXPERTS_BY_ROW else weight
            bias = own.get(f"{key}_bias")
            maps.append((f"{name}.{key}", rows.flatten(0, 1), None if bias is None else bias.flatten()))
    return maps


def _containers(model: Model, block: int, modules: dict[str, nn.Module]) -> list[str]:
    """Paths of the block's attention and MLP where they have modules of their own inside."""
    if model.components is None:
        return []
    own = {module for several in model.components.parts[block].values() for module in several}
    return [name for name, module in modules.items() if module in own and any(True for _ in module.children())]


def _traced(model: Model, block: int, modules: dict[str, nn.Module]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What each module of a block was given first and made, by path; all kept, so that no memory is used twice."""
    given: dict[str, Tensor] = {}
    made: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def keep(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            if first is not None:
                given.setdefault(name, first)
            if isinstance(output, Tensor):
                made.setdefault(name, output)

        return keep

    with torch.inference_mode(), hooked(after=[(module, watch(name)) for name, module in modules.items()]):
        entry = model.stack.enter(model.probe_ids(4))
        model.stack.call_alone(block, entry)
    return given, made


def _wide(model: Model, tensor: Tensor) -> bool:
    return tensor.shape[-1] == model.unembedding.weight.shape[1]


def _place(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor's numbers are: the same for its reshaped views."""
    return tensor.data_ptr(), tensor.numel()

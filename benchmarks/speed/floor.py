"""The least a sweep can cost: the matrix products its routes need, each once, at the best rate seen for them.

What is needed follows from the routes alone. An attention or MLP output is computed once for each residual stream it
reads: routes that begin alike share it, and so do the visits of one block from one stream (a silenced MLP leaves the
block's own attention output as it was; in a parallel block a silenced attention leaves its MLP output too). Every
distinct route is read out once. For a drop sweep of L blocks this is L(L+1)/2 blocks and L+1 read-outs.

Linear products are timed as bare `torch.mm` into buffers made before, with the model's own weights, at the best of several
row counts; the unembedding at the best of several slice widths too. The products inside attention count half (causal), at
the rate of the linear products. The packed floor takes the same products with weights laid out beforehand, as ours are.
Norms, activations, softmaxes, sums over the vocabulary and Wᵀp cost nothing here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from itertools import product as combinations

import torch
from torch import Tensor, nn

from benchmarks.speed.rounds import Seconds, steady_seconds
from benchmarks.speed.routes import sweep_routes
from depthscope.models.kernels import packed, product
from depthscope.models.model import Model
from depthscope.routes import ATTN, MLP, Route, Step

ROWS = (256, 512, 1024, 2048)
SLICES = (2048, 4096, 8192, 16_384)
"""Vocabulary entries of a slice. The best is looked for on as many entries as the widest has, then timed on all."""
BLOCKS = 4
"""Blocks whose weights are gone through in turn, so that no weight is found in a cache it would not be in."""


Prepare = Callable[[Tensor], Callable[[Tensor, Tensor], object]]
"""From a weight shaped [in, out] a function of (given, buffer) that multiplies with it."""


def bare(weight: Tensor) -> Callable[[Tensor, Tensor], object]:
    """`torch.mm` into the buffer."""
    return lambda given, out: torch.mm(given, weight, out=out)


def laid_out(weight: Tensor) -> Callable[[Tensor, Tensor], object]:
    """The product with a packed weight, which makes its own result."""
    ready = packed(weight.T)
    return lambda given, _out: product(given, ready)


@dataclass(frozen=True, slots=True)
class Work:
    """How often each part of a model is needed per token."""

    attention: int
    mlp: int
    readouts: int


def work(routes: Sequence[Route], parallel: bool) -> Work:
    """The least work for `routes`, the model's own among them. `parallel`: whether MLPs do not see their attention."""
    attention: set[object] = set()
    mlp: set[object] = set()
    for route in dict.fromkeys(routes):
        for place, step in enumerate(route.visits):
            assert isinstance(step, Step), "sweeps have no parallel visits"
            read = (route.visits[:place], step.block)
            if ATTN not in step.silent:
                attention.add(read)
            if MLP not in step.silent:
                mlp.add(read if parallel else (*read, ATTN in step.silent))
    return Work(len(attention), len(mlp), len(set(routes)))


class Floor:
    """Times the products and adds them up for each sweep."""

    name = "floor"
    prepare: Prepare = staticmethod(bare)

    def __init__(
        self,
        model: Model,
        tokens: int,
        length: int,
        sweeps: Mapping[str, Sequence[str]],
        rows: Sequence[int] = ROWS,
        slices: Sequence[int] = SLICES,
        at_least: float = 0.4,
    ) -> None:
        components = model.require_components()
        self.model, self.tokens, self.rows, self.slices, self.at_least = model, tokens, rows, slices, at_least
        self.device = str(model.device)
        blocks = range(0, model.depth, max(1, model.depth // BLOCKS))
        self.parts = {
            "attention": [list(_weights(*model.component(ATTN, block))) for block in blocks],
            "mlp": [list(_weights(*model.component(MLP, block))) for block in blocks],
        }
        self.work = {
            sweep: work([Route.own(model.depth), *sweep_routes(kinds, model.depth)], components.parallel)
            for sweep, kinds in sweeps.items()
        }
        config = model.hf.config
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = config.num_attention_heads * head
        self.inside_attention = 2 * length * heads
        """FLOP per token of Q·K and of the weighted sum of V, causal: half of 4 · length · heads' width."""
        self.best: dict[str, tuple[int, int]] = {}
        self.gflops: dict[str, list[float]] = {sweep: [] for sweep in sweeps}

    def warm(self) -> None:
        """Find the fastest row count of each part, and the fastest slice width of the unembedding."""
        widths = sorted({min(width, self.model.unembedding.vocabulary) for width in self.slices})
        choices = {"attention": [(rows, 0) for rows in self.rows], "mlp": [(rows, 0) for rows in self.rows]}
        choices["unembedding"] = list(combinations(self.rows, widths))
        for part, possible in choices.items():
            spent = {choice: self.per_token(part, choice, self.at_least / 4, max(self.slices)) for choice in possible}
            self.best[part] = min(spent, key=lambda choice: spent[choice])

    def repetition(self, number: int) -> Seconds:
        """Time every part at its best sizes and add up."""
        spent = {part: self.per_token(part, choice, self.at_least) for part, choice in self.best.items()}
        flops = {part: 2 * sum(w.numel() for w in blocks[0]) for part, blocks in self.parts.items()}
        rate = sum(flops.values()) / (spent["attention"] + spent["mlp"])
        flops |= {"unembedding": 2 * self.model.unembedding.weight.numel()}
        flops["attention"] += self.inside_attention
        spent["attention"] += self.inside_attention / rate
        totals: Seconds = {}
        for sweep, need in self.work.items():
            times = {"attention": need.attention, "mlp": need.mlp, "unembedding": need.readouts}
            totals[sweep] = self.tokens * sum(times[part] * spent[part] for part in times)
            total_flops = self.tokens * sum(times[part] * flops[part] for part in times)
            self.gflops[sweep].append(total_flops / totals[sweep] / 1e9)
        return totals

    @torch.inference_mode()
    def per_token(self, part: str, choice: tuple[int, int], at_least: float, entries: int | None = None) -> float:
        """Seconds per token of one part, with `choice` = (rows, slice width), over the first `entries` of the vocabulary."""
        rows, width = choice
        blocks = self.parts.get(part, [])
        act = (
            _Products(blocks, rows, self.prepare)
            if blocks
            else _Unembedding(self.model.unembedding.weight[:entries], rows, width, self.prepare)
        )
        act()
        return steady_seconds(act, at_least, self.device) / rows / max(1, len(blocks))


class PackedFloor(Floor):
    """The floor with weights laid out beforehand: what our own products could reach, where they are packed."""

    name = "packed floor"
    prepare: Prepare = staticmethod(laid_out)


class _Products:
    """All linear products of some blocks."""

    def __init__(self, blocks: list[list[Tensor]], rows: int, prepare: Prepare) -> None:
        first = blocks[0][0]
        sizes = {size for block in blocks for weight in block for size in weight.shape}
        self.given = {size: torch.randn(rows, size, device=first.device).to(first.dtype) for size in sizes}
        self.out = {size: torch.empty(rows, size, dtype=first.dtype, device=first.device) for size in sizes}
        self.products = [(prepare(weight), *weight.shape) for block in blocks for weight in block]

    def __call__(self) -> None:
        for multiply, size, width in self.products:
            multiply(self.given[size], self.out[width])


class _Unembedding:
    """The unembedding in slices of the vocabulary, one after the other into one buffer."""

    def __init__(self, weight: Tensor, rows: int, width: int, prepare: Prepare) -> None:
        self.given = torch.randn(rows, weight.shape[1], device=weight.device).to(weight.dtype)
        edges = [*range(0, weight.shape[0], width), weight.shape[0]]
        self.products = [prepare(weight[start:stop].T) for start, stop in pairwise(edges)]
        buffer = torch.empty(rows * width, dtype=weight.dtype, device=weight.device)
        widths = [stop - start for start, stop in pairwise(edges)]
        self.out = [buffer[: rows * width].view(rows, width) for width in widths]

    def __call__(self) -> None:
        for multiply, out in zip(self.products, self.out, strict=True):
            multiply(self.given, out)


def _weights(component: nn.Module) -> Iterator[Tensor]:
    """The linear maps of a component as [in, out], seen as its own layers use them."""
    for module in component.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 2:
            yield (weight.T if isinstance(module, nn.Linear) else weight).detach()

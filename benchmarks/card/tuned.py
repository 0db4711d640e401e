"""Tuned: which sizes and which form of the sums are fastest on this card, for a narrow model and a wide one.

Only as many layers are made as it takes to run a block; a block's time does not depend on how many others there are. The
smallest size within 3 % of the fastest is taken: it needs the least memory.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor

from benchmarks.card.record import Deadline, Line, Record, Step
from benchmarks.card.right import available_forms
from benchmarks.card.shapes import LLAMA_8B, SMALL
from benchmarks.speed.rounds import seconds, steady_seconds
from benchmarks.speed.routes import KINDS, sweep_routes
from benchmarks.speed.shapes import SHAPES, Shape, deepened, loaded, windows
from depthscope.engine import divergence
from depthscope.engine.baseline import Baseline
from depthscope.engine.divergence import compare, reference
from depthscope.engine.measure_routes import RouteMeter
from depthscope.engine.reductions import PLAIN_WITH_PLACE, Reductions
from depthscope.engine.sizes import Sizes
from depthscope.models.model import Model

LAYERS = 3
TOKENS = (2048, 4096, 8192, 16_384, 32_768, 65_536)
ROWS = (1024, 2048, 4096, 8192, 16_384)
WIDTHS = (4096, 8192, 16_384, 32_768, 65_536)
"""Vocabulary entries of a slice."""
WITHIN = 1.03
PROMPT = 12


def steps(options: argparse.Namespace, record: Record) -> dict[str, Step]:
    """The steps of this part, in order."""
    shapes = [SHAPES["tiny"]] if options.tiny else [SMALL, LLAMA_8B]
    made: dict[str, Step] = {}
    for shape in shapes:
        made[f"sizes for {shape.name}"] = partial(_tuned, shape, options, record)
    made["a short prompt as a CUDA graph"] = partial(_graph, shapes[0], options)
    return made


def _tuned(shape: Shape, options: argparse.Namespace, record: Record, deadline: Deadline) -> Iterator[Line]:
    model = loaded(deepened(shape, LAYERS), options.dtype, options.device)
    at_least = 0.01 if options.tiny else 0.1
    with model.measuring():
        tokens_tried = (64, 128) if options.tiny else TOKENS
        blocks = {n: spent for n in tokens_tried if (spent := _block(model, shape, n, at_least)) is not None}
        tokens = _smallest(blocks)
        yield Line(
            what=f"{shape.name}: tokens in one call of a block", value=tokens, note=_shown(blocks, 1e9, "ns a token")
        )
        readouts = _readouts(model, options, tokens, at_least, deadline)
        form, rows, width = min(readouts, key=lambda choice: readouts[choice])
        yield Line(what=f"{shape.name}: rows of logits at once", value=rows)
        yield Line(what=f"{shape.name}: slice width, sums {form}", value=width)
        for name in dict.fromkeys(choice[0] for choice in readouts):
            fastest = min(spent for choice, spent in readouts.items() if choice[0] == name)
            yield Line(what=f"{shape.name}: read-out of a token, {name}", value=1e6 * fastest, unit="µs")
        yield from _cross_terms(shape, model, options, tokens, at_least)
    chosen = {"width": shape.width, "tokens": tokens, "together": tokens}
    chosen |= {"rows": rows, "slice_width": width, "reductions": form}
    record.data["sizes"] = [one for one in record.data["sizes"] if one["width"] != shape.width] + [chosen]


def _block(model: Model, shape: Shape, tokens: int, at_least: float) -> float | None:
    """Seconds per token of a block on so many tokens at once; None where they do not fit."""
    ids, _ = windows(shape, max(1, tokens // shape.length))
    try:
        entry = model.stack.enter(ids.to(model.device))
        residual = model.stack.call(0, entry.residual, entry.arguments)
        act = partial(model.stack.call, 1, residual, entry.arguments)
        act()
        return steady_seconds(act, at_least, str(model.device)) / ids.numel()
    except torch.OutOfMemoryError:
        return None


def _readouts(
    model: Model, options: argparse.Namespace, tokens: int, at_least: float, deadline: Deadline
) -> dict[tuple[str, int, int], float]:
    """Seconds per token of a read-out by (form, rows, slice width). Every form at one middle choice, the fastest at all."""
    hidden = torch.randn(tokens, model.unembedding.weight.shape[1], device=model.device).to(
        model.unembedding.weight.dtype
    )
    rows = (16, 32) if options.tiny else tuple(n for n in ROWS if n <= tokens)
    widths = (64, 211) if options.tiny else tuple(n for n in WIDTHS if n < model.unembedding.vocabulary)
    forms = {form.name: form for form in available_forms(options.device, options.tiny)}
    timed = partial(_readout, model, hidden, at_least)
    middle = (rows[len(rows) // 2], widths[len(widths) // 2])
    found = {(name, *middle): timed(form, *middle) for name, form in forms.items()}
    best = forms[min(found, key=lambda choice: found[choice])[0]]
    for choice in [(n, width) for n in rows for width in widths if (n, width) != middle]:
        if deadline.left > 0:
            found[(best.name, *choice)] = timed(best, *choice)
    return found


def _readout(model: Model, hidden: Tensor, at_least: float, form: Reductions, rows: int, width: int) -> float:
    targets = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
    with _sizes_of(rows, width):
        base = reference(model.unembedding, hidden, width, form)
        act = partial(compare, model.unembedding, base, hidden.flip(0), targets)
        act()
        return steady_seconds(act, at_least, str(model.device)) / len(hidden)


class _sizes_of:  # noqa: N801 - a context manager read as a word
    """The passes over the vocabulary take these sizes while it is open."""

    def __init__(self, rows: int, width: int) -> None:
        self._sizes = Sizes(tokens=rows, together=rows, rows=rows, slice_width=width)
        self._before = divergence.sizes_for

    def __enter__(self) -> None:
        divergence.sizes_for = lambda _device, _width: self._sizes

    def __exit__(self, *_raised: object) -> None:
        divergence.sizes_for = self._before


def _cross_terms(
    shape: Shape, model: Model, options: argparse.Namespace, tokens: int, at_least: float
) -> Iterator[Line]:
    """The cross term and the next token's logit: torch's operations against one pass."""
    hidden = torch.randn(tokens, model.unembedding.weight.shape[1], device=model.device).to(
        model.unembedding.weight.dtype
    )
    targets = torch.zeros(tokens, dtype=torch.int64, device=model.device)
    for form in available_forms(options.device, options.tiny):
        if form is PLAIN_WITH_PLACE or form.row_products is not None:
            base = reference(model.unembedding, hidden, reductions=form)
            act = partial(divergence._row_products, model.unembedding, base, hidden, targets)
            act()
            spent = steady_seconds(act, at_least, str(model.device)) / tokens
            yield Line(what=f"{shape.name}: cross term of a token, {form.name}", value=1e6 * spent, unit="µs")


def _graph(shape: Shape, options: argparse.Namespace, _deadline: Deadline) -> Iterator[Line]:
    """All four edits on a prompt: launched one by one, and replayed from a graph. The engine launches one by one.

    The unmodified model is run before: it is checked for NaN, which waits for the device, and what waits cannot be captured.
    """
    model = loaded(shape, options.dtype, options.device)
    meter = RouteMeter(model, sweep_routes(tuple(KINDS), model.depth))
    ids, targets = (part[:1, :PROMPT].to(model.device) for part in windows(shape, 1))
    with model.measuring():
        measure = partial(meter.on_device, Baseline(model, ids, targets, keep=meter.keep))
        for _ in range(3):
            measure()
        eager = min(seconds(measure, options.device) for _ in range(5))
        what = f"{shape.name}: {len(meter.routes)} routes on {PROMPT} tokens"
        yield Line(what=f"{what}, launched one by one", value=1e3 * eager, unit="ms")
        if options.device.startswith("cuda"):
            replay, capturing = _captured(measure, options.device)
            spent = min(seconds(replay, options.device) for _ in range(5))
            note = f"capturing took {1e3 * capturing:.0f} ms"
            yield Line(what=f"{what}, replayed as a CUDA graph", value=1e3 * spent, unit="ms", note=note)


def _captured(act: Callable[[], object], device: str) -> tuple[Callable[[], object], float]:
    graph, aside = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        act()
    torch.cuda.current_stream().wait_stream(aside)

    def capture() -> None:
        with torch.cuda.graph(graph):
            act()

    return graph.replay, seconds(capture, device)


def _smallest(spent: Mapping[int, float]) -> int:
    """The smallest size within WITHIN of the fastest."""
    return min(size for size, time in spent.items() if time <= WITHIN * min(spent.values()))


def _shown(spent: Mapping[int, float], scale: float, unit: str) -> str:
    return f"{unit}: " + ", ".join(f"{size:,} {scale * time:.3g}" for size, time in spent.items())

"""Figures: how long sweeps take on this card, beside the card's own matrix rate and beside a competent user's hooks.

A part of the text is measured and scaled, where all of it would take too long; each line says so. Weights are random: they
decide nothing about speed.
"""

import argparse
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.card.record import Deadline, Line, Step
from benchmarks.card.shapes import LLAMA_8B, PYTHIA_1B, PYTHIA_7B, SMALL
from benchmarks.speed.floor import ROWS, SLICES, Floor
from benchmarks.speed.hooks import Hooks
from benchmarks.speed.memory import forget_peak, resident
from benchmarks.speed.rounds import seconds
from benchmarks.speed.routes import KINDS, sweep_routes
from benchmarks.speed.shapes import SHAPES, Shape, loaded, windows
from depthscope.engine.measure_routes import RouteMeter
from depthscope.engine.sizes import sizes_for
from depthscope.models.model import Model
from depthscope.statistics.moments import VocabularyDirections

MILLION = 1_000_000
SHARE = 0.6
"""Of the card's measured matrix rate, what a sweep is to reach."""
PROMPT = 12


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep to be timed: over how much text it is reported, and for how long it is measured."""

    shape: Shape
    kinds: tuple[str, ...]
    tokens: int
    bound: float | None
    """Seconds for all of the text."""
    sample: float
    """Seconds of measuring."""


def steps(options: argparse.Namespace) -> dict[str, Step]:
    """The steps of this part, in order."""
    if options.tiny:
        tiny = SHAPES["tiny"]
        sweeps = [Sweep(tiny, ("swap", "drop"), 1024, None, 0.2)]
        prompt, moments = (tiny, None), (tiny, None)
    else:
        sweeps = [
            Sweep(LLAMA_8B, ("drop",), 65_536, 60.0, 40.0),
            Sweep(PYTHIA_1B, ("swap", "drop"), MILLION, 180.0, 20.0),
        ]
        prompt, moments = (SMALL, 50.0), (PYTHIA_7B, 20.0)
    made: dict[str, Step] = {}
    for sweep in sweeps[:1]:
        made[f"{' and '.join(sweep.kinds)}, {sweep.shape.name}"] = partial(_sweep, sweep, options)
    made["a short prompt"] = partial(_prompt, *prompt, options)
    made["neuron moments"] = partial(_moments, *moments, options)
    for sweep in sweeps[1:]:
        made[f"{' and '.join(sweep.kinds)}, {sweep.shape.name}"] = partial(_sweep, sweep, options)
    return made


def _sweep(sweep: Sweep, options: argparse.Namespace, deadline: Deadline) -> Iterator[Line]:
    """The sweep itself, its floor and peak memory, and the hooks on the same model."""
    shape, device = sweep.shape, options.device
    _free(device)
    model = loaded(shape, options.dtype, device)
    meter = RouteMeter(model, sweep_routes(sweep.kinds, model.depth))
    unit = max(1, sizes_for(model.device, shape.width).tokens // shape.length)
    what = f"{shape.name}, {options.dtype}, {' and '.join(sweep.kinds)}"
    meter.measure(*windows(shape, unit))
    _forget_peak(device)
    tokens, spent = 0, 0.0
    while (spent < min(sweep.sample, deadline.left) and tokens < sweep.tokens) or not tokens:
        ids, targets = windows(shape, unit, seed=tokens)
        spent += seconds(lambda text=(ids, targets): meter.measure(*text), device)
        tokens += ids.numel()
    whole = spent * sweep.tokens / tokens
    note = f"scaled from {spent:.3g} s over {tokens:,}" if tokens < sweep.tokens else ""
    yield Line(what=f"{what}: {sweep.tokens:,} tokens", value=whole, unit="s", bound=sweep.bound, note=note)
    weights = sum(parameter.nbytes for parameter in model.hf.parameters())
    highest = (_peak(device) - weights) / 1e9
    yield Line(what=f"{what}: peak memory beyond {weights / 1e9:.1f} GB of weights", value=highest, unit="GB")
    yield from _share(what, model, sweep, tokens, spent, options)
    if deadline.left > 0:
        yield from _hooks(what, model, sweep, spent / tokens, options)


def _share(
    what: str, model: Model, sweep: Sweep, tokens: int, spent: float, options: argparse.Namespace
) -> Iterator[Line]:
    on_cuda = options.device.startswith("cuda")
    rows = (*ROWS[2:], 4096, 8192, 16_384) if on_cuda else ROWS[:1]
    slices = (*SLICES[2:], model.unembedding.vocabulary) if on_cuda else SLICES[:1]
    at_least = 0.2 if on_cuda else 0.01
    floor = Floor(model, tokens, sweep.shape.length, {"sweep": sweep.kinds}, rows, slices, at_least)
    floor.warm()
    share = floor.repetition(0)["sweep"] / spent
    rate = floor.gflops["sweep"][0] / 1e3
    bound = None if sweep.bound is None else 100 * SHARE
    yield Line(
        what=f"{what}: share of the card's measured matrix rate", value=100 * share, unit="%", bound=bound, over=True,
        note=f"{rate:.4g} TFLOP/s",
    )  # fmt: skip


def _hooks(what: str, model: Model, sweep: Sweep, ours: float, options: argparse.Namespace) -> Iterator[Line]:
    """One pair of each kind with the largest batch that fits, scaled to the sweep."""
    ids, targets = (part.to(model.device) for part in windows(sweep.shape))
    hooks = Hooks(model, ids, targets, {"sweep": sweep.kinds})
    hooks.warm()
    theirs = hooks.repetition(0)["sweep"] / ids.numel()
    note = f"hooks: {1 / theirs:,.0f} tokens/s through the sweep, {hooks.batch} windows at once; ours {1 / ours:,.0f}"
    yield Line(what=f"{what}: times as fast as hooks", value=theirs / ours, unit="×", note=note)


def _moments(shape: Shape, bound: float | None, options: argparse.Namespace, _deadline: Deadline) -> Iterator[Line]:
    """The first four moments of every neuron's cosines with the unembedding, preparation included."""
    device = options.device
    _free(device)
    generator = torch.Generator(device).manual_seed(0)
    unembedding = torch.randn(shape.vocabulary, shape.width, generator=generator, device=device)
    prepared: list[VocabularyDirections] = []
    once = seconds(lambda: prepared.append(VocabularyDirections(unembedding)), device)
    w_out = torch.randn(shape.mlp, shape.width, generator=generator, device=device)
    prepared[0].moments(w_out[:64])
    spent = seconds(lambda: [prepared[0].moments(w_out) for _ in range(shape.layers)], device)
    yield Line(
        what=f"{shape.name}, float32: moments of {shape.layers * shape.mlp:,} neurons", value=once + spent, unit="s",
        bound=bound, note=f"{once:.3g} s of it once per model",
    )  # fmt: skip


def _prompt(shape: Shape, bound: float | None, options: argparse.Namespace, _deadline: Deadline) -> Iterator[Line]:
    """All four edits at every layer on a short prompt, results on the CPU."""
    model = loaded(shape, options.dtype, options.device)
    meter = RouteMeter(model, sweep_routes(tuple(KINDS), model.depth))
    ids, targets = (part[:1, :PROMPT] for part in windows(shape, 1))
    for _ in range(3):
        meter.measure(ids, targets)
    spent = sorted(seconds(lambda: meter.measure(ids, targets), options.device) for _ in range(9))[4]
    yield Line(
        what=f"{shape.name}, {options.dtype}: {PROMPT} tokens, {len(meter.routes)} routes, median of 9",
        value=1e3 * spent,
        unit="ms",
        bound=bound,
    )


def _peak(device: str) -> float:
    return torch.cuda.max_memory_allocated() if device.startswith("cuda") else resident("VmHWM")


def _forget_peak(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    else:
        forget_peak()


def _free(device: str) -> None:
    """Let go of what an earlier step made."""
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()

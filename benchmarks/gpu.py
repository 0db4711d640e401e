"""How fast is a sweep on an accelerator? Swaps and drops of published shapes with random weights, and the neuron moments.

    python benchmarks/gpu.py                                             all shapes, bfloat16, on CUDA
    python benchmarks/gpu.py --shape pythia-1.4b --tokens 100000         fewer tokens; seconds for a million are scaled
    python benchmarks/gpu.py --device cpu --shape tiny --tokens 256      only to see that it runs
    python benchmarks/gpu.py --write                                     the results into docs/performance.md

Runs from a copy of the repository with nothing installed but torch and transformers. The floor is that of
`benchmarks/speed/floor.py`, measured on the same device after each sweep.
"""

import argparse
import sys
import types
from collections.abc import Mapping
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]


class _AnyShape:
    def __class_getitem__(cls, item: object) -> object:
        return Any


def _stand_in(name: str) -> type:
    """What jaxtyping would give for a name: annotations that nobody reads here."""
    if name.startswith("__"):
        raise AttributeError(name)
    return _AnyShape


if find_spec("jaxtyping") is None:
    module = types.ModuleType("jaxtyping")
    module.__dict__["__getattr__"] = _stand_in
    sys.modules["jaxtyping"] = module

import torch  # noqa: E402

from benchmarks.speed.floor import ROWS, SLICES, Floor  # noqa: E402
from benchmarks.speed.memory import forget_peak, peak  # noqa: E402
from benchmarks.speed.rounds import seconds  # noqa: E402
from benchmarks.speed.routes import sweep_routes  # noqa: E402
from benchmarks.speed.shapes import SHAPES, Shape, loaded, windows  # noqa: E402
from benchmarks.speed.table import PAGE, Fact, fact_table, machine, written_into  # noqa: E402
from depthscope.engine.measure_routes import Pieces, RouteMeter  # noqa: E402
from depthscope.measure import slice_sums  # noqa: E402
from depthscope.measure.moments import VocabularyDirections  # noqa: E402
from depthscope.models.load import DTYPES  # noqa: E402
from depthscope.models.model import Model  # noqa: E402

KINDS = ("swap", "drop")
MILLION = 1_000_000
WARM_UNITS = 2
MIN_SHARE = 0.5
MINUTES: Mapping[str, float] = {"pythia-1.4b": 3.0}
"""Both sweeps over a million tokens; the authors report about 16 hours on two A6000 cards."""
MOMENTS: Mapping[str, float] = {"pythia-6.9b": 20.0}
"""Seconds for the moments of all neurons."""
NEOX: dict[str, Any] = {"family": "gpt_neox", "rotary": 0.25, "context": 2048}
PUBLISHED = {
    "pythia-1.4b": Shape(name="pythia-1.4b", layers=24, width=2048, heads=16, vocabulary=50_304, mlp=8192, **NEOX),
    "gpt2-xl": Shape(name="gpt2-xl", family="gpt2", layers=48, width=1600, heads=25, vocabulary=50_257, mlp=6400),
    "pythia-6.9b": Shape(name="pythia-6.9b", layers=32, width=4096, heads=32, vocabulary=50_432, mlp=16_384, **NEOX),
}
TOKENS = {"pythia-1.4b": MILLION, "gpt2-xl": 250_000, "pythia-6.9b": 100_000}


def measured_sweep(model: Model, shape: Shape, options: argparse.Namespace) -> list[Fact]:
    """Both sweeps over the text, unit after unit, then the floor of the same work."""
    wanted = options.tokens or TOKENS.get(shape.name, MILLION)
    unit = min(options.unit, wanted)
    per_unit = max(1, unit // shape.length)
    units = max(1, -(-wanted // (per_unit * shape.length)))
    tokens = units * per_unit * shape.length
    sums, plain_because = slice_sums.compiled(options.device)
    print(plain_because or "sums over the vocabulary are compiled", flush=True)
    pieces = Pieces(tokens=options.piece, together=options.piece, sums=sums)
    meter = RouteMeter(model, sweep_routes(KINDS, model.depth), pieces)

    def sweep(first: int, count: int) -> None:
        for number in range(first, first + count):
            kl = meter.measure(*windows(shape, per_unit, seed=number)).kl
            assert bool(kl[0].eq(0).all()), "the model itself has KL 0"

    warm = min(units, WARM_UNITS)
    sweep(0, warm)
    _forget_peak(options.device)
    spent = seconds(lambda: sweep(warm, units), options.device)
    highest = _peak(options.device)
    on_cuda = options.device.startswith("cuda")
    rows, slices = ((*ROWS, 4096, 8192, 16_384), (*SLICES, shape.vocabulary)) if on_cuda else (ROWS, SLICES)
    at_least = 0.4 if on_cuda else 0.05
    floor = Floor(model, tokens, shape.length, {"both": KINDS}, rows=rows, slices=slices, at_least=at_least)
    floor.warm()
    share = floor.repetition(0)["both"] / spent
    return _facts(model, shape, options, tokens, spent, highest, share, floor.gflops["both"][0])


def _facts(
    model: Model, shape: Shape, options: argparse.Namespace, tokens: int, spent: float, highest: float, share: float,
    rate: float,
) -> list[Fact]:  # fmt: skip
    weights = sum(parameter.nbytes for parameter in model.hf.parameters()) / 1e9
    what = f"{shape.name}, {options.dtype}, swap and drop"
    million = spent * MILLION / tokens
    scaled = "" if tokens >= MILLION else f", scaled from {spent:.3g} s over {tokens:,}"
    minutes = MINUTES.get(shape.name)
    aimed = shape.name in PUBLISHED
    return [
        Fact(
            what=f"{what}: seconds for a million tokens",
            seen=f"{million:,.0f} s{scaled}",
            target=f"< {60 * minutes:.0f} s" if minutes else "",
            met=million < 60 * minutes if minutes else None,
        ),
        Fact(what=f"{what}: tokens through both sweeps per second", seen=f"{tokens / spent:,.0f}"),
        Fact(
            what=f"{what}: share of the measured matrix rate ({rate / 1000:,.4g} TFLOP/s)",
            seen=f"{100 * share:.0f} %",
            target=f"≥ {100 * MIN_SHARE:.0f} %" if aimed else "",
            met=share >= MIN_SHARE if aimed else None,
        ),
        Fact(what=f"{what}: peak memory", seen=f"{highest / 1e9:.2f} GB, {weights:.2f} GB of it weights"),
    ]


def measured_moments(shape: Shape, device: str) -> list[Fact]:
    """The first four moments of every neuron's cosines with the unembedding, and what is prepared once per model."""
    generator = torch.Generator(device).manual_seed(0)
    unembedding = torch.randn(shape.vocabulary, shape.width, generator=generator, device=device)
    prepared: list[VocabularyDirections] = []
    once = seconds(lambda: prepared.append(VocabularyDirections(unembedding)), device)
    w_out = torch.randn(shape.mlp, shape.width, generator=generator, device=device)
    prepared[0].moments(w_out[:64])
    spent = seconds(lambda: [prepared[0].moments(w_out) for _ in range(shape.layers)], device)
    target = MOMENTS.get(shape.name)
    return [
        Fact(
            what=f"{shape.name}, float32: moments of {shape.layers * shape.mlp:,} neurons",
            seen=f"{once + spent:.3g} s, {once:.3g} s of it preparation once per model",
            target=f"< {target:g} s" if target else "",
            met=once + spent < target if target else None,
        )
    ]


def _peak(device: str) -> float:
    return torch.cuda.max_memory_allocated() if device.startswith("cuda") else peak()


def _forget_peak(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    else:
        forget_peak()


def parsed() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description="Sweeps and neuron moments on an accelerator.")
    add = parser.add_argument
    add("--shape", nargs="+", default=list(PUBLISHED), choices=[*PUBLISHED, *SHAPES])
    add("--device", default="cuda")
    add("--dtype", default="bfloat16", choices=list(DTYPES))
    add("--tokens", type=int, help=f"of each shape; by default {', '.join(f'{n} {t:,}' for n, t in TOKENS.items())}")
    add("--unit", type=int, default=16_384, help="tokens given to the engine at once")
    add("--piece", type=int, help="tokens of one piece inside the engine (by default its own choice)")
    add("--no-moments", action="store_true")
    add("--write", action="store_true", help=f"put the results into docs/{PAGE.name}")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("no CUDA device here; --device cpu --shape tiny shows that it runs")
    return options


def main() -> None:
    """Measure and print."""
    options = parsed()
    facts: list[Fact] = []
    for name in options.shape:
        shape = (PUBLISHED | dict(SHAPES))[name]
        model = loaded(shape, options.dtype, options.device)
        found = measured_sweep(model, shape, options)
        del model
        if options.device.startswith("cuda"):
            torch.cuda.empty_cache()
        if not options.no_moments and (name in MOMENTS or name not in PUBLISHED):
            found += measured_moments(shape, options.device)
        for fact in found:
            print(f"{fact.what}: {fact.seen}", flush=True)
        facts += found
    card = torch.cuda.get_device_name() if options.device.startswith("cuda") else "no accelerator"
    block = f"{card}; {machine()}; {date.today().isoformat()}.\n\n{fact_table(facts)}"
    print("\n" + block)
    if options.write:
        PAGE.write_text(written_into(PAGE.read_text(), block, "gpu"))


if __name__ == "__main__":
    main()

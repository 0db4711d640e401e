"""Measured besides sweeps against others: short prompts, surgery, growth with tokens and with layers, peak memory."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.speed.floor import Floor
from benchmarks.speed.ours import Ours
from benchmarks.speed.rounds import median, ratios, seconds, take_turns
from benchmarks.speed.routes import KINDS, sweep_routes
from benchmarks.speed.shapes import SHAPES, Shape, deepened, loaded, windows
from benchmarks.speed.table import Fact
from depthscope.allocator import keep_compact, kept_meanwhile
from depthscope.engine.baseline import Baseline
from depthscope.engine.measure_routes import RouteMeter
from depthscope.explore.prompt import TOP
from depthscope.explore.surgery import operate
from depthscope.models.model import Model

Tell = Callable[[str], None]

PROMPT = 12
PROMPT_TARGETS = {"bookshelf-gpt2": 0.3, "bookshelf-neox": 0.3, "gpt2-small": 3.0}
"""Seconds, float32."""
PROMPT_REPEATS = 5
SURGERY_TOKENS = 256
SURGERY_TARGET = 0.8
"""Seconds, float32, with KL at the last token: what the explorer shows first."""
DEPTHS = (6, 12, 18)
DEPTH_TOLERANCE = 0.10
LENGTHS = (1024, 2048)
TOKEN_TOLERANCE = 0.05
MEMORY_TARGET = 1.2
"""GB (10⁹ bytes) beyond the weights, libraries included."""
MODEL = "gpt2-small"


def short(rounds: int, tell: Tell) -> list[Fact]:
    """All four kinds of edit at every layer on a prompt of 12 tokens, preparation of the routes included."""
    facts = []
    for name, target in PROMPT_TARGETS.items():
        model = loaded(SHAPES[name], "float32")
        ids, targets = (part[:1, :PROMPT] for part in windows(SHAPES[name], 1))

        def once(model=model, ids=ids, targets=targets) -> None:
            RouteMeter(model, sweep_routes(tuple(KINDS), model.depth)).measure(ids, targets)

        facts.append(_timed(f"{name}, float32, all four edits on {PROMPT} tokens", once, target, tell))
    return facts


def surgery(rounds: int, tell: Tell) -> list[Fact]:
    """The explorer's surgery on a prompt that fills the embedded models' context, the unmodified model's run included."""
    keep_compact()  # as the explorer does
    facts = []
    for name in (name for name in PROMPT_TARGETS if SHAPES[name].embedded):
        once = one_surgery(loaded(SHAPES[name], "float32"), SHAPES[name])
        facts.append(
            _timed(f"{name}, float32, the explorer's surgery on {SURGERY_TOKENS} tokens", once, SURGERY_TARGET, tell)
        )
    return facts


def one_surgery(model: Model, shape: Shape) -> Callable[[], None]:
    """One surgery on SURGERY_TOKENS tokens, as the explorer does it."""
    ids = windows(shape, 1)[0][:, :SURGERY_TOKENS]

    def once() -> None:
        with kept_meanwhile(), model.measuring():
            operate(model, Baseline(model, ids, ids), TOP)

    return once


def _timed(what: str, once: Callable[[], None], target: float, tell: Tell) -> Fact:
    """The median of some repetitions, after one that is not timed, against a target in seconds."""
    once()
    spent = [seconds(once) for _ in range(PROMPT_REPEATS)]
    tell(f"  {what}: {median(spent):.2f} s")
    seen = f"{median(spent):.2f} s ({min(spent):.2f} – {max(spent):.2f})"
    return Fact(what=what, seen=seen, target=f"< {target:g} s", met=median(spent) < target)


def tokens(rounds: int, tell: Tell) -> list[Fact]:
    """Seconds per token of a drop sweep over two lengths of text."""
    shape = SHAPES[MODEL]
    model = loaded(shape, "float32")
    contenders = []
    for length in LENGTHS:
        one = Ours(model, *windows(shape, length // shape.length), {"drop": ("drop",)})
        one.name = f"{length} tokens"
        contenders.append(one)
    taken = take_turns(contenders, rounds, tell)
    small, large = (taken[one.name]["drop"] for one in contenders)
    growth = [ratio * LENGTHS[0] / LENGTHS[1] for ratio in ratios(large, small)]
    return [
        Fact(
            what=f"{MODEL}, float32, drop: seconds per token over {LENGTHS[1]:,} tokens against over {LENGTHS[0]:,}",
            seen=_spread(growth),
            target=f"1 ± {TOKEN_TOLERANCE:g}",
            met=abs(median(growth) - 1) <= TOKEN_TOLERANCE,
        )
    ]


def depth(rounds: int, tell: Tell) -> list[Fact]:
    """A drop sweep with 6, 12 and 18 layers, against L(L+1)/2 · B + (L+1) · U with B and U timed in the same round."""
    contenders, floors = [], []
    for layers in DEPTHS:
        shape = deepened(SHAPES[MODEL], layers)
        model, text = loaded(shape, "float32"), windows(shape, 1)
        one, floor = (
            Ours(model, *text, {"drop": ("drop",)}),
            Floor(model, text[0].numel(), shape.length, {"drop": ("drop",)}),
        )
        one.name, floor.name = f"{layers} layers", f"formula for {layers} layers"
        contenders += [one, floor]
        floors.append(floor)
    taken = take_turns(contenders, rounds, tell)
    over = {
        layers: ratios(taken[f"{layers} layers"]["drop"], taken[f"formula for {layers} layers"]["drop"])
        for layers in DEPTHS
    }
    middle = DEPTHS[1]
    return [
        Fact(
            what=f"{MODEL} with {layers} layers, float32, drop: measured / formula, against the same with {middle} layers",
            seen=_spread(relative),
            target=f"1 ± {DEPTH_TOLERANCE:g}",
            met=abs(median(relative) - 1) <= DEPTH_TOLERANCE,
        )
        for layers in DEPTHS
        if layers != middle
        for relative in [ratios(over[layers], over[middle])]
    ]


def memory(rounds: int, tell: Tell) -> list[Fact]:
    """Peak memory of all four edits over two lengths of text, in processes of their own: how a process's heap falls out
    differs by a tenth of a GB from one to the next."""
    facts = []
    for length in LENGTHS:
        command = [sys.executable, "-m", "benchmarks.speed.memory", MODEL, "float32", str(length)]
        before, beyond = [], []
        for _ in range(rounds):
            done = subprocess.run(
                command, cwd=Path(__file__).parents[2], env=os.environ, capture_output=True, text=True, check=True
            )
            for values, value in zip((before, beyond), done.stdout.split()[-2:], strict=True):
                values.append(float(value))
            tell(f"  {length} tokens: {beyond[-1]:.2f} GB, {before[-1]:.2f} of it before the sweep")
        facts.append(
            Fact(
                what=f"{MODEL}, float32, all four edits over {length:,} tokens: peak memory beyond the weights",
                seen=f"{median(beyond):.2f} GB ({min(beyond):.2f} – {max(beyond):.2f}), "
                f"{median(before):.2f} of it before the sweep",
                target=f"≤ {MEMORY_TARGET:g} GB",
                met=median(beyond) <= MEMORY_TARGET,
            )
        )
    return facts


def measured(part: str, rounds: int, tell: Tell) -> list[Fact]:
    """What a part of PARTS finds."""
    return PARTS[part](rounds, tell)


def _spread(values: list[float]) -> str:
    around = f" ({min(values):.3f} – {max(values):.3f})" if len(values) > 1 else ""
    return f"{median(values):.3f}{around}"


PARTS: Mapping[str, Callable[[int, Tell], list[Fact]]] = {
    "short": short,
    "surgery": surgery,
    "tokens": tokens,
    "depth": depth,
    "memory": memory,
}
NAMES = ("sweeps", *PARTS)

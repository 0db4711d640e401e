"""The main part: sweeps of one model in one dtype, ours and the others taking turns."""

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack

from benchmarks.speed.floor import Floor, PackedFloor
from benchmarks.speed.hooks import Hooks
from benchmarks.speed.ours import Ours, drawn_pairs
from benchmarks.speed.rounds import Contender, Taken, median, ratios, take_turns
from benchmarks.speed.shapes import Shape, loaded, windows
from benchmarks.speed.table import Comparison
from benchmarks.speed.workers import SCRIPTS, Unavailable, Worker, peers_for, python_of

ALTERNATIVES = (*SCRIPTS, Hooks.name, Floor.name)
TARGETS = {
    ("gpt2-small", "float32", "all four", "authors' loop"): 6.0,
    ("gpt2-small", "bfloat16", "all four", "authors' loop"): 22.0,
    ("gpt2-small", "bfloat16", "all four", "authors' loop in float32"): 22.0,
    ("pythia-410m", "float32", "all four", "authors' loop"): 6.5,
    ("pythia-410m", "bfloat16", "all four", "authors' loop"): 22.0,
    ("pythia-410m", "bfloat16", "all four", "authors' loop in float32"): 22.0,
    ("gpt2-small", "float32", "all four", Hooks.name): 1.5,
    ("pythia-410m", "float32", "all four", Hooks.name): 1.8,
}
FLOOR_TARGETS = {
    Floor.name: {"float32": 0.85, "bfloat16": 0.65},
    PackedFloor.name: {"float32": 0.88, "bfloat16": 0.78},
}
EMBEDDED_TARGET = 0.70
"""Of the floor, in float32: in narrow models norms, activations and calls cost as much as half of the products."""
TOLERANCE = {"float32": (1e-3, 1e-5), "bfloat16": (0.05, 1e-3)}
"""Relative and absolute, for the mean KL of one edit: in bfloat16 the logits themselves are rounded to 8 bits."""

Sweeps = Mapping[str, Sequence[str]]


class Disagreement(Exception):  # noqa: N818 - what was measured cannot be compared
    """Ours and an alternative found different KLs, so that comparing their speed would mean nothing."""


def compare(
    shape: Shape, dtype: str, sweeps: Sweeps, alternatives: Sequence[str], rounds: int, tell: Callable[[str], None]
) -> list[Comparison]:
    """Lines of one model and dtype. Raises Disagreement where an alternative measures something else."""
    model = loaded(shape, dtype)
    text = windows(shape)
    ours = Ours(model, *text, sweeps)
    contenders: list[Contender] = [ours]
    missing: dict[str, str] = {}
    kinds = [Floor] if model.kernels.note else [Floor, PackedFloor]
    floors = [kind(model, shape.tokens, shape.length, sweeps) for kind in kinds if Floor.name in alternatives]
    hooks = Hooks(model, *text, sweeps) if Hooks.name in alternatives else None
    with ExitStack() as workers:
        for name in peers_for(alternatives, dtype):
            try:
                python = python_of(SCRIPTS[name].environment, tell)
                worker = Worker(name, shape, dtype, sweeps, python)
                workers.callback(worker.close)
                contenders.append(worker)
            except Unavailable as error:
                missing[name] = str(error)
        contenders += [one for one in (hooks, *floors) if one is not None]
        taken = take_turns(contenders, rounds, tell)
        _check(ours, contenders, shape, dtype, sweeps, tell)
    del model, ours, contenders, hooks
    gc.collect()
    notes = dict(missing)
    lines = []
    for sweep in sweeps:
        notes |= {floor.name: f"{median(floor.gflops[sweep]):,.0f} GFLOP/s" for floor in floors}
        lines += _lines(shape, dtype, sweep, taken, notes)
    return lines


def _lines(shape: Shape, dtype: str, sweep: str, taken: Taken, notes: Mapping[str, str]) -> list[Comparison]:
    own = taken[Ours.name][sweep]
    lines = []
    for name in (name for name in (*ALTERNATIVES, PackedFloor.name) if name in taken or name in notes):
        is_floor = name in (Floor.name, PackedFloor.name)
        others = taken[name][sweep] if name in taken else []
        lines.append(
            Comparison(
                model=shape.name,
                dtype=dtype,
                edits=sweep,
                tokens=shape.tokens,
                against=name,
                ours=shape.tokens / median(own),
                theirs=shape.tokens / median(others) if others else 0.0,
                ratios=tuple(ratios(others, own)) if others else (),
                target=_target(shape, dtype, sweep, name),
                share=is_floor,
                note=notes.get(name, ""),
            )
        )
    return lines


def _target(shape: Shape, dtype: str, sweep: str, against: str) -> float | None:
    if against not in FLOOR_TARGETS:
        return TARGETS.get((shape.name, dtype, sweep, against))
    if shape.embedded:
        return EMBEDDED_TARGET if (against, dtype) == (Floor.name, "float32") else None
    return FLOOR_TARGETS[against][dtype]


def _check(
    ours: Ours, contenders: Sequence[Contender], shape: Shape, dtype: str, sweeps: Sweeps, tell: Callable[[str], None]
) -> None:
    """Mean KL of the first round's pairs: the hooks on the same weights, nnsight where weights are drawn alike."""
    kinds = list(dict.fromkeys(kind for kinds in sweeps.values() for kind in kinds))
    chosen = drawn_pairs(kinds, shape.layers, 0)
    found = {one.name: one.mean_kl(chosen) for one in contenders if isinstance(one, Hooks)}
    if not shape.embedded:
        found |= {one.name: one.kl for one in contenders if isinstance(one, Worker) and one.name == "nnsight"}
    if not found:
        return
    own = ours.mean_kl(chosen)
    relative, absolute = TOLERANCE[dtype]
    for name, values in found.items():
        for (kind, layer), kl in own.items():
            if abs(values[kind, layer] - kl) > absolute + relative * kl:
                raise Disagreement(
                    f"{shape.name}, {dtype}, {kind}({layer}): mean KL {kl:.6g} here, {values[kind, layer]:.6g} by {name}"
                )
        pairs = ", ".join(f"{kind}({layer}) {own[kind, layer]:.4g}/{values[kind, layer]:.4g}" for kind, layer in chosen)
        tell(f"  same KL as {name}: {pairs}")

"""`python -m benchmarks.speed`: see the package's first lines for how to run one model."""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import date
from typing import TypeVar

import torch

from benchmarks.speed import parts
from benchmarks.speed.rounds import in_a_new_process, tell
from benchmarks.speed.routes import SWEEPS
from benchmarks.speed.shapes import MODELS, SHAPES
from benchmarks.speed.sweeps import ALTERNATIVES, compare
from benchmarks.speed.table import PAGE, Comparison, Fact, machine, machine_block, results, written_into
from benchmarks.speed.workers import ENVIRONMENTS
from depthscope.models.from_files import DTYPES
from depthscope.models.half_precision import SLOWER, time_of_products

QUICK = {"shapes": "gpt2-small", "alternatives": "hooks,floor", "parts": "sweeps,short", "rounds": 1, "windows": 1}
Kind = TypeVar("Kind", Comparison, Fact)
RAW = ENVIRONMENTS.parent / "speed.json"


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, lists taken apart."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description="How fast is a sweep?")
    add = parser.add_argument
    add("--quick", action="store_true", help="gpt2-small, one window, one round, hooks and floor; 2 to 3 minutes")
    add("--shapes", default=",".join(MODELS), help=f"some of {', '.join(SHAPES)}")
    add("--dtypes", default=",".join(dtypes_here()), help="by default float32, and bfloat16 where it is not slower")
    add("--sweeps", default=",".join(SWEEPS), help=f"some of {', '.join(SWEEPS)}")
    add("--alternatives", default=",".join(ALTERNATIVES), help=f"some of {', '.join(ALTERNATIVES)}, or none")
    add("--parts", default=",".join(parts.NAMES), help=f"some of {', '.join(parts.NAMES)}")
    add("--rounds", type=int, default=3)
    add("--windows", type=int, help="windows of one repetition (by default what the shape says)")
    add(
        "--again",
        action="store_true",
        help="measure these shapes and parts again, and keep what the last run found of others (--parts none: all of it)",
    )
    add(
        "--write",
        nargs="?",
        const=machine_block(),
        metavar="BLOCK",
        help=f"put the results into docs/{PAGE.name}, into a block (by default {machine_block()}, for this processor)",
    )
    options = parser.parse_args(arguments)
    if options.quick:
        for name, value in QUICK.items():
            if getattr(options, name) == parser.get_default(name):
                setattr(options, name, value)
    known = {
        "shapes": SHAPES, "dtypes": DTYPES, "sweeps": SWEEPS, "alternatives": ALTERNATIVES, "parts": parts.NAMES,
    }  # fmt: skip
    for name, values in known.items():
        chosen = [one.strip() for one in getattr(options, name).split(",") if one.strip() not in ("", "none")]
        if unknown := [one for one in chosen if one not in values]:
            parser.error(f"unknown {name}: {', '.join(unknown)}; expected some of {', '.join(values)}")
        setattr(options, name, chosen)
    return options


def dtypes_here() -> list[str]:
    """float32, and bfloat16 unless the processor computes it so slowly that its lines would take the night."""
    return ["float32", *(["bfloat16"] if time_of_products(torch.bfloat16) < SLOWER else [])]


def how(options: argparse.Namespace, minutes: float) -> str:
    """Where, when and what was run."""
    slower = "bfloat16" not in [*options.dtypes, *dtypes_here()]
    left_out = " bfloat16 is left out: its products are slower here than float32's." if slower else ""
    return (
        f"{machine()}; {date.today()}. Medians of {options.rounds} rounds (range in brackets), {minutes:.0f} minutes in all. "
        "Ours is timed whole. Of the alternatives, one edit of each kind at a layer drawn anew is timed in every round and "
        "multiplied by the number of layers (a full forward costs the same at each), plus the baseline where it is "
        "computed once." + left_out
    )


def with_again(before: str, again: Sequence[str]) -> str:
    """What was said of a run, and what has been measured again since; what was again on the same day is named once."""
    if not again:
        return before
    since = f" After that, on {date.today()}, measured again: "
    first, _, names = before.removesuffix(".").partition(since)
    first, names = (first, names.split(", ")) if names else (before, [])
    return f"{first}{since}{', '.join(dict.fromkeys([*names, *again]))}."


def main() -> None:
    """Measure, print, and write if asked to. A run that is stopped leaves what it has measured for one with --again."""
    options = parsed()
    start = time.perf_counter()
    comparisons, facts, before = _kept() if options.again else ([], [], "")

    def said() -> str:
        if not before:
            return how(options, (time.perf_counter() - start) / 60)
        again = [*(options.shapes if "sweeps" in options.parts else []), *options.parts]
        return with_again(before, [one for one in again if one != "sweeps"])

    if "sweeps" in options.parts:
        sweeps = {name: SWEEPS[name] for name in options.sweeps}
        for shape in (SHAPES[name] for name in options.shapes):
            timed = replace(shape, windows=options.windows or shape.windows)
            for dtype in options.dtypes:
                tell(f"{shape.name}, {dtype}")
                new = in_a_new_process(compare, timed, dtype, sweeps, options.alternatives, options.rounds)
                comparisons = _together(comparisons, new, _line)
                _keep(comparisons, facts, said())
    for part in (part for part in options.parts if part in parts.PARTS):
        tell(part)
        facts = _together(facts, in_a_new_process(parts.measured, part, options.rounds), lambda fact: fact.what)
        _keep(comparisons, facts, said())
    comparisons.sort(key=lambda line: (list(SHAPES).index(line.model), list(DTYPES).index(line.dtype)))
    block = results(comparisons, facts, said())
    print("\n" + block)
    if options.write:
        PAGE.write_text(written_into(PAGE.read_text(), block, options.write))


def _line(one: Comparison) -> tuple[str, ...]:
    return one.model, one.dtype, one.edits, one.against


def _together(before: Sequence[Kind], new: Sequence[Kind], what: Callable[[Kind], object]) -> list[Kind]:
    """What was measured before, without what has been measured again, and that."""
    again = {what(one) for one in new}
    return [*(one for one in before if what(one) not in again), *new]


def _keep(comparisons: Sequence[Comparison], facts: Sequence[Fact], said: str) -> None:
    RAW.parent.mkdir(exist_ok=True)
    kept = {"comparisons": [*map(asdict, comparisons)], "facts": [*map(asdict, facts)], "said": said}
    RAW.write_text(json.dumps(kept, indent=1))


def _kept() -> tuple[list[Comparison], list[Fact], str]:
    if not RAW.exists():
        raise SystemExit(f"--again adds to a run: expected one in {RAW.parent.name}/{RAW.name}; run without it first")
    kept = json.loads(RAW.read_text())
    comparisons = [Comparison(**line | {"ratios": tuple(line["ratios"])}) for line in kept["comparisons"]]
    return comparisons, [Fact(**fact) for fact in kept["facts"]], kept["said"]


if __name__ == "__main__":
    main()

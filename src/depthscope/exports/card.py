"""The model card of an export, README.md: what was changed and why, sizes, speed, and what it costs in predictions.

Only numbers that were measured are in it. Imports no torch.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from math import exp
from pathlib import Path
from typing import Any

import polars as pl

from depthscope.routes import Route
from depthscope.run.files import write_file
from depthscope.schema.speed import PHASES, Speed
from depthscope.schema.sweep import BASELINE_EDIT

CARD = "README.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """What an export's model card says beyond what exporting itself knows. Everything is optional."""

    about: str | None = None
    """What the model is, in Markdown, in place of a sentence on the order of its layers."""
    chosen: str | None = None
    """How the route was chosen, in Markdown."""
    command: str | None = None
    """The command that made the export."""
    quality: pl.DataFrame | None = None
    """Rows as `depthscope.measure` gives them, of the unmodified model and of the route."""
    text: str | None = None
    """What text those are of."""
    speed: Speed | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A finished export."""

    path: Path
    model: str
    family: str
    route: Route
    layers: tuple[int, int]
    """Before and after, like the two below."""
    parameters: tuple[int, int]
    bytes: tuple[int, int]
    """Of the weights, in the dtypes they are written in."""
    dtype: str
    copied_bytes: int = 0
    """Of layers that are written again because the route visits them more than once."""
    zeroed: tuple[str, ...] = ()
    partly_zeroed: tuple[str, ...] = ()
    """Names of parameters that are zero because their component is ablated."""
    difference: float = 0.0
    """Largest difference of the reloaded checkpoint's logits from the route's: 0.0 is bit for bit."""
    tokens: int = 0
    """On how many tokens the logits were compared."""
    fresh: bool = True
    """Whether they were those of a new process."""
    licence: str | None = None
    """The licence that the original's card names."""
    notes: tuple[str, ...] = ()


def write_card(exported: Exported, card: Card, folder: Path | None = None) -> None:
    """Write README.md in the export. Raises RunError where it cannot be written."""
    write_file((folder or exported.path) / CARD, card_text(exported, card).encode())


def card_text(exported: Exported, card: Card) -> str:
    """The card in Markdown."""
    sections = [
        _head(exported),
        f"# {_name(exported.path)}",
        _about(exported, card.about),
        *(["## How it was made", card.chosen.strip()] if card.chosen else []),
        "## Size",
        *_size(exported),
        *(["## Predictions", *_quality(card.quality, card.text)] if card.quality is not None else []),
        *(["## Speed and memory", *_speed(card.speed)] if card.speed is not None else []),
        *(["## Command", f"```\n{card.command.replace('```', '')}\n```"] if card.command else []),
        *(["## Notes", "\n".join(f"- {note}" for note in exported.notes)] if exported.notes else []),
    ]
    return "\n\n".join(sections) + "\n"


def _head(exported: Exported) -> str:
    lines = ["---", "library_name: transformers", f"base_model: {_quoted(exported.model)}"]
    lines += [f"license: {exported.licence}"] if exported.licence else []
    return "\n".join([*lines, "tags:", "- depthscope", "---"])


def _about(exported: Exported, about: str | None) -> str:
    how = (
        "bit for bit" if exported.difference == 0 else f"up to rounding (largest difference {exported.difference:.2g})"
    )
    where = "in a new process " if exported.fresh else ""
    layers = (
        f"{_plain(exported.model)} ({exported.family}) with its layers in the order `{exported.route.name}`, counted from 0: "
        f"{_changes(exported.route)}."
    )
    same = "the model that was measured" if about else "the original run in this order"
    return (
        f"{about or layers} A plain transformers checkpoint: nothing else is needed to load it. Loaded {where}with "
        f"transformers, its logits on {exported.tokens} tokens are those of {same}, {how}. Made by "
        f"depthscope {version('depthscope')}."
    )


def _changes(route: Route) -> str:
    """What a route does, in words."""
    steps = list(route.steps())
    visits = [sum(step.block == block for step in steps) for block in range(route.depth)]
    removed = [block for block, times in enumerate(visits) if times == 0]
    repeated = [f"{block} ({times} times)" for block, times in enumerate(visits) if times > 1]
    silent = [step.name for step in steps if step.silent]
    inside = [step.name for step in steps if step.inside and not step.silent]
    once = [step.block for place, step in enumerate(steps) if step.block not in [one.block for one in steps[:place]]]
    said = [
        f"removed {_counted(removed)}" if removed else "",
        f"run more than once {', '.join(repeated)}" if repeated else "",
        "order changed" if once != sorted(once) else "",
        f"without a component {', '.join(silent)}" if silent else "",
        f"without heads or neurons {', '.join(inside)}" if inside else "",
    ]
    return "; ".join(filter(None, said)) or "none changed"


def _counted(layers: list[int]) -> str:
    return f"{', '.join(map(str, layers))} ({len(layers)} layer{'s' if len(layers) > 1 else ''})"


def _size(exported: Exported) -> Iterator[str]:
    yield _table(
        ["", "before", "after"],
        [
            ["layers", *map(str, exported.layers)],
            ["parameters", *(f"{count:,}" for count in exported.parameters)],
            [f"weights ({exported.dtype})", *map(in_units, exported.bytes)],
        ],
    )
    if exported.copied_bytes:
        yield (
            f"Layers that run more than once are written as copies, {in_units(exported.copied_bytes)} of the weights above: "
            "transformers cannot say that layers share their weights. Equal layers share nothing in memory either."
        )
    if exported.zeroed:
        yield (
            f"Ablated components are not removed: {len(exported.zeroed)} parameters are zero, so they take the same space and "
            f"time as before ({', '.join(exported.zeroed[:4])}{' …' if len(exported.zeroed) > 4 else ''})."
        )
    if some := exported.partly_zeroed:
        yield (
            f"Ablated heads and neurons are not removed: {len(some)} parameters are zero where they are multiplied with them, "
            f"so they take the same space and time as before ({', '.join(some[:4])}{' …' if len(some) > 4 else ''})."
        )


def _quality(table: pl.DataFrame, text: str | None) -> Iterator[str]:
    before = {row["metric"]: row for row in table.filter(pl.col("edit") == BASELINE_EDIT).iter_rows(named=True)}
    after = {row["metric"]: row for row in table.filter(pl.col("edit") != BASELINE_EDIT).iter_rows(named=True)}
    rows = []
    if "loss" in after:
        rows.append(["perplexity", *(_interval(one.get("loss"), exp) for one in (before, after))])
    for metric, row in after.items():
        rows.append([f"{metric} ({row['unit']})", _interval(before.get(metric)), _interval(row)])
    yield _table(["", "original", "this model"], rows)
    first = next(iter(after.values()), None)
    if first is not None:
        yield (
            f"Means over {first['tokens']:,} tokens of {first['documents']} documents"
            f"{f' ({_plain(text)})' if text else ''}, with 95 % intervals over documents. KL is from the original's next-token "
            "distribution to this model's, agreement how often both have the same most likely token; perplexity is exp(loss)."
        )


def _interval(row: dict[str, Any] | None, shown: Any = float) -> str:
    if row is None:
        return ""
    mean = f"{shown(row['mean']):.4g}"
    if row["ci_low"] is None or row["ci_high"] is None:
        return mean
    return f"{mean} [{shown(row['ci_low']):.4g}, {shown(row['ci_high']):.4g}]"


def _speed(speed: Speed) -> Iterator[str]:
    rows = [
        [
            f"{PHASES[row['phase']]}, tokens/s",
            f"{row['before']:.4g}",
            f"{row['after']:.4g}",
            f"{row['ratio']:.2f} [{row['lowest']:.2f}, {row['highest']:.2f}]",
        ]
        for row in speed.rows()
    ]
    before, after = speed.before, speed.after
    rows.append(
        ["weights in memory", in_units(before.weights), in_units(after.weights), _over(after.weights, before.weights)]
    )
    if before.peak is not None and after.peak is not None:
        rows.append(["peak memory", in_units(before.peak), in_units(after.peak), _over(after.peak, before.peak)])
    yield _table(["", "before", "after", "ratio"], rows)
    yield f"{speed.method}."


def _over(one: int, other: int) -> str:
    return f"{one / other:.2f}" if other else ""


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def in_units(size: int) -> str:
    """A number of bytes: `11.8 MiB`, `3.10 GiB`."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def _name(path: Path) -> str:
    return _plain(path.name)


def _plain(text: str) -> str:
    """Text from outside as one line that Markdown shows as it is."""
    line = " ".join(text.split())
    return "".join(f"\\{sign}" if sign in "\\`*_[]<>#|" else sign for sign in line)


def _quoted(text: str) -> str:
    return '"' + " ".join(text.split()).replace("\\", "\\\\").replace('"', '\\"') + '"'

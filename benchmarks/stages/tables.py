"""The results of the controls as tables of docs/stages.md."""

from collections.abc import Mapping, Sequence
from typing import Any

COVERED = "covered, named"


def tables(results: Mapping[str, Any]) -> str:
    """All parts that were measured."""
    made = {"nulls": _nulls, "power": _power, "models": _models}
    return "\n\n".join(make(results[part]) for part, make in made.items() if part in results)


def _nulls(part: Mapping[str, Any]) -> str:
    cells = part["cells"]
    depths = list(next(iter(cells.values())))
    rows = [
        [name, *(f"{_share(of[depth][0])} / {_share(of[depth][1])}" for depth in depths)] for name, of in cells.items()
    ]
    head = ["signals without stages", *(f"{depth} layers" for depth in depths)]
    return (
        f"**No stages.** Share of {part['sets']} simulated sets with *a step beyond smooth change* / with *a named stage*, as "
        f"if every defining signature were supported ({_where(part)}). 16 layers are the fewest for a name.\n\n"
        f"{_table(head, rows)}"
    )


def _power(part: Mapping[str, Any]) -> str:
    cells = part["cells"]
    depths = list(next(iter(cells.values())))
    blocks = []
    for what, title in (
        ("step", "sets with a step beyond smooth change"),
        ("named", "transitions that are named"),
        ("within a layer", "transitions placed within a layer of the truth, named or not"),
        (COVERED, "intervals of named transitions that contain the true layer (number of named ones)"),
    ):
        rows = [
            [name, *(_share(of[depth][what]) + (_count(of[depth]) if what == COVERED else "") for depth in depths)]
            for name, of in cells.items()
        ]
        blocks.append(_table([title, *(f"{depth} layers" for depth in depths)], rows))
    return (
        f"**Planted stages.** All three transitions, steps in standard deviations of the noise over layers (autoregression, "
        f"0.3), share of {part['sets']} sets or of their transitions ({_where(part)}).\n\n" + "\n\n".join(blocks)
    )


def _models(part: Mapping[str, Any]) -> str:
    cells = part["cells"]
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for name, cell in cells.items():
        kinds.setdefault(_kind(name), []).append(cell)
    rows = [
        [
            kind,
            str(len(those)),
            " ".join(sorted({str(one["layers"]) for one in those}, key=int)),
            str(sum(bool(one["named"]) for one in those)),
            str(sum(one["named, prediction waived"] for one in those)),
        ]
        for kind, those in kinds.items()
    ]
    head = ["networks without stages", "number", "layers", "with a name", "with a name, prediction waived"]
    return (
        f"**Real networks without stages**, {part['tokens']:,} tokens each ({_where(part)}). *Prediction waived*: as if the "
        f"model predicted better than token frequencies.\n\n{_table(head, rows)}"
    )


def _kind(name: str) -> str:
    for kind in ("fresh weights", "middle averaged", "middle twice, shuffled", "middle shuffled"):
        if kind in name:
            return kind
    return name


def _count(cell: Mapping[str, Any]) -> str:
    return f" ({cell['count, named']})" if cell["count, named"] else ""


def _where(part: Mapping[str, Any]) -> str:
    return f"{part['machine']}, {part['made']}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

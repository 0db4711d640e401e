"""Words for comparisons and lists, from which the sentences of the page are made."""

from collections.abc import Mapping, Sequence
from typing import Any

from depthscope.report.measured import Value


def compared(first: Mapping[int, Value], second: Mapping[int, Value]) -> tuple[list[int], list[int], list[int]]:
    """Layers that both have, where the first is larger, where the second is, and where that is open.

    Open are those whose intervals overlap, which asks for more than a test of the difference would: what is said of the
    others is on the safe side. Without intervals the means decide.
    """
    larger: list[int] = []
    smaller: list[int] = []
    unsettled: list[int] = []
    for layer in sorted(first.keys() & second.keys()):
        (a_low, a_high), (b_low, b_high) = ends(first[layer]), ends(second[layer])
        (larger if a_low > b_high else smaller if b_low > a_high else unsettled).append(layer)
    return larger, smaller, unsettled


def ends(value: Value) -> tuple[float, float]:
    """The ends of an interval; the mean twice where there is none."""
    return (value.mean, value.mean) if value.low is None or value.high is None else (value.low, value.high)


def sentence(parts: Sequence[str]) -> str:
    """Parts that are there, with semicolons between, as a sentence."""
    text = "; ".join(part for part in parts if part)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def layer_list(layers: Sequence[int]) -> str:
    """`layer 3` or `layers 0, 2–5 and 9`."""
    return f"layer{'s' if len(layers) > 1 else ''} {ranges(layers)}"


def ranges(layers: Sequence[int]) -> str:
    """Layer numbers with runs of three and more drawn together: `0, 2–5 and 9`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    parts = []
    for run in runs:
        parts += [f"{run[0]}–{run[-1]}"] if len(run) > 2 else [str(layer) for layer in run]
    return joined(parts)


def listed(things: Sequence[object], most: int = 6) -> str:
    """`a, b and c`; beyond `most` only how many more."""
    names = [str(thing) for thing in things]
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return joined(names)


def joined(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def counted_documents(text: Mapping[str, Any], otherwise: int | None = None) -> str:
    """`64 documents`; of packed text `500 documents, in 120 independent units`; empty where it is not known."""
    units = text.get("documents", otherwise)
    packed = text.get("packed") or {}
    documents = packed.get("documents", units)
    if not documents:
        return ""
    grouped = f", in {units:,} independent unit{'' if units == 1 else 's'}" if packed else ""
    return f"{documents:,} document{'' if documents == 1 else 's'}{grouped}"

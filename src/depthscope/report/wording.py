"""Comparisons and lists as text, the building blocks of the page's sentences."""

from collections.abc import Mapping, Sequence

from depthscope.report.measured import Value
from depthscope.schema.manifest import ClusteredEntry, TextEntry


def compared(first: Mapping[int, Value], second: Mapping[int, Value]) -> tuple[list[int], list[int], list[int]]:
    """Layers that both series have: where the first is larger, where the second is, and where it is too close to call.

    Too close to call means that the intervals overlap. This is stricter than a test of the difference, so the other two lists
    are conservative. Without intervals, means are compared.
    """
    larger: list[int] = []
    smaller: list[int] = []
    unsettled: list[int] = []
    for layer in sorted(first.keys() & second.keys()):
        (a_low, a_high), (b_low, b_high) = ends(first[layer]), ends(second[layer])
        (larger if a_low > b_high else smaller if b_low > a_high else unsettled).append(layer)
    return larger, smaller, unsettled


def ends(value: Value) -> tuple[float, float]:
    """The bounds of an interval; the mean twice if there is none."""
    return (value.mean, value.mean) if value.low is None or value.high is None else (value.low, value.high)


def sentence(parts: Sequence[str]) -> str:
    """The non-empty parts, joined by semicolons, as one sentence."""
    text = "; ".join(part for part in parts if part)
    return f"{text[0].upper()}{text[1:]}." if text else ""


def layer_list(layers: Sequence[int]) -> str:
    """`layer 3` or `layers 0, 2–5 and 9`."""
    return f"layer{'s' if len(layers) > 1 else ''} {ranges(layers)}"


def ranges(layers: Sequence[int]) -> str:
    """Layer numbers, with runs of three or more as ranges: `0, 2–5 and 9`."""
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
    """`a, b and c`; beyond `most` names, `a, b and 5 more`."""
    names = [str(thing) for thing in things]
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return joined(names)


def joined(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def counted_documents(text: TextEntry, otherwise: int | None = None) -> str:
    """`64 documents`; of packed or clustered text `500 documents, in 120 independent units`, `in 9 clusters by title`.

    Empty if unknown.
    """
    units = otherwise if text.documents is None else text.documents
    joined_up = text.clustered or text.packed
    documents = joined_up.documents if joined_up else units
    if not documents:
        return ""
    if text.clustered:
        return f"{documents:,} document{'' if documents == 1 else 's'}, in {counted_units(text, units)}"
    grouped = f", in {units:,} independent unit{'' if units == 1 else 's'}" if text.packed else ""
    return f"{documents:,} document{'' if documents == 1 else 's'}{grouped}"


def counted_units(text: TextEntry, count: int | None) -> str:
    """What intervals are over, with their number: `64 documents`, `9 clusters by title`; without a number, `documents`."""
    unit, by = ("cluster", f" by {text.clustered.field}") if text.clustered else ("document", "")
    number = "" if count is None else f"{count:,} "
    return f"{number}{unit}{'' if count == 1 else 's'}{by}"


def largest_cluster(clustered: ClusteredEntry) -> str:
    """How much of the text the largest cluster has: unequal clusters make intervals less reliable."""
    return f"the largest has {clustered.largest_share:.0%} of the tokens"

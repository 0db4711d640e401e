"""What a sweep found, in sentences made from its table; each says only what the table holds."""

from collections.abc import Sequence

from depthscope.report.measured import Measured, Value, interval, spoken, with_unit
from depthscope.report.palette import place_name
from depthscope.schema.sweep import AGREEMENT, ENTROPY_CHANGE, KL

FEW_DOCUMENTS = 5
"""Up to here the page says how few they are: Student's t with 4 degrees of freedom is 2.8, with 1 it is 12.7."""


def headline(measured: Measured) -> str:
    """The answer in a sentence: the layer whose loss, or move, changes the predictions most."""
    edit = _main_edit(measured)
    if edit is None:
        return "The table holds the unedited model alone: no edit was measured."
    series = measured.series(edit, KL)
    layer = ranked(series)[0]
    what = place_name(edit, layer)
    agreement = measured.series(edit, AGREEMENT).get(layer)
    kept = (
        f", and the most likely token stays the same at {spoken(agreement, AGREEMENT)} of positions"
        if agreement
        else ""
    )
    most = "changes the predictions most:" if len(series) > 1 else "changes the predictions by"
    return f"{what[0].upper()}{what[1:]} {most} KL {spoken(series[layer], KL)}{kept}."


def further(measured: Measured) -> list[str]:
    """The sentences after the headline: the layers in between, and swaps beside drops."""
    return [
        *_entropy(measured),
        *_most_settled(measured),
        *_least(measured),
        *_middle(measured),
        *_swaps_beside_drops(measured),
    ]


def components(measured: Measured) -> list[str]:
    """Where silencing attention, and where silencing the MLP, changes the predictions most."""
    said = []
    for edit, part in (("drop_attn", "attention"), ("drop_mlp", "MLP")):
        series = measured.series(edit, KL)
        if len(series) > 1:
            layer = ranked(series)[0]
            said.append(
                f"Silencing the {part} changes the predictions most in layer {layer}: "
                f"KL {spoken(series[layer], KL)}{_against(series, layer)}."
            )
    return [*said, *_attention_beside_mlp(measured)]


def intervals_note(measured: Measured) -> str | None:
    """What there is to say when intervals are missing or rest on few documents."""
    if measured.documents == 1:
        return "The text is one document, so there are no intervals: they rest on how documents differ."
    if measured.documents <= FEW_DOCUMENTS:
        return (
            f"The intervals rest on {measured.documents} documents only, so they are wide and say little: "
            "a longer text gives better ones."
        )
    return None


def zeros_note(measured: Measured, edits: Sequence[str]) -> str | None:
    """Which points of some edits are missing from a logarithmic axis."""
    zeros = [f"{edit}({i})" for edit in edits for i, value in measured.series(edit, KL).items() if value.mean <= 0]
    return f"KL is exactly 0, so not on the logarithmic axis, for {_listed(zeros)}." if zeros else None


def ranked(series: dict[int, Value]) -> list[int]:
    """Layers from the largest mean to the smallest."""
    return sorted(series, key=lambda layer: -series[layer].mean)


def _main_edit(measured: Measured) -> str | None:
    """The edit the headline is about: the whole layer's loss where it was measured."""
    return next((name for name in ("drop", "swap", "drop_mlp", "drop_attn") if name in measured.edits), None)


def _most_settled(measured: Measured) -> list[str]:
    """What must be added to a headline whose place is not sure."""
    edit = _main_edit(measured)
    series = measured.series(edit, KL) if edit else {}
    rivals = _rivals(series, ranked(series)[0]) if series else []
    if not rivals:
        return []
    contenders = sorted([ranked(series)[0], *rivals])
    return [f"Which place matters most is too close to call between {_layers(contenders)}: their intervals overlap."]


def _rivals(series: dict[int, Value], layer: int) -> list[int]:
    """Other layers whose interval overlaps that of `layer`; none where there are no intervals."""
    own = series[layer]
    return [
        other
        for other, value in series.items()
        if other != layer
        and not (own.low is None or own.high is None or value.low is None or value.high is None)
        and value.low <= own.high
        and own.low <= value.high
    ]


def _against(series: dict[int, Value], layer: int) -> str:
    """`, too close to call against layers 3 and 4`, or nothing where the layer stands apart."""
    rivals = _rivals(series, layer)
    return f", too close to call against {_layers(rivals)}" if rivals else ""


def _entropy(measured: Measured) -> list[str]:
    """Whether the headline's edit leaves the predictions less or more certain, where the interval tells."""
    edit = _main_edit(measured)
    series = measured.series(edit, KL) if edit else {}
    change = measured.series(edit, ENTROPY_CHANGE).get(ranked(series)[0]) if edit and series else None
    if change is None or change.mean == 0 or (change.low is not None and change.low <= 0 <= (change.high or 0)):
        return []
    more, verb = ("less", "rises") if change.mean > 0 else ("more", "falls")
    return [
        f"That leaves the predictions {more} certain: their entropy {verb} by {spoken(_size(change), ENTROPY_CHANGE)}."
    ]


def _size(change: Value) -> Value:
    """A change without its sign, its interval's ends in order."""
    if change.mean >= 0:
        return change
    low, high = (None if end is None else -end for end in (change.high, change.low))
    return Value(-change.mean, low, high)


def _least(measured: Measured) -> list[str]:
    """The layer whose drop costs least, where there are several."""
    series = measured.series("drop", KL)
    if len(series) < 2:
        return []
    layer = ranked(series)[-1]
    return [f"Layer {layer} is missed least: KL {spoken(series[layer], KL)} without it{_against(series, layer)}."]


def _middle(measured: Measured) -> list[str]:
    """The agreement that edits of the layers between first and last keep; a swap counts when both its layers do."""
    last = measured.depth - 1
    said = []
    for edit, verb, end in (
        ("drop", "Dropping any one of", last),
        ("swap", "Swapping any two neighbours of", last - 1),
    ):
        kept = {i: value for i, value in measured.series(edit, AGREEMENT).items() if 0 < i < end}
        if len(kept) < 2:
            continue
        high, *_, low = ranked(kept)
        said.append(
            f"{verb} the middle layers, 1 to {last - 1}, keeps the most likely token at between "
            f"{_with_place(kept[low], edit, low)} and {_with_place(kept[high], edit, high)} of positions."
        )
    return said


def _with_place(value: Value, edit: str, layer: int) -> str:
    where = f"layers {layer} and {layer + 1}" if edit == "swap" else f"layer {layer}"
    bounds = f"; {interval(value, AGREEMENT)}" if value.has_interval else ""
    return f"{with_unit(value, AGREEMENT)} ({where}{bounds})"


def _swaps_beside_drops(measured: Measured) -> list[str]:
    """At which layers the swap with the next layer costs less KL than the drop."""
    drop, swap, open_ = compared(measured.series("drop", KL), measured.series("swap", KL))
    if len(drop) + len(swap) + len(open_) < 2:
        return []
    parts = [
        f"swapping a layer with the next costs less KL than dropping it at {_layers(drop)}" if drop else "",
        f"dropping a layer costs less KL than swapping it with the next at {_layers(swap)}" if swap else "",
        _too_close(open_, "whether swapping a layer with the next costs less KL than dropping it is ", drop + swap),
    ]
    return [_sentence(parts)]


def _attention_beside_mlp(measured: Measured) -> list[str]:
    """In which layers the MLP's silence costs more KL than the attention's, and where less."""
    mlp, attention, open_ = compared(measured.series("drop_mlp", KL), measured.series("drop_attn", KL))
    parts = [
        f"silencing the MLP costs more KL than silencing the attention in {_layers(mlp)}" if mlp else "",
        f"silencing the attention costs more in {_layers(attention)}" if attention else "",
        _too_close(open_, "which costs more KL, silencing the MLP or the attention, is ", mlp + attention),
    ]
    return [_sentence(parts)] if mlp or attention or open_ else []


def compared(first: dict[int, Value], second: dict[int, Value]) -> tuple[list[int], list[int], list[int]]:
    """Layers that both have, where the first is larger, where the second is, and where that is open.

    Open are those whose intervals overlap, which asks for more than a test of the difference would: what is said of the
    others is on the safe side. Without intervals the means decide.
    """
    larger: list[int] = []
    smaller: list[int] = []
    unsettled: list[int] = []
    for layer in sorted(first.keys() & second.keys()):
        a, b = first[layer], second[layer]
        a_low, a_high = (a.mean, a.mean) if a.low is None or a.high is None else (a.low, a.high)
        b_low, b_high = (b.mean, b.mean) if b.low is None or b.high is None else (b.low, b.high)
        (larger if a_low > b_high else smaller if b_low > a_high else unsettled).append(layer)
    return larger, smaller, unsettled


def _too_close(layers: list[int], question: str, settled: list[int]) -> str:
    """Where a comparison is open; the question is asked only where nothing before it was settled."""
    return f"{'' if settled else question}too close to call at {_layers(layers)}" if layers else ""


def _sentence(parts: list[str]) -> str:
    text = "; ".join(part for part in parts if part)
    return f"{text[0].upper()}{text[1:]}."


def _layers(layers: list[int]) -> str:
    return f"layer{'s' if len(layers) > 1 else ''} {ranges(layers)}"


def ranges(layers: list[int]) -> str:
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
    return _joined(parts)


def _listed(things: Sequence[object], most: int = 6) -> str:
    """`a, b and c`; beyond `most` only how many more."""
    names = [str(thing) for thing in things]
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return _joined(names)


def _joined(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)

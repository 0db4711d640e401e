"""What a sweep found, in sentences made from its table; each says only what the table holds."""

from collections.abc import Sequence

from depthscope.report.measured import Measured, Value, interval, ranked, spoken, with_unit
from depthscope.report.palette import place_name
from depthscope.report.wording import compared, layer_list, listed, sentence
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


COMPONENT_EDITS = {
    "drop_attn": "attention",
    "drop_ssm": "state-space mixer",
    "drop_mlp": "MLP",
    "drop_ple": "per-layer input",
}


def components(measured: Measured) -> list[str]:
    """Where silencing each component changes the predictions most."""
    said = []
    for edit, part in COMPONENT_EDITS.items():
        series = measured.series(edit, KL)
        if len(series) > 1:
            layer = ranked(series)[0]
            said.append(
                f"Silencing the {part} changes the predictions most in layer {layer}: "
                f"KL {spoken(series[layer], KL)}{_against(series, layer)}."
            )
    return [*said, *_attention_beside_mlp(measured)]


def intervals_note(documents: int) -> str | None:
    """What there is to say when intervals are missing or rest on few documents."""
    if documents == 1:
        return "The text is one document, so there are no intervals: they rest on how documents differ."
    if documents <= FEW_DOCUMENTS:
        return (
            f"The intervals rest on {documents} documents only, so they are wide and say little: "
            "a longer text gives better ones."
        )
    return None


def zeros_note(measured: Measured, edits: Sequence[str]) -> str | None:
    """Which points of some edits are missing from a logarithmic axis."""
    zeros = [f"{edit}({i})" for edit in edits for i, value in measured.series(edit, KL).items() if value.mean <= 0]
    return f"KL is exactly 0, so not on the logarithmic axis, for {listed(zeros)}." if zeros else None


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
    return [f"Which place matters most is too close to call between {layer_list(contenders)}: their intervals overlap."]


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
    return f", too close to call against {layer_list(rivals)}" if rivals else ""


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
        f"swapping a layer with the next costs less KL than dropping it at {layer_list(drop)}" if drop else "",
        f"dropping a layer costs less KL than swapping it with the next at {layer_list(swap)}" if swap else "",
        _too_close(open_, "whether swapping a layer with the next costs less KL than dropping it is ", drop + swap),
    ]
    return [sentence(parts)]


def _attention_beside_mlp(measured: Measured) -> list[str]:
    """In which layers the MLP's silence costs more KL than the attention's, and where less."""
    mlp, attention, open_ = compared(measured.series("drop_mlp", KL), measured.series("drop_attn", KL))
    parts = [
        f"silencing the MLP costs more KL than silencing the attention in {layer_list(mlp)}" if mlp else "",
        f"silencing the attention costs more in {layer_list(attention)}" if attention else "",
        _too_close(open_, "which costs more KL, silencing the MLP or the attention, is ", mlp + attention),
    ]
    return [sentence(parts)] if mlp or attention or open_ else []


def _too_close(layers: list[int], question: str, settled: list[int]) -> str:
    """Where a comparison is open; the question is asked only where nothing before it was settled."""
    return f"{'' if settled else question}too close to call at {layer_list(layers)}" if layers else ""

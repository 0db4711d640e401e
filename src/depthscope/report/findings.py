"""Sentences about a sweep's results, generated from its table; each states only what the table holds."""

from collections.abc import Sequence

from depthscope.edit_registry import LayerSweep, sweeps, title_of
from depthscope.report.measured import SweepValues, Value, interval, ranked, spoken, with_unit
from depthscope.report.wording import compared, counted_units, layer_list, listed, sentence
from depthscope.routes import COMPONENT_NAMES
from depthscope.schema.manifest import TextEntry
from depthscope.schema.sweep import AGREEMENT, ENTROPY_CHANGE, KL

FEW_DOCUMENTS = 5
"""Up to this number the page warns about few documents: Student's t with 4 degrees of freedom is 2.8, with 1 it is 12.7."""


def headline(measured: SweepValues) -> str:
    """The main result in one sentence: the layer whose removal or move changes the predictions most."""
    edit = _main_edit(measured)
    if edit is None:
        return "The table holds only the unmodified model: no edit was measured."
    series = measured.series(edit, KL)
    layer = ranked(series)[0]
    what = _place_name(edit, layer)
    agreement = measured.series(edit, AGREEMENT).get(layer)
    kept = (
        f", and the most likely token stays the same at {spoken(agreement, AGREEMENT)} of positions"
        if agreement
        else ""
    )
    most = "changes the predictions most:" if len(series) > 1 else "changes the predictions by"
    return f"{what[0].upper()}{what[1:]} {most} KL {spoken(series[layer], KL)}{kept}."


def further(measured: SweepValues) -> list[str]:
    """The sentences after the headline: the middle layers, and swaps compared with drops."""
    return [
        *_entropy(measured),
        *_most_settled(measured),
        *_least(measured),
        *_middle(measured),
        *_swaps_against_drops(measured),
    ]


def components(measured: SweepValues) -> list[str]:
    """Where ablating each component changes the predictions most."""
    said = []
    for edit in measured.edits:
        how, series = sweeps().get(edit), measured.series(edit, KL)
        if how is not None and how.component is not None and len(series) > 1:
            layer = ranked(series)[0]
            said.append(
                f"Ablating the {COMPONENT_NAMES[how.component]} changes the predictions most in "
                f"{layer_list(how.blocks(layer))}: "
                f"KL {spoken(series[layer], KL)}{_against(series, layer)}."
            )
    return [*said, *_attention_against_mlp(measured)]


def intervals_note(documents: int, text: TextEntry) -> str | None:
    """A caution when intervals are missing or rest on few documents (packs, clusters); None otherwise."""
    if documents == 1:
        return (
            f"The text is a single {'cluster' if text.clustered else 'document'}, so there are no intervals: they are computed "
            f"from variation between {counted_units(text, None)}."
        )
    if documents <= FEW_DOCUMENTS:
        return (
            f"The intervals rest on only {counted_units(text, documents)}, so they are wide and uninformative: "
            "use a longer text for narrower ones."
        )
    return None


def zeros_note(measured: SweepValues, edits: Sequence[str]) -> str | None:
    """Which points of the given edits cannot be shown on a logarithmic axis."""
    zeros = [f"{edit}({i})" for edit in edits for i, value in measured.series(edit, KL).items() if value.mean <= 0]
    return f"KL is exactly 0, so not shown on the logarithmic axis, for {listed(zeros)}." if zeros else None


def _main_edit(measured: SweepValues) -> str | None:
    """The edit the headline reports: dropping the whole layer, if it was measured."""
    first = ("drop", "swap", "drop_mlp", "drop_attn", *measured.edits)
    return next((name for name in first if name in measured.edits), None)


def _place_name(edit: str, layer: int) -> str:
    """An edit at a layer as part of a sentence: `swapping layers 3 and 4`."""
    how = sweeps().get(edit, LayerSweep())
    where = layer_list(how.blocks(layer))
    if how.component is not None:
        return f"ablating the {COMPONENT_NAMES[how.component]} of {where}"
    return f"{how.verb} {where}" if how.verb else f"{title_of(edit)} at {where}"


def _most_settled(measured: SweepValues) -> list[str]:
    """A caution for a headline whose layer is uncertain: which layers it is too close to call between."""
    edit = _main_edit(measured)
    series = measured.series(edit, KL) if edit else {}
    rivals = _rivals(series, ranked(series)[0]) if series else []
    if not rivals:
        return []
    contenders = sorted([ranked(series)[0], *rivals])
    return [f"Which layer matters most is too close to call between {layer_list(contenders)}: their intervals overlap."]


def _rivals(series: dict[int, Value], layer: int) -> list[int]:
    """Other layers whose interval overlaps that of `layer`; empty without intervals."""
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
    """`, too close to call against layers 3 and 4`; empty if no other layer's interval overlaps."""
    rivals = _rivals(series, layer)
    return f", too close to call against {layer_list(rivals)}" if rivals else ""


def _entropy(measured: SweepValues) -> list[str]:
    """Whether the headline's edit makes the predictions less or more certain; empty if the interval includes 0."""
    edit = _main_edit(measured)
    series = measured.series(edit, KL) if edit else {}
    change = measured.series(edit, ENTROPY_CHANGE).get(ranked(series)[0]) if edit and series else None
    if change is None or change.mean == 0 or (change.low is not None and change.low <= 0 <= (change.high or 0)):
        return []
    more, verb = ("less", "rises") if change.mean > 0 else ("more", "falls")
    return [
        f"This makes the predictions {more} certain: their entropy {verb} by {spoken(_size(change), ENTROPY_CHANGE)}."
    ]


def _size(change: Value) -> Value:
    """The magnitude of a change, with its interval's bounds in order."""
    if change.mean >= 0:
        return change
    low, high = (None if end is None else -end for end in (change.high, change.low))
    return Value(-change.mean, low, high)


def _least(measured: SweepValues) -> list[str]:
    """The layer whose drop costs least, if several were dropped."""
    series = measured.series("drop", KL)
    if len(series) < 2:
        return []
    layer = ranked(series)[-1]
    return [f"Dropping layer {layer} costs least: KL {spoken(series[layer], KL)}{_against(series, layer)}."]


def _middle(measured: SweepValues) -> list[str]:
    """The agreement kept by edits of the middle layers; a swap counts if both its layers are middle layers."""
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
    where = layer_list(sweeps()[edit].blocks(layer))
    bounds = f"; {interval(value, AGREEMENT)}" if value.has_interval else ""
    return f"{with_unit(value, AGREEMENT)} ({where}{bounds})"


def _swaps_against_drops(measured: SweepValues) -> list[str]:
    """The layers at which swapping with the next layer costs less KL than dropping."""
    drop, swap, open_ = compared(measured.series("drop", KL), measured.series("swap", KL))
    if len(drop) + len(swap) + len(open_) < 2:
        return []
    parts = [
        f"swapping a layer with the next costs less KL than dropping it at {layer_list(drop)}" if drop else "",
        f"dropping a layer costs less KL than swapping it with the next at {layer_list(swap)}" if swap else "",
        _too_close(open_, "whether swapping a layer with the next costs less KL than dropping it is ", drop + swap),
    ]
    return [sentence(parts)]


def _attention_against_mlp(measured: SweepValues) -> list[str]:
    """In which layers ablating the MLP costs more KL than ablating the attention, and in which less."""
    mlp, attention, open_ = compared(measured.series("drop_mlp", KL), measured.series("drop_attn", KL))
    parts = [
        f"ablating the MLP costs more KL than ablating the attention in {layer_list(mlp)}" if mlp else "",
        f"ablating the attention costs more in {layer_list(attention)}" if attention else "",
        _too_close(open_, "which costs more KL, ablating the MLP or the attention, is ", mlp + attention),
    ]
    return [sentence(parts)] if mlp or attention or open_ else []


def _too_close(layers: list[int], question: str, settled: list[int]) -> str:
    """The layers where a comparison is too close to call; `question` is included only if no layer was settled."""
    return f"{'' if settled else question}too close to call at {layer_list(layers)}" if layers else ""

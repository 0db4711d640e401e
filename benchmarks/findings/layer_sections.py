"""The page's sections on single layers that are costly to drop, from the JSON of `costly_layers`."""

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.findings.costly_layers import CHANGES
from benchmarks.findings.evidence import Curve
from benchmarks.findings.markdown import shown_value, table
from benchmarks.findings.models import MODELS
from benchmarks.findings.pictures import layer_picture
from depthscope.report.measured import NBSP, Value
from depthscope.report.wording import joined

PICTURED = {"smollm2-135m": (11,)}
"""Layers with a picture, by model."""
Measured = dict[str, Any]


def layer_sections(layers: Mapping[str, Measured], drops: Mapping[str, Curve]) -> list[str]:
    """The sections of the models that have one, in the order of the models. `drops`: KL of dropped layers by model."""
    return [
        part
        for name, own in layers.items()
        for part in SECTIONS[name](own, str(MODELS[name]["title"]), drops.get(name))
    ]


def changes_table(measured: Measured) -> str:
    """What each change costs, a row per change and columns of KL and agreement per layer."""
    numbers = list(measured["layers"])
    head = ["taken away", *(f"layer {n}: {what}" for n in numbers for what in ("KL, nats", "predictions kept"))]
    rows = []
    for change, words in CHANGES.items():
        cells = [
            shown_value(estimate(measured["layers"][n]["changes"][change][metric]), unit)
            for n in numbers
            for metric, unit in (("kl", "nats"), ("agreement", "share"))
        ]
        rows.append((words, *cells))
    return table(head, rows, right=tuple(range(1, len(head))))


def estimate(numbers: list[float | None]) -> Value:
    """A stored estimate [mean, low, high]."""
    mean, low, high = numbers
    assert mean is not None
    return Value(mean, low, high)


def how(measured: Measured) -> str:
    """What was measured, in words."""
    bos = "with the BOS token first" if measured["bos"] == "window" else "without a BOS token"
    return (
        f"{measured['dtype']}, {measured['tokens']:,} tokens of {measured['documents']} documents, windows of "
        f"{measured['window']} {bos}, {measured['date']}; `benchmarks/findings/costly_layers.py`"
    )


def mean_attention(own: Measured, change: str, start: int) -> str:
    """Attention on the first token after a change, mean over the blocks from `start` on, in per cent."""
    values = [mean for mean, _, _ in own["attention_on_first"][change][start:] if mean is not None]
    return f"{100 * sum(values) / len(values):.0f}{NBSP}%"


def smollm2(measured: Measured, title: str, drops: Curve | None) -> list[str]:
    """Layer 11 of SmolLM2: a massive activation at the first token."""
    own, stream = measured["layers"]["11"], measured["stream"]
    changes, at = own["changes"], own["coordinate"]
    kl = {change: shown_value(estimate(one["kl"]), "nats") for change, one in changes.items()}
    wrote = [mean for mean, _, _ in stream["written"]["mlp"][str(at)]]
    low, high = stream["first_range"][12]
    positions = changes["drop"]["kl_by_position"]
    lost = ", ".join(f"{value[0]:.1f} at {where}" for where, value in _positions(positions))
    return [
        f'<a id="costly-layer"></a>\n\n## Why is {title}’s layer 11 so costly to drop?',
        f"Exploratory ({how(measured)}). **Because of one number.** Dropping layer 11 costs {kl['drop']} nats"
        f"{_neighbours(drops)}. Its attention is not the reason ({kl['drop_attn']} without it), its MLP is "
        f"({kl['drop_mlp']}), and of the MLP nearly only what it writes at the first token of a window: without the layer "
        f"there, and with it everywhere else, the cost is {kl['drop_first']}; the other way round {kl['drop_rest']}.",
        f"![The largest coordinate of the residual stream by depth, what taking away parts of layer 11 costs, and attention "
        f"on the first token](../images/{layer_picture('smollm2-135m', 11)})",
        f"- **What it writes.** Coordinate {at} of the first token’s residual stream rises by {wrote[11]:,.0f} (after the "
        f"layer it is {low:,.0f} to {high:,.0f} in all windows), where the largest coordinate of "
        f"other tokens is {stream['rest'][12]:.0f} in the median: a massive activation (Sun et al. 2024). It stays there "
        f"until layers 28 and 29 write {_signed(wrote[28])} and {_signed(wrote[29])}. Neuron {own['neuron']} alone "
        f"contributes {100 * own['neuron_share']:.0f} % of it.\n"
        f"- **One number is enough.** Drop the whole layer everywhere, but add this one coordinate at the first token: the "
        f"cost falls from {kl['drop']} to {kl['only_coordinate']} nats.\n"
        f"- **What it is for.** In layers 12–29 {mean_attention(own, 'none', 12)} of attention is on the first token (mean "
        f"over layers, heads and queries). Without layer 11 it is {mean_attention(own, 'drop', 12)}, with the one number "
        f"{mean_attention(own, 'only_coordinate', 12)}: later heads use the first token as a sink, and most of what "
        f"makes it one is this number. Tokens with little context lose most: KL {lost}.\n"
        f"- **What the number is not.** Deleting only the coordinate, and keeping the rest of what the MLP writes there, "
        f"costs {kl['without_coordinate']} nats, far more than dropping the layer: what is left is normed without it. "
        f"Deleting neuron {own['neuron']} there costs {kl['without_neuron']}: enough of the number is left.\n"
        f"- **An earlier one.** Layers 1–2 write {_signed(wrote[1] + wrote[2])} into the same coordinate, layers 8–10 remove "
        f"it ({_signed(sum(wrote[8:11]))}), and by layer 11 attention on the first token is "
        f"{100 * own['attention_on_first']['none'][11][0]:.0f} %.",
        changes_table(measured),
    ]


def gemma(measured: Measured, title: str, _drops: Curve | None) -> list[str]:
    """Gemma's costly early layers: not one number, and not only the first token."""
    numbers = list(measured["layers"])
    kl = {
        n: {change: one["kl"][0] for change, one in measured["layers"][n]["changes"].items()}
        for n in measured["layers"]
    }

    def costs(change: str) -> str:
        return joined([f"{kl[n][change]:.2g}" for n in numbers])

    first = [mean for mean, _, _ in measured["stream"]["first"]]
    return [
        f"## {title}’s layers {joined(numbers)}",
        f"A brief, exploratory look ({how(measured)}). Dropping layers {joined(numbers)} costs {costs('drop')} nats, and "
        f"it is not one number at the first token: without the layer at the first token only, the cost is "
        f"{costs('drop_first')}; at all other tokens only, {costs('drop_rest')}. Without the MLP alone it is "
        f"{costs('drop_mlp')}, without the attention alone {costs('drop_attn')}: a different part in each, and in layer 5 "
        f"far less than both together. The first token has a massive activation here too (its largest coordinate is "
        f"{first[3]:,.0f} at x_3 and {max(first):,.0f} at most), but many layers add to it, so no single write matters: "
        f"without the largest coordinate that the layer’s MLP writes there, the cost is {costs('without_coordinate')}. Layer "
        "5 is the model’s first with global attention; the others see 512 tokens, more than these windows hold. Why these "
        "layers cost so much is open.",
        changes_table(measured),
    ]


SECTIONS: dict[str, Callable[[Measured, str, Curve | None], list[str]]] = {
    "smollm2-135m": smollm2,
    "gemma-3-270m": gemma,
}
"""By model."""


def _neighbours(drops: Curve | None) -> str:
    """What dropping the neighbouring layers costs, where the model has a reference run."""
    if drops is None:
        return ""
    return f"; its neighbours cost {drops.values[10].mean:.2f} and {drops.values[12].mean:.2f}"


def _positions(found: Mapping[str, list[float]]) -> list[tuple[str, list[float]]]:
    named = [(where.replace("-", "–"), value) for where, value in found.items()]
    return [("position 0" if where == "0–0" else f"positions {where}", value) for where, value in named]


def _signed(number: float) -> str:
    return f"{number:+,.0f}".replace("-", "−")

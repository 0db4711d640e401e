"""How each quantity is drawn: one colour and one marker per quantity, everywhere on the page, light and dark.

The colours are Okabe and Ito's (2008), which readers with any common colour vision tell apart; markers and dashes say the
same once more, for print in grey. What is about attention is green, what is about the MLP purple. On a dark page swap takes
the palette's sky blue, because its blue would sink there, and suppression its yellow.
"""

from dataclasses import dataclass, replace

from depthscope.schema import neurons, probes
from depthscope.schema import sweep as schema
from depthscope.schema.attention import FIRST, ITSELF, PREVIOUS


@dataclass(frozen=True, slots=True)
class Look:
    """How a quantity is drawn: colours (light, dark background), plotly marker, the marker as a character, dash."""

    name: str
    """As in the tables, and the name of its colour in the page's style sheet."""
    title: str
    definition: str
    light: str
    dark: str
    marker: str
    glyph: str
    dash: str = "solid"


GREEN, PURPLE, ORANGE = "#009E73", "#CC79A7", "#E69F00"
INK, SOFT = ("#1C2024", "#E5E6E3"), ("#586069", "#9BA3AB")


def _edit(kind: schema.EditKind, light: str, dark: str, marker: str, glyph: str) -> Look:
    return Look(kind.name, kind.title, kind.definition, light, dark, marker, glyph)


SWAP = _edit(schema.SWAP, "#0072B2", "#56B4E9", "circle", "●")
DROP = _edit(schema.DROP, "#D55E00", "#D55E00", "square", "■")
DROP_ATTN = _edit(schema.DROP_ATTN, GREEN, GREEN, "triangle-up", "▲")
DROP_MLP = _edit(schema.DROP_MLP, PURPLE, PURPLE, "diamond", "◆")
DROP_SSM = _edit(schema.DROP_SSM, ORANGE, ORANGE, "triangle-down", "▼")
DROP_PLE = _edit(schema.DROP_PLE, "#56B4E9", "#56B4E9", "cross", "✚")
SHOWN = {edit.name: edit for edit in (SWAP, DROP, DROP_ATTN, DROP_SSM, DROP_MLP, DROP_PLE)}
"""The edits of the sweep."""

OWN = Look("own", "The model", "the model as it is", *INK, "circle", "●")
REFERENCE = Look("reference", "Reference", "what the others are compared with", *SOFT, "square-open", "□", "dash")
CONTROL = Look("control", "Control", "what would be there anyway", *SOFT, "diamond-open", "◇", "dot")
ATTENTION = Look(
    "attention", "Attention", "what attention adds to the residual stream", GREEN, GREEN, "triangle-up", "▲"
)
MLP = Look("mlp", "MLP", "what the MLP adds to the residual stream", PURPLE, PURPLE, "diamond", "◆")


def _kind(kind: neurons.NeuronKind, light: str, dark: str, marker: str, glyph: str, dash: str = "solid") -> Look:
    return Look(kind.name, f"{kind.title} neurons", kind.definition, light, dark, marker, glyph, dash)


NEURONS = {
    look.name: look
    for look in (
        _kind(neurons.PREDICTION, ORANGE, ORANGE, "triangle-right", "▶"),
        _kind(neurons.SUPPRESSION, "#56B4E9", "#F0E442", "triangle-left", "◀", "dash"),
        _kind(neurons.PARTITION, *INK, "circle", "●", "dot"),
        _kind(neurons.ENTROPY, *SOFT, "square", "■", "dashdot"),
    )
}
"""The kinds of neurons that are drawn by layer."""

CHOSEN = {
    probes.PREDICTION: NEURONS["prediction"],
    probes.SUPPRESSION: NEURONS["suppression"],
    probes.BOTH: replace(OWN, name=probes.BOTH, title="Both", definition=probes.GROUPS[probes.BOTH]),
}
"""The groups of neurons that probes use."""

_SHADES = (
    ("#8FD6BF", "#00745A", "circle", "●", "solid"),
    ("#55BD9B", "#008667", "square", "■", "dot"),
    ("#22AA82", "#009570", "triangle-up", "▲", "dash"),
    (GREEN, GREEN, "diamond", "◆", "solid"),
    ("#00735A", "#62C9A9", "triangle-down", "▼", "dashdot"),
    ("#004D3B", "#B5E9D8", "star", "★", "longdash"),
)
REACHES = {
    reach: Look(metric.name, metric.title, metric.definition, *shade)
    for (reach, metric), shade in zip(PREVIOUS.items(), _SHADES, strict=True)
}
"""Attention to the previous k tokens, from light to dark."""
ON_FIRST = Look(FIRST.name, FIRST.title, FIRST.definition, GREEN, GREEN, "square", "■")
ON_ITSELF = Look("itself", ITSELF.title, ITSELF.definition, *INK, "circle", "●", "dash")

LOOKS = {
    look.name: look
    for look in (
        *SHOWN.values(),
        OWN,
        REFERENCE,
        CONTROL,
        ATTENTION,
        MLP,
        *NEURONS.values(),
        CHOSEN[probes.BOTH],
        *REACHES.values(),
        ON_FIRST,
        ON_ITSELF,
    )
}
"""All looks by name: the page's colours."""

_COLOURS = (
    ("#0072B2", "#56B4E9"),
    ("#D55E00", "#D55E00"),
    (GREEN, GREEN),
    (PURPLE, PURPLE),
    (ORANGE, ORANGE),
    ("#56B4E9", "#F0E442"),
    INK,
)
_MARKERS = ("circle ●", "square ■", "triangle-up ▲", "diamond ◆", "triangle-down ▼", "star ★", "pentagon ⬟")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
MOST_RUNS = 2 * len(_COLOURS)
"""Runs that can be told apart in one figure."""


def run_look(place: int, title: str) -> Look:
    """How a run is drawn among others: a colour, a marker and a dash; in the second round of colours other markers."""
    light, dark = _COLOURS[place % len(_COLOURS)]
    marker, glyph = _MARKERS[(place + place // len(_COLOURS)) % len(_MARKERS)].split()
    return Look(f"run-{place}", title, "", light, dark, marker, glyph, _DASHES[place % len(_DASHES)])


FONT = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif"


def place_name(edit: str, layer: int) -> str:
    """An edit at a layer in words, as in a sentence: `swapping layers 3 and 4`."""
    return {
        "swap": f"swapping layers {layer} and {layer + 1}",
        "drop": f"dropping layer {layer}",
        "drop_attn": f"silencing the attention of layer {layer}",
        "drop_ssm": f"silencing the state-space mixer of layer {layer}",
        "drop_mlp": f"silencing the MLP of layer {layer}",
        "drop_ple": f"silencing the per-layer input of layer {layer}",
    }[edit]

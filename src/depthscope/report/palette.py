"""How each edit is shown: one colour and one marker per edit, everywhere, light and dark.

The colours are Okabe and Ito's (2008), which readers with any common colour vision tell apart; the markers say the same
once more, for print in grey. On a dark page swap takes the palette's sky blue, because its blue would sink there.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ShownEdit:
    """An edit's name in the tables, its words, colours (light, dark background) and plotly marker."""

    name: str
    title: str
    definition: str
    light: str
    dark: str
    marker: str
    glyph: str
    """The marker as a character, for keys and table heads."""


SWAP = ShownEdit(
    "swap",
    "Swap",
    "a layer and the next take each other’s places; shown at the first of the two",
    "#0072B2",
    "#56B4E9",
    "circle",
    "●",
)
DROP = ShownEdit(
    "drop",
    "Drop",
    "a layer is skipped whole: the residual stream passes unchanged",
    "#D55E00",
    "#D55E00",
    "square",
    "■",
)
DROP_ATTN = ShownEdit(
    "drop_attn",
    "Drop attention",
    "a layer runs without its attention output, bias included",
    "#009E73",
    "#009E73",
    "triangle-up",
    "▲",
)
DROP_MLP = ShownEdit(
    "drop_mlp",
    "Drop MLP",
    "a layer runs without its MLP output, bias included",
    "#CC79A7",
    "#CC79A7",
    "diamond",
    "◆",
)
SHOWN = {edit.name: edit for edit in (SWAP, DROP, DROP_ATTN, DROP_MLP)}

FONT = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif"


def place_name(edit: str, layer: int) -> str:
    """An edit at a layer in words, as in a sentence: `swapping layers 3 and 4`."""
    return {
        "swap": f"swapping layers {layer} and {layer + 1}",
        "drop": f"dropping layer {layer}",
        "drop_attn": f"silencing the attention of layer {layer}",
        "drop_mlp": f"silencing the MLP of layer {layer}",
    }[edit]

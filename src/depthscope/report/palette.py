"""How each edit is shown: one colour and one marker per edit, everywhere, light and dark.

The colours are Okabe and Ito's (2008), which readers with any common colour vision tell apart; the markers say the same
once more, for print in grey. On a dark page swap takes the palette's sky blue, because its blue would sink there.
"""

from dataclasses import dataclass

from depthscope.schema import sweep as schema


@dataclass(frozen=True, slots=True)
class ShownEdit:
    """How an edit is drawn: colours (light, dark background), plotly marker and the marker as a character."""

    kind: schema.EditKind
    light: str
    dark: str
    marker: str
    glyph: str

    @property
    def name(self) -> str:
        """As in the column `edit`."""
        return self.kind.name

    @property
    def title(self) -> str:
        """In words."""
        return self.kind.title

    @property
    def definition(self) -> str:
        """What the edit does."""
        return self.kind.definition


SWAP = ShownEdit(schema.SWAP, "#0072B2", "#56B4E9", "circle", "●")
DROP = ShownEdit(schema.DROP, "#D55E00", "#D55E00", "square", "■")
DROP_ATTN = ShownEdit(schema.DROP_ATTN, "#009E73", "#009E73", "triangle-up", "▲")
DROP_MLP = ShownEdit(schema.DROP_MLP, "#CC79A7", "#CC79A7", "diamond", "◆")
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

"""A lens on a prompt as a table: a row per token, a column per depth, the most likely next token in each cell."""

import math
from collections.abc import Sequence

import polars as pl

from depthscope.explore import markup

PROBABILITY, ENTROPY, KL = "probability", "entropy", "KL to the last layer"
COLOURS = (PROBABILITY, ENTROPY, KL)
FULL_KL = 10.0
"""KL in nats at which a cell has full colour."""


def lens_table(lens: pl.DataFrame, vocabulary: int, colour: str, title: str = "") -> str:
    """PROMPT_LENS as HTML. `colour` is one of COLOURS; `vocabulary` is the number of tokens, which sets the maximum entropy.

    `title` begins the caption.
    """
    if colour not in COLOURS:
        colour = PROBABILITY
    rows = []
    for (position,), of_token in lens.group_by("position", maintain_order=True):
        row = [f"<th scope='row'><small>{position}</small> {markup.token(of_token['token'][0])}</th>"]
        row += [
            _cell(cells.rows(named=True), vocabulary, colour)
            for _, cells in of_token.group_by("layer", maintain_order=True)
        ]
        rows.append(row)
    depths = [str(layer) for layer in lens["layer"].unique().sort().to_list()]
    most = math.log(vocabulary)
    scale = {
        PROBABILITY: "bluer: more likely",
        ENTROPY: f"bluer: higher entropy, full colour at {most:.2f} nats, the uniform distribution",
        KL: f"bluer: further from the model's final prediction, full colour at {FULL_KL:g} nats",
    }[colour]
    begin = f"{title}: the" if title else "The"
    caption = (
        f"{begin} most likely next token at each depth ({scale}). Column l is before block l; {depths[-1]} is after the last. "
        "Hover over a cell for its five most likely tokens."
    )
    return markup.table(["token", *depths], rows, caption, "lens")


def _cell(best: Sequence[dict], vocabulary: int, colour: str) -> str:
    first = best[0]
    strength = {
        PROBABILITY: first["probability"],
        ENTROPY: first["entropy"] / math.log(vocabulary),
        KL: first["kl"] / FULL_KL,
    }[colour]
    lines = [f"{one['predicted']}  {one['probability']:.1%}" for one in best]
    lines.append(f"entropy {first['entropy']:.2f}, KL {first['kl']:.3g} nats")
    title = markup.escaped("\n".join(lines)).replace("\n", "&#10;")
    return f"<td class='cell' style='{markup.shade(strength)}' title='{title}'>{markup.token(first['predicted'])}</td>"

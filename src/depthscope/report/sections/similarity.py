"""Whether a moved layer does what it did in place (the paper's figures 11 and 12)."""

from dataclasses import replace

from depthscope.report.charts import Curve, XAxis, lines, on_one_scale
from depthscope.report.measured import Series, read_table, series, spoken
from depthscope.report.palette import ATTENTION, CONTROL, MLP, REFERENCE, Look
from depthscope.report.panels import Panel
from depthscope.report.section import Kind, Section
from depthscope.report.wording import compared, layer_list, sentence
from depthscope.run.store import RunDirectory
from depthscope.schema.similarity import ADJACENT, EARLIER, INDEX, LATER, SELF, SIMILARITY_TABLE, SWAP_METRICS

NAME = "similarity"
COMPONENTS = {"attention": ATTENTION, "mlp": MLP}
INDEX_LOOK = replace(REFERENCE, title=INDEX.title, definition=INDEX.definition)
ADJACENT_LOOK = replace(CONTROL, title=ADJACENT.title, definition=ADJACENT.definition)
MOVES = {LATER: "its block runs one later", EARLIER: "its block runs one earlier"}


def build(run: RunDirectory) -> Section:
    """Self, index and adjacent similarity by swap, a panel for each component and direction of the move."""
    table = read_table(run, NAME, SIMILARITY_TABLE)
    last = max(table["layer"].to_list()) + 1
    panels, sentences = [], []
    for moved, how in MOVES.items():
        for component, look in COMPONENTS.items():
            values = {m.name: series(table, m, component=component, moved=moved) for m in SWAP_METRICS}
            if values[SELF.name]:
                panels.append(_panel(f"{NAME}-{component}-{moved}", f"{look.title}; {how}", look, values, last))
                sentences.append(_sentence(f"{look.title}, {how}", values[SELF.name], values[INDEX.name]))
    looks = [_self(look) for component, look in COMPONENTS.items() if component in set(table["component"])]
    return Section(
        panels=on_one_scale(panels),
        legend=[*looks, INDEX_LOOK, ADJACENT_LOOK],
        sentences=sentences,
        definitions=SWAP_METRICS,
        notes=["Shown at the first of the two swapped layers."],
        across=2,
    )


def _self(look: Look) -> Look:
    return replace(
        look, title=f"{SELF.title}, {look.title if look is MLP else look.title.lower()}", definition=SELF.definition
    )


def _panel(name: str, title: str, look: Look, values: dict[str, Series], last: int) -> Panel:
    curves = [
        Curve(look=as_, values=values[metric.name], call=f"swap({{}}), {metric.name}")
        for as_, metric in ((_self(look), SELF), (INDEX_LOOK, INDEX), (ADJACENT_LOOK, ADJACENT))
    ]
    return lines(name, title, SELF, curves, XAxis(title="layer", last=last))


def _sentence(what: str, own: Series, displaced: Series) -> str:
    """Where a moved layer stays more similar to itself in place than to the layer it displaces."""
    more, less, open_ = compared(own, displaced)
    lowest = min(own, key=lambda layer: own[layer].mean)
    said = [
        f"{what}: more similar to itself in place than to the layer it displaces in swaps at {layer_list(more)}"
        if more
        else "",
        f"{'' if more else what + ': '}more similar to the layer it displaces at {layer_list(less)}" if less else "",
        f"{'' if more or less else what + ': '}too close to call at {layer_list(open_)}" if open_ else "",
        f"least similar to itself at layer {lowest}, cosine {spoken(own[lowest], SELF)}",
    ]
    return sentence(said)


KIND = Kind(
    name=NAME,
    title="Does a moved layer do what it did in place?",
    source="Lad et al. 2024, figures 11 and 12",
    experiment=NAME,
    file=f"tables/{NAME}.parquet",
    build=build,
    look_for="self near 1, where a layer writes the same output wherever it is placed, and self above index: the layer keeps "
    "its own function rather than taking on that of its position.",
)

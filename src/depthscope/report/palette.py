"""How each quantity is drawn: one colour and one marker per quantity, everywhere on the page, light and dark.

The colours are Okabe and Ito's (2008), which readers with any common colour vision can distinguish; markers and dashes encode
the same, for greyscale print. Attention is green, the MLP purple. On a dark page swap uses the palette's sky blue, because
its blue has too little contrast there, and suppression its yellow.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from depthscope.edit_registry import EDITS, is_edit_name, sweeps, title_of
from depthscope.routes import COMPONENTS
from depthscope.schema import (
    dependency,
    dimension,
    guess_refine,
    lens,
    linearity,
    massive,
    neurons,
    painters,
    probes,
    prune,
)
from depthscope.schema.attention import FIRST, ITSELF, PREVIOUS
from depthscope.schema.lens import LENSES
from depthscope.schema.token_classes import Classing


@dataclass(frozen=True, slots=True)
class Look:
    """How a quantity is drawn: colours (light, dark background), plotly marker, the marker as a character, dash."""

    name: str
    """As in the tables; also the name of its colour in the page's style sheet."""
    title: str
    definition: str
    light: str
    dark: str
    marker: str
    glyph: str
    dash: str = "solid"


GREEN, PURPLE, ORANGE = "#009E73", "#CC79A7", "#E69F00"
INK, SOFT = ("#1C2024", "#E5E6E3"), ("#586069", "#9BA3AB")


def _edit(name: str, light: str, dark: str, marker: str, glyph: str) -> Look:
    return Look(name, EDITS[name].title, EDITS[name].definition, light, dark, marker, glyph)


DROP = _edit("drop", "#D55E00", "#D55E00", "square", "■")
_EDITS = {
    look.name: look
    for look in (
        _edit("swap", "#0072B2", "#56B4E9", "circle", "●"),
        DROP,
        _edit("drop_attn", GREEN, GREEN, "triangle-up", "▲"),
        _edit("drop_ssm", ORANGE, ORANGE, "triangle-down", "▼"),
        _edit("drop_mlp", PURPLE, PURPLE, "diamond", "◆"),
        _edit("drop_ple", "#56B4E9", "#56B4E9", "cross", "✚"),
    )
}
"""The edits with a fixed look; `edit_looks` assigns looks to others."""

OWN = Look("own", "The model", "the unmodified model", *INK, "circle", "●")
TUNED = Look("tuned", "Tuned lens", LENSES[lens.TUNED].definition, "#0072B2", "#56B4E9", "diamond-open", "◇", "dash")
JACOBIAN = Look(
    "jacobian", "Jacobian lens", LENSES[lens.JACOBIAN].definition, ORANGE, ORANGE, "square-open", "□", "dot"
)
FITTED = {lens.TUNED: TUNED, lens.JACOBIAN: JACOBIAN}
"""Looks of the lenses that are fitted."""
REFERENCE = Look("reference", "Reference", "what the others are compared with", *SOFT, "square-open", "□", "dash")
CONTROL = Look("control", "Control", "what would be expected anyway", *SOFT, "diamond-open", "◇", "dot")
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
"""The kinds of neurons drawn by layer."""

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
SCALES = {
    n: Look(f"gride-{n}", f"{n} and {2 * n} neighbours", "GRIDE on this scale", *shade)
    for n, shade in zip(dimension.NEIGHBOURS, _SHADES, strict=True)
}
"""Intrinsic dimension from small to large scales."""
ON_FIRST = Look(FIRST.name, FIRST.title, FIRST.definition, GREEN, GREEN, "square", "■")
ON_ITSELF = Look("itself", ITSELF.title, ITSELF.definition, *INK, "circle", "●", "dash")

CRITERIA = {
    name: Look(f"prune-{name}", prune.TITLES[name], prune.METHODS[name], *shade)
    for name, shade in {
        prune.GREEDY: ("#0072B2", "#56B4E9", "circle", "●", "solid"),
        prune.BEAM: ("#56B4E9", "#8FD0F2", "pentagon", "⬟", "dash"),
        prune.EVOLUTION: (PURPLE, PURPLE, "star", "★", "dot"),
        prune.SINGLE: (GREEN, GREEN, "square", "■", "dash"),
        prune.INFLUENCE: (ORANGE, ORANGE, "triangle-up", "▲", "dot"),
        prune.ANGULAR: ("#D55E00", "#D55E00", "diamond", "◆", "dashdot"),
        prune.RANDOM: (*SOFT, "triangle-down", "▼", "longdash"),
    }.items()
}
"""Criteria for choosing blocks to remove."""
_PAINTERS = (
    ("repeat_middle", *INK, "circle", "●", "solid"),
    ("skip", "#D55E00", "#D55E00", "square", "■", "solid"),
    ("parallel", GREEN, GREEN, "triangle-up", "▲", "solid"),
    ("reverse", "#0072B2", "#56B4E9", "triangle-down", "▼", "dash"),
    ("random", PURPLE, PURPLE, "diamond", "◆", "dash"),
    ("loop", ORANGE, ORANGE, "star", "★", "solid"),
    ("repeat_3", *SOFT, "circle", "●", "solid"),
    ("repeat_5", *INK, "square", "■", "dash"),
)
PAINTERS = {
    name: Look(f"painters-{name}", painters.EDITS[name].title, painters.EDITS[name].definition, *look)
    for name, *look in _PAINTERS
}
"""The edits of ranges of middle layers."""
_DEPENDENCY = (
    (dependency.ALL, "All positions", *INK, "circle", "●", "solid"),
    (dependency.FUTURE, "Future positions", "#D55E00", "#D55E00", "square", "■", "solid"),
    (dependency.LOCAL, "Direct effect", "#0072B2", "#56B4E9", "triangle-up", "▲", "dash"),
    (dependency.LOCAL_FUTURE, "Direct effect on future positions", PURPLE, PURPLE, "diamond", "◆", "dash"),
)
DEPENDENCY = {
    name: Look(f"dependency-{name.replace('_', '-')}", title, dependency.VARIANTS[name], *look)
    for name, title, *look in _DEPENDENCY
}
"""Ways to skip a layer and to measure what others then write."""
_MAGNITUDES = (
    (massive.LARGEST, *INK, "circle", "●", "solid"),
    (massive.SECOND, "#0072B2", "#56B4E9", "triangle-up", "▲", "dash"),
    (massive.THIRD, PURPLE, PURPLE, "diamond", "◆", "dot"),
    (massive.MEDIAN, *SOFT, "square", "■", "dashdot"),
)
MAGNITUDES = {
    metric.name: Look(f"magnitude-{metric.name}", metric.title, metric.definition, *look)
    for metric, *look in _MAGNITUDES
}
"""The largest magnitudes of the residual stream, and the median."""
LINEARITY = {
    linearity.ALL: Look("linearity-all", "All positions", "all positions of the measured text", *INK, "circle", "●"),
    linearity.NOT_FIRST: Look(
        "linearity-not-first",
        "Without first positions",
        linearity.POSITIONS[linearity.NOT_FIRST],
        "#0072B2",
        "#56B4E9",
        "triangle-up",
        "▲",
        "dash",
    ),
    "in_sample": Look(
        "linearity-in-sample",
        "In sample",
        "all positions of the text that the maps were fitted on",
        *SOFT,
        "square-open",
        "□",
        "dot",
    ),
    "linear": Look(
        "linearity-linear", "Replaced", "the block replaced by its affine fit", GREEN, GREEN, "diamond", "◆"
    ),
}
"""Positions that linearity is over, and the block replaced by its affine fit."""

_BANDS = (
    ("Rank 1 to 10", "of the ten most frequent tokens", "#D55E00", "#D55E00", "square", "■"),
    ("11 to 100", "of the next 90", "#0072B2", "#56B4E9", "circle", "●"),
    ("101 to 1,000", "of the next 900", GREEN, GREEN, "triangle-up", "▲"),
    ("Rest", "of all others, those that do not occur in the text too", *SOFT, "diamond", "◆"),
)
BANDS = {
    band: Look(f"band-{band}", title, definition, *look)
    for band, (title, definition, *look) in zip(guess_refine.BANDS, _BANDS, strict=True)
}
"""Bands of tokens by frequency."""

_CLASS_BANDS = (
    ("#9CCBEB", "#2F6E9E", "circle", "●", "solid"),
    ("#5FA9DA", "#3F86B8", "square", "■", "dash"),
    ("#2E8BC8", "#56A0D3", "triangle-up", "▲", "solid"),
    ("#0072B2", "#7CBCE8", "diamond", "◆", "dashdot"),
    ("#00507D", "#A6D3F2", "triangle-down", "▼", "solid"),
    ("#00324F", "#D3EAFA", "star", "★", "longdash"),
)
_CLASS_KINDS = (
    ("#0072B2", "#56B4E9", "circle", "●", "solid"),
    ("#D55E00", "#D55E00", "square", "■", "solid"),
    (GREEN, GREEN, "triangle-up", "▲", "solid"),
    (PURPLE, PURPLE, "diamond", "◆", "dash"),
    (ORANGE, ORANGE, "triangle-down", "▼", "dash"),
    (*SOFT, "star", "★", "dot"),
)


def _class_looks(name: str, shades: Sequence[tuple[str, ...]]) -> tuple[Look, ...]:
    return tuple(Look(f"{name}-{place}", "", "", *shade) for place, shade in enumerate(shades))


CLASS_BANDS, CLASS_KINDS = _class_looks("class-band", _CLASS_BANDS), _class_looks("class-kind", _CLASS_KINDS)
"""Classes of tokens: bands of a quantity from light to dark, others in different colours."""


def class_looks(classing: Classing) -> dict[str, Look]:
    """How the classes of a classing are drawn; bands as far apart as there are few."""
    last = max(len(classing.classes) - 1, 1)
    looks = (
        [CLASS_BANDS[round(place * (len(CLASS_BANDS) - 1) / last)] for place in range(last + 1)]
        if classing.ordered
        else CLASS_KINDS
    )
    return {
        one.name: replace(look, title=one.title, definition=one.definition)
        for one, look in zip(classing.classes, looks, strict=False)
    }


LOOKS = {
    look.name: look
    for look in (
        *_EDITS.values(),
        OWN,
        TUNED,
        JACOBIAN,
        REFERENCE,
        CONTROL,
        ATTENTION,
        MLP,
        *NEURONS.values(),
        CHOSEN[probes.BOTH],
        *REACHES.values(),
        *SCALES.values(),
        ON_FIRST,
        ON_ITSELF,
        *CRITERIA.values(),
        *PAINTERS.values(),
        *DEPENDENCY.values(),
        *CLASS_BANDS,
        *CLASS_KINDS,
        *MAGNITUDES.values(),
        *LINEARITY.values(),
        *BANDS.values(),
    )
}
"""All fixed looks by name: the page's colours."""

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
_FREE = _MARKERS.index("star ★")
"""The first marker not used by an edit with a fixed look."""
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
MOST_RUNS = 2 * len(_COLOURS)
"""Number of runs that can be distinguished in one figure."""


def run_look(place: int, title: str) -> Look:
    """How a run is drawn among others: colour, marker and dash; when colours repeat, markers differ."""
    light, dark = _COLOURS[place % len(_COLOURS)]
    marker, glyph = _MARKERS[(place + place // len(_COLOURS)) % len(_MARKERS)].split()
    return Look(f"run-{place}", title, "", light, dark, marker, glyph, _DASHES[place % len(_DASHES)])


def shown_edits(measured: Iterable[str]) -> list[str]:
    """The edits of a sweep's table in display order: whole blocks, then components.

    Edits not registered here follow. Names that are not valid edit names are skipped.
    """
    there = list(dict.fromkeys(measured))
    known = sorted(sweeps().items(), key=lambda one: (None, *COMPONENTS).index(one[1].component))
    unknown = [name for name in there if name not in sweeps() and is_edit_name(name)]
    return [*(name for name, _ in known if name in there), *unknown]


def edit_looks(shown: Iterable[str]) -> dict[str, Look]:
    """How the edits of one page are drawn: edits without a fixed look take the next of a cycle."""
    looks: dict[str, Look] = {}
    own = 0
    for name in shown:
        if name in _EDITS:
            looks[name] = _EDITS[name]
            continue
        definition = EDITS[name].definition if name in EDITS else "an edit that is not registered here"
        light, dark = _COLOURS[-1 - own % len(_COLOURS)]
        marker, glyph = _MARKERS[(own + _FREE) % len(_MARKERS)].split()
        looks[name] = Look(f"edit-{own}", title_of(name), definition, light, dark, marker, glyph, "dash")
        own += 1
    return looks


FONT = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', 'Liberation Sans', Arial, sans-serif"

"""The map of the stages: layers divided into stages, intervals of the boundaries, signals as strips; boundaries as text."""

from dataclasses import replace

from depthscope.report.charts import layers
from depthscope.report.measured import NBSP, Value
from depthscope.report.palette import OWN
from depthscope.report.panels import Axis, Bar, Bars, Hover, Note, Panel, Points, Strips
from depthscope.report.wording import joined
from depthscope.schema.found_stages import Boundary, Stage, Stages, StageSignal
from depthscope.schema.stages import FURTHEST, SIGNALS, STAGES, votes_near, written

ROW = 36
"""Height in pixels of a signal: its strip, with its name above."""


def changes(found: Stages) -> list[Boundary]:
    """All changes of the signals: stage boundaries and unnamed changes, by layer."""
    return sorted([*found.boundaries, *found.unnamed_changes], key=lambda one: one.layer)


def stage_map(found: Stages) -> Panel:
    """The layers divided into stages, with the boundaries' intervals below, and a strip per signal."""
    signals, depth = found.signals, found.layers
    names = [
        Note(text=signal.title + (" (flat)" if signal.flat else ""), x=0.0, y=row + 0.5)
        for row, signal in enumerate(reversed(signals))
    ]
    height = 96 + ROW * len(signals) + 44
    below = ROW * len(signals) / max(height - 52, 1)
    bare = Axis(labelled=False, grid=False)
    return Panel(
        name="stages-map",
        title="Stages over the layers",
        marks=(*_strips(signals, depth), _bars(found.stages), _bounds(changes(found))),
        x=layers(depth).axis(),
        y=(
            replace(bare, range=(-0.55, len(signals) - 0.25), part=(0.0, below)),
            replace(bare, range=(-0.95, 0.5), part=(min(below + 0.02, 0.99), 1.0)),
        ),
        notes=tuple(names if found.stages else [*names, _none(depth)]),
        together=False,
        height=height,
        left=8,
    )


def _none(depth: int) -> Note:
    """The note shown in place of the stages."""
    return Note(text="no stages found", x=(depth - 1) / 2, y=0.0, x_of="data", align="center", row=1)


def _strips(signals: list[StageSignal], depth: int) -> list[Strips]:
    if not signals:
        return []
    rows = list(reversed(signals))
    return [
        Strips(
            look=OWN,
            cells=tuple(tuple([*(signal.standardised or []), *[None] * depth][:depth]) for signal in rows),
            hover=tuple(
                tuple(_point(signal, layer, value) for layer, value in enumerate(signal.values)) for signal in rows
            ),
            furthest=FURTHEST,
        )
    ]


def _point(signal: StageSignal, layer: int, value: float | None) -> Hover:
    standardised = signal.standardised
    away = f"; {said_number(standardised[layer], None)} robust spreads from its median" if standardised else ""
    return Hover(signal.title, f"\nlayer {layer}: {said_number(value, signal.unit)}{away}")


def _bars(stages: list[Stage]) -> Bars:
    return Bars(
        name="stages",
        look=OWN,
        bars=tuple(
            Bar(
                stage.first - 0.5,
                stage.last + 0.5,
                (0.2, 0.1)[place % 2],
                _broken(stage.title),
                Hover(stage.title, f"\n{span(stage)}"),
            )
            for place, stage in enumerate(stages)
        ),
        thickness=0.9,
        row=1,
    )


def _bounds(boundaries: list[Boundary]) -> Points:
    """Points for boundaries, each between the first layer of the later stage and the layer before it."""
    return Points(
        name="boundaries",
        look=OWN,
        x=tuple(before_layer(one) for one in boundaries),
        y=(Value(-0.7),) * len(boundaries),
        hover=tuple(Hover("", boundary(one)) for one in boundaries),
        layers=tuple(map(own_layer, boundaries)),
        line=False,
        size=8.0,
        bar=3.0,
        caps=True,
        hollow=tuple(not one.after for one in boundaries),
        legend=False,
        row=1,
    )


def before_layer(one: Boundary, last: int = 1) -> Value:
    """The position of a boundary on an axis with layer l at l / last: half a layer before its layer."""
    ends = (one.layer, one.low, one.high)
    return Value(*(None if end is None else (end - 0.5) / last for end in ends))  # type: ignore[arg-type]


def own_layer(one: Boundary) -> Value:
    """A boundary's layer, the first of the later stage, with its interval."""
    ends = (one.layer, one.low, one.high)
    return Value(*(None if end is None else float(end) for end in ends))  # type: ignore[arg-type]


def boundary(one: Boundary) -> str:
    """A sentence on where a boundary is and how certain that is."""
    said = f"{_change(one)} at layer {one.layer}"
    if one.low is not None and one.high is not None:
        said += f" (95% interval {one.low} to {one.high}"
        said += f"; at this layer in {100 * one.support:.0f}% of resamples)" if one.support is not None else ")"
    if one.without_one:
        low, high = one.without_one
        said += f"; layer {low}" if low == high else f"; layers {low} to {high}"
        said += " when any one signal is left out"
    return f"{said}{_votes(one)}."


def _change(one: Boundary) -> str:
    """The transition a change corresponds to; unnamed if the signals match none of the hypothesis's transitions."""
    if one.before is None or one.after is None:
        return "A change that matches none of the hypothesis’s transitions"
    return f"{stage_title(one.after)} begins"


def _votes(one: Boundary) -> str:
    """Where single signals place the change."""
    votes = one.votes
    if not votes:
        return ""
    there = [f"{_named(name)} ({vote})" for name, vote in votes.items() if vote is not None]
    near = votes_near(one.layer, votes)
    said = f"; {near} of the {len(votes)} signals relevant to it change within a layer of it on their own"
    return f"{said} (alone they change at: {joined(there)})" if there else said


def _named(signal: str) -> str:
    return in_sentence(SIGNALS[signal].title if signal in SIGNALS else signal)


def in_sentence(title: str) -> str:
    """A title for use within a sentence: lower-case first letter, except for abbreviations."""
    return title if title[:2].isupper() else f"{title[:1].lower()}{title[1:]}"


def _broken(title: str) -> str:
    """A stage's name split into lines; merged stages get one line each."""
    return title.replace(" + ", " +\n") if " + " in title else title.replace(" ", "\n")


def span(stage: Stage) -> str:
    """`layer 0` or `layers 1–7`."""
    first, last = stage.first, stage.last
    return f"layer {first}" if first == last else f"layers {first}–{last}"


def stage_title(stage: str) -> str:
    """A stage's title."""
    return STAGES.get(stage, stage)


def said_number(value: float | None, unit: str | None) -> str:
    """A number with its unit, shares in per cent; a dash for None."""
    if value is None:
        return "–"
    return written(value, unit or "").replace(" ", NBSP)

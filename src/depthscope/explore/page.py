"""The page: gradio components, and which answer each of them shows. Nothing is computed here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from depthscope.explore import comparison, lens, markup, surgery
from depthscope.explore.answers import Answers
from depthscope.explore.runs import Runs
from depthscope.report.figures import FIGURES

FIRST_PROMPT = "It was the best of times, it was the worst of times, it was the age of"
RUNS = "Runs"
LOOK_AGAIN = 2.0
"""Seconds between two looks at the runs while their room is open."""
CHOOSE = """element.addEventListener('click', (event) => {
    const cell = event.target.closest('[data-cell]');
    if (cell) trigger('click', {cell: cell.dataset.cell});
});"""
"""A click on a cell made by markup.choice tells the page which."""
QUIETLY: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "trigger_mode": "always_last"}
"""Of every event. While one is being answered gradio drops the same event by default, and the page would keep showing
what was asked before; always_last answers the latest one afterwards."""


@dataclass(frozen=True, slots=True)
class Refresh:
    """What a room does when another prompt is read."""

    answer: Callable[..., Any]
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    once: bool = False
    """Whether it depends on the model alone, and is done when the page opens."""
    slow: bool = False
    """Whether the other rooms come before it."""


def build(answers: Answers, runs: Runs, facts: str, note: str = "") -> gr.Blocks:
    """The page of a model. `facts` and `note` are text that stands at its head."""
    with gr.Blocks(title="depthscope", analytics_enabled=False) as page:
        gr.HTML(f"<header><h1>depthscope</h1><p>{markup.escaped(facts)}</p></header>{markup.message(note, 'problem')}")
        with gr.Row(equal_height=True, elem_id="asked"):
            text = gr.Textbox(FIRST_PROMPT, label="Prompt", lines=1, max_lines=5, scale=6, elem_id="prompt")
            read = gr.Button("Read", variant="primary", scale=0, min_width=96, elem_id="read")
        said = gr.HTML(elem_id="said")
        with gr.Tabs(elem_id="rooms") as tabs:
            with gr.Tab("Prompt"):
                first = _prompt_room(answers, text, said)
            with gr.Tab("Surgery"):
                second = _surgery_room(answers, text)
            with gr.Tab("Heads"):
                third = _heads_room(answers, text)
            with gr.Tab("Neurons"):
                fourth = _neurons_room(answers, text)
            with gr.Tab(RUNS):
                clock = _runs_room(runs, page)
        tabs.select(_clock_of, None, clock, **QUIETLY)
        rooms = sorted([*first, *second, *third, *fourth], key=lambda room: room.slow)
        for event, opening in ((page.load, True), (text.submit, False), (read.click, False)):
            step = event(rooms[0].answer, rooms[0].inputs, rooms[0].outputs, **QUIETLY)
            for room in rooms[1:]:
                if opening or not room.once:
                    step = step.then(room.answer, room.inputs, room.outputs, **QUIETLY)
    return page


def _prompt_room(answers: Answers, text: gr.Textbox, said: gr.HTML) -> list[Refresh]:
    colour = gr.Radio(list(lens.COLOURS), value=lens.PROBABILITY, label="Coloured by", elem_id="colour")
    table = gr.HTML(elem_id="lens")
    gr.HTML("<h3>Two routes through the model</h3>" + ROUTES_HELP)
    with gr.Row():
        one = gr.Textbox("", label="Route", placeholder="the model's own", elem_id="route-one")
        other = gr.Textbox(
            f"swap({min(3, answers.depth - 2)})" if answers.depth > 1 else "drop(0)", label="Other route"
        )
    compare = gr.Button("Compare", elem_id="compare", size="sm")
    cards = gr.HTML(elem_id="routes")
    inputs = [text, one, other]
    colour.change(answers.lens, [text, colour], [said, table], **QUIETLY)
    for event in (one.submit, other.submit, compare.click):
        event(partial(answers.compare, write=False), inputs, cards, **QUIETLY).then(
            partial(answers.compare, write=True), inputs, cards, **QUIETLY
        )
    return [
        Refresh(answers.lens, [text, colour], [said, table]),
        Refresh(partial(answers.compare, write=False), inputs, [cards]),
        Refresh(partial(answers.compare, write=True), inputs, [cards], slow=True),
    ]


def _surgery_room(answers: Answers, text: gr.Textbox) -> list[Refresh]:
    averaged = gr.Radio(list(surgery.AVERAGED), value=surgery.LAST, label="KL at", elem_id="averaged")
    table = gr.HTML(elem_id="surgery", js_on_load=CHOOSE)
    chosen = gr.HTML(elem_id="edited")
    gr.HTML("<h3>An edit or route of your own</h3>" + ROUTES_HELP)
    typed = gr.Textbox("drop_mlp(0)", label="Edit or route", elem_id="own-route")
    card = gr.HTML(elem_id="own")
    averaged.change(answers.surgery, [text, averaged], table, **QUIETLY)

    cell = gr.State("")

    def own(asked: str, route: str) -> str:
        return answers.compare(asked, "", route, write=True)

    # The chosen edit stays chosen when the table becomes another prompt's.
    look = {"fn": answers.edited, "inputs": [text, averaged, cell], "outputs": chosen, **QUIETLY}
    table.click(_cell, None, cell, **QUIETLY).then(**look)
    table.change(**look)
    typed.submit(own, [text, typed], card, **QUIETLY)

    return [Refresh(answers.surgery, [text, averaged], [table])]


def _heads_room(answers: Answers, text: gr.Textbox) -> list[Refresh]:
    with gr.Row():
        # Without limits of their own: gradio answers a number beyond them with a traceback, the room with a sentence.
        layer = gr.Number(None, label=f"Layer, 0 to {answers.depth - 1}", elem_id="head-layer")
        head = gr.Number(None, label="Head, from 0", elem_id="head-head")
    problem = gr.HTML(elem_id="no-pattern")
    plot = gr.Plot(show_label=False, elem_id="pattern")
    lists = gr.HTML(elem_id="strongest", js_on_load=CHOOSE)
    asked = [text, layer, head]

    def pattern(text: str, layer: float | None, head: float | None) -> tuple[Any, str]:
        return _drawn(*answers.pattern(text, layer, head))

    def choose(event: gr.EventData) -> tuple[int, int]:
        numbers = _cell(event).split(",")
        return (int(numbers[0]), int(numbers[1])) if len(numbers) == 2 and all(map(str.isdecimal, numbers)) else (0, 0)

    # One event for both numbers, whoever changes them, so that the plot is never of other numbers than those shown.
    gr.on([layer.change, head.change], pattern, asked, [plot, problem], **QUIETLY)
    lists.click(choose, None, [layer, head], **QUIETLY)
    return [
        Refresh(answers.strongest, [text], [layer, head], once=True),
        Refresh(answers.heads, [text], [lists]),
        Refresh(pattern, asked, [plot, problem]),
    ]


def _neurons_room(answers: Answers, text: gr.Textbox) -> list[Refresh]:
    counts = gr.HTML(elem_id="layers", js_on_load=CHOOSE)
    sharpest = gr.HTML(elem_id="sharpest", js_on_load=CHOOSE)
    typed = gr.Textbox("", label="Neuron (LAYER.NEURON)", elem_id="neuron-name")
    card = gr.HTML(elem_id="neuron")

    def of_layer(event: gr.EventData) -> tuple[str, str]:
        cell = _cell(event)
        return answers.layers(int(cell) if cell.isdecimal() else answers.depth - 1)

    def first() -> tuple[str, str, str]:
        neuron = answers.sharpest()
        return neuron, *answers.layers(int(neuron.partition(".")[0]))

    counts.click(of_layer, None, [counts, sharpest], **QUIETLY)
    sharpest.click(_cell, None, typed, **QUIETLY).then(answers.neuron, [text, typed], card, **QUIETLY)
    typed.submit(answers.neuron, [text, typed], card, **QUIETLY)
    return [
        Refresh(first, [], [typed, counts, sharpest], once=True),
        Refresh(answers.neuron, [text, typed], [card]),
    ]


def _runs_room(runs: Runs, page: gr.Blocks) -> gr.Timer:
    now = gr.State(None)
    overview = gr.HTML(elem_id="runs", js_on_load=CHOOSE)
    status = gr.HTML(elem_id="status")
    titles = [(kind.title, kind.name) for kind in FIGURES.values()]
    which = gr.Dropdown(titles, value=titles[0][1], label="Figure", elem_id="figure")
    problem = gr.HTML(elem_id="no-figure")
    plot = gr.Plot(show_label=False, elem_id="run-plot", visible=False)
    clock = gr.Timer(LOOK_AGAIN, active=False)

    def show(name: str | None) -> tuple[str | None, str, str, Any]:
        there = runs.figures(name)
        first = gr.Dropdown(value=there[0][1]) if there else gr.skip()
        return name, runs.overview(name), runs.status(name) if name else "", first

    def choose(event: gr.EventData) -> tuple[str | None, str, str, Any]:
        return show(_cell(event))

    def look(name: str | None) -> tuple[str | None, str, str, Any]:
        """What has changed since; where nothing is chosen, as before there is a run, the first run that is there."""
        if name is None and (first := runs.first()):
            return show(first)
        return name, runs.overview(name), runs.status(name) if name else "", gr.skip()

    def draw(name: str | None, of: str | None) -> tuple[Any, str]:
        return _drawn(*runs.figure(name, of))

    shown = [now, overview, status, which]
    overview.click(choose, None, shown, **QUIETLY)
    page.load(look, now, shown, **QUIETLY)
    clock.tick(look, now, shown, **QUIETLY)
    for changed in (now, which):
        changed.change(draw, [now, which], [plot, problem], **QUIETLY)
    return clock


def _clock_of(event: gr.SelectData) -> gr.Timer:
    """The clock runs while the room of runs is open."""
    return gr.Timer(LOOK_AGAIN, active=event.value == RUNS)


def _drawn(figure: Any, why: str) -> tuple[gr.Plot, str]:
    """A plot and what is said beside it; no empty frame where there is none."""
    return gr.Plot(figure, visible=figure is not None), why


def _cell(event: gr.EventData) -> str:
    """What a click was on, as the browser says it."""
    try:
        return str(event.cell)[:300]
    except (AttributeError, TypeError):
        return ""


ROUTES_HELP = (
    "<p class='under'>Blocks in the order they are visited (<code>0 1 3 2 4-11</code>, <code>5~mlp</code> with its MLP "
    "silenced, <code>(3+4)</code> side by side) or edits of the model's own route "
    "(<code>swap(3) | drop_mlp(7)</code>, also drop, drop_attn, repeat, reverse, shuffle, parallel). "
    f"Each writes up to {comparison.CONTINUED} tokens on, always the likeliest. Enter to run.</p>"
)

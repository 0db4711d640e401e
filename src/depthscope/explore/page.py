"""The page: gradio components and the answer each one shows. Nothing is computed here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from depthscope.explore import comparison, lens, markup, surgery
from depthscope.explore.answers import Answers
from depthscope.explore.prompt import MOST_CHARACTERS
from depthscope.explore.runs import Runs
from depthscope.report.figures import figures

FIRST_PROMPT = "It was the best of times, it was the worst of times, it was the age of"
RUNS = "Runs"
LOOK_AGAIN = 2.0
"""Seconds between refreshes of the runs while their tab is open."""
CHOOSE = """element.addEventListener('click', (event) => {
    const cell = event.target.closest('[data-cell]');
    if (cell) trigger('click', {cell: cell.dataset.cell});
});"""
"""Reports a click on a cell made by markup.choice to the page."""
QUIETLY: dict[str, Any] = {
    "show_progress": "hidden",
    "api_visibility": "private",
    "trigger_mode": "always_last",
    "concurrency_id": "model",
    "concurrency_limit": 1,
}
"""Settings of every event. By default gradio drops an event while the same one is being answered, so the page would keep
showing an outdated answer; always_last answers the latest one afterwards. All that use the model wait in one queue, in the
order in which they came: only one can use it at a time, and which of several threads is next would be up to the system."""
APART: dict[str, Any] = {**QUIETLY, "concurrency_id": "runs"}
"""The same for events that do not use the model and need not wait for it."""


@dataclass(frozen=True, slots=True)
class Refresh:
    """What a tab updates when a new prompt is read."""

    answer: Callable[..., Any]
    inputs: Sequence[Any]
    outputs: Sequence[Any]
    once: bool = False
    """Whether it depends on the model alone, and runs only when the page opens."""
    slow: bool = False
    """Whether it runs after the other tabs' updates."""


def build(answers: Answers, runs: Runs, facts: str, note: str = "") -> gr.Blocks:
    """The page of a model. `facts` and `note` are text for its header."""
    with gr.Blocks(title="depthscope", analytics_enabled=False) as page:
        gr.HTML(f"<header><h1>depthscope</h1><p>{markup.escaped(facts)}</p></header>{markup.message(note, 'problem')}")
        with gr.Row(equal_height=True, elem_id="asked"):
            text = gr.Textbox(
                FIRST_PROMPT,
                label="Prompt",
                lines=1,
                max_lines=5,
                max_length=MOST_CHARACTERS,
                scale=6,
                elem_id="prompt",
            )
            read = gr.Button("Read", variant="primary", scale=0, min_width=96, elem_id="read")
        said = gr.HTML(elem_id="said")
        with gr.Tabs(elem_id="rooms") as tabs:
            with gr.Tab("Prompt"):
                first = _prompt_tab(answers, text, said)
            with gr.Tab("Surgery"):
                second = _surgery_tab(answers, text)
            with gr.Tab("Heads"):
                third = _heads_tab(answers, text)
            with gr.Tab("Neurons"):
                fourth = _neurons_tab(answers, text)
            with gr.Tab(RUNS):
                clock = _runs_tab(runs, page)
        tabs.select(_clock_of, None, clock, **APART)
        updates = sorted([*first, *second, *third, *fourth], key=lambda one: one.slow)
        for event, opening in ((page.load, True), (text.submit, False), (read.click, False)):
            step = event(updates[0].answer, updates[0].inputs, updates[0].outputs, **QUIETLY)
            for one in updates[1:]:
                if opening or not one.once:
                    step = step.then(one.answer, one.inputs, one.outputs, **QUIETLY)
    return page


def _prompt_tab(answers: Answers, text: gr.Textbox, said: gr.HTML) -> list[Refresh]:
    with gr.Row():
        choices = [(title, name) for name, title in answers.lenses.items()]
        which = gr.CheckboxGroup(choices, value=answers.shown_lenses(), label="Lenses", elem_id="lenses")
        colour = gr.Radio(list(lens.COLOURS), value=lens.PROBABILITY, label="Coloured by", elem_id="colour")
    table = gr.HTML(elem_id="lens")
    gr.HTML("<h3>Two routes through the model</h3>" + ROUTES_HELP)
    with gr.Row():
        one = gr.Textbox("", label="Route", placeholder="unmodified model", elem_id="route-one")
        other = gr.Textbox(
            f"swap({min(3, answers.depth - 2)})" if answers.depth > 1 else "drop(0)", label="Other route"
        )
    compare = gr.Button("Compare", elem_id="compare", size="sm")
    cards = gr.HTML(elem_id="routes")
    inputs = [text, one, other]
    asked = [text, colour, which]
    gr.on([colour.change, which.change], answers.lens, asked, [said, table], **QUIETLY)
    for event in (one.submit, other.submit, compare.click):
        event(partial(answers.compare, write=False), inputs, cards, **QUIETLY).then(
            partial(answers.compare, write=True), inputs, cards, **QUIETLY
        )
    return [
        Refresh(answers.lens, asked, [said, table]),
        Refresh(partial(answers.compare, write=False), inputs, [cards]),
        Refresh(partial(answers.compare, write=True), inputs, [cards], slow=True),
    ]


def _surgery_tab(answers: Answers, text: gr.Textbox) -> list[Refresh]:
    averaged = gr.Radio(list(surgery.AVERAGED), value=surgery.LAST, label="KL at", elem_id="averaged")
    table = gr.HTML(elem_id="surgery", js_on_load=CHOOSE)
    chosen = gr.HTML(elem_id="edited")
    go_on = gr.Button("Continue the text", elem_id="continue", size="sm")
    continued = gr.HTML(elem_id="continued")
    gr.HTML("<h3>Your own edit or route</h3>" + ROUTES_HELP)
    typed = gr.Textbox("drop_mlp(0)", label="Edit or route", elem_id="own-route")
    card = gr.HTML(elem_id="own")
    averaged.change(answers.surgery, [text, averaged], table, **QUIETLY)

    cell = gr.State("")

    def own(asked: str, route: str) -> str:
        return answers.compare(asked, "", route, write=True)

    # The chosen edit stays chosen when the prompt changes.
    look = {"fn": answers.edited, "inputs": [text, averaged, cell], "outputs": chosen, **QUIETLY}
    table.click(_cell, None, cell, **QUIETLY).then(**look)
    table.change(**look)
    go_on.click(answers.continued, [text, averaged, cell], continued, **QUIETLY)
    cell.change(lambda: "", None, continued, **QUIETLY)
    typed.submit(own, [text, typed], card, **QUIETLY)

    return [Refresh(answers.surgery, [text, averaged], [table])]


def _heads_tab(answers: Answers, text: gr.Textbox) -> list[Refresh]:
    with gr.Row():
        # No limits here: gradio would answer a number outside them with a traceback; `Answers` gives a message.
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

    # One event for both numbers, however they change, so that the plot always matches the numbers shown.
    gr.on([layer.change, head.change], pattern, asked, [plot, problem], **QUIETLY)
    lists.click(choose, None, [layer, head], **QUIETLY)
    return [
        Refresh(answers.strongest, [text], [layer, head], once=True),
        Refresh(answers.heads, [text], [lists]),
        Refresh(pattern, asked, [plot, problem]),
    ]


def _neurons_tab(answers: Answers, text: gr.Textbox) -> list[Refresh]:
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


def _runs_tab(runs: Runs, page: gr.Blocks) -> gr.Timer:
    now = gr.State(None)
    overview = gr.HTML(elem_id="runs", js_on_load=CHOOSE)
    status = gr.HTML(elem_id="status")
    titles = [(kind.title, kind.name) for kind in figures().values()]
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
        """Refresh the chosen run. If none is chosen, as before the first run exists, show the first run found."""
        if name is None and (first := runs.first()):
            return show(first)
        return name, runs.overview(name), runs.status(name) if name else "", gr.skip()

    def draw(name: str | None, of: str | None) -> tuple[Any, str]:
        return _drawn(*runs.figure(name, of))

    shown = [now, overview, status, which]
    overview.click(choose, None, shown, **APART)
    page.load(look, now, shown, **APART)
    clock.tick(look, now, shown, **APART)
    for changed in (now, which):
        changed.change(draw, [now, which], [plot, problem], **APART)
    return clock


def _clock_of(event: gr.SelectData) -> gr.Timer:
    """The timer runs while the tab of runs is open."""
    return gr.Timer(LOOK_AGAIN, active=event.value == RUNS)


def _drawn(figure: Any, why: str) -> tuple[gr.Plot, str]:
    """A plot and its message; without a figure, the plot is hidden."""
    return gr.Plot(figure, visible=figure is not None), why


def _cell(event: gr.EventData) -> str:
    """The cell that was clicked, as sent by the browser."""
    try:
        return str(event.cell)[:300]
    except (AttributeError, TypeError):
        return ""


ROUTES_HELP = (
    "<p class='under'>Blocks in the order they are visited (<code>0 1 3 2 4-11</code>, <code>5~mlp</code> with its MLP "
    "ablated, <code>(3+4)</code> in parallel) or edits of the unmodified model "
    "(<code>swap(3) | drop_mlp(7)</code>, also drop, drop_attn, drop_head, repeat, reverse, shuffle, parallel). "
    f"Each route continues the text for up to {comparison.CONTINUED} tokens, greedily. Press Enter to run.</p>"
)

"""Requests of the page and their answers. Every answer is HTML or a figure; errors become messages, never exceptions."""

from collections.abc import Sequence
from functools import cached_property

import plotly.graph_objects as go
from jaxtyping import Float64
from torch import Tensor

from depthscope.errors import DataError, DepthscopeError, RouteError
from depthscope.experiments.lenses import LOGIT
from depthscope.experiments.neurons import parse_neuron
from depthscope.explore import attention, comparison, lens, markup, neurons, surgery
from depthscope.explore.prompt import TOP, Prompt, Session
from depthscope.explore.surgery import Surgery
from depthscope.routes import Route
from depthscope.schema.lens import LENSES


class Answers:
    """Answers about one model. Each method takes inputs as typed or chosen on the page."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.depth = session.model.depth

    @property
    def lenses(self) -> dict[str, str]:
        """The title of each lens that can be shown, by its name."""
        return {name: LENSES[name].title for name in self.session.lenses}

    def shown_lenses(self) -> list[str]:
        """The lenses that are shown at first: the logit lens and those fitted to the model."""
        return [name for name in self.session.lenses if name == LOGIT or LENSES[name].trained]

    def lens(self, text: str, colour: str, names: Sequence[str] | None = None) -> tuple[str, str]:
        """(note on the prompt, the tables of the named lenses, one below the other; of `shown_lenses` by default)."""
        names = self.shown_lenses() if names is None else names
        try:
            with self.session.reading(text) as prompt:
                vocabulary = self.session.model.unembedding.vocabulary
                titles = {name: title for name, title in self.lenses.items() if name in names}
                tables = [
                    lens.lens_table(prompt.lens(name), vocabulary, colour, title) for name, title in titles.items()
                ]
                shown = "".join(tables) or markup.message("Choose a lens.")
                return markup.message(prompt.note, "problem" if prompt.cut else "note"), shown
        except DepthscopeError as error:
            return markup.message(str(error), "problem"), ""

    def compare(self, text: str, one: str, other: str, write: bool) -> str:
        """Two routes side by side; with `write` also their continuations, which take longer."""
        try:
            with self.session.reading(text) as prompt:
                return markup.columns([self._route(prompt, typed, write) for typed in (one, other)])
        except DepthscopeError as error:
            return markup.message(str(error), "problem")

    def surgery(self, text: str, averaged: str) -> str:
        """The table of all edits on the prompt."""
        try:
            with self.session.reading(text) as prompt:
                found = prompt.surgery(averaged)
                shown = [self.session.vocabulary.shown(best) for best in found.top_ids[:, 0].tolist()]
                return surgery.surgery_table(found, shown, averaged)
        except DepthscopeError as error:
            return markup.message(str(error), "problem")

    def edited(self, text: str, averaged: str, cell: str) -> str:
        """The distribution behind a chosen cell of the surgery table, next to the unmodified model's."""
        try:
            with self.session.reading(text) as prompt:
                found = prompt.surgery(averaged)
        except DepthscopeError as error:
            return markup.message(str(error), "problem")
        chosen = surgery.read_cell(cell, found)
        if chosen is None:
            return ""
        name, place = chosen
        under = f"KL {float(found.kl[place].double().mean()):.4g} nats ({averaged})"
        own = comparison.card("unmodified model", "KL 0 nats", self._top(found, 0))
        return markup.columns([own, comparison.card(name, under, self._top(found, place))])

    def continued(self, text: str, averaged: str, cell: str) -> str:
        """What follows the prompt under the edit of a chosen cell of the surgery table, next to the unmodified model's text."""
        model = self.session.model
        try:
            with self.session.reading(text) as prompt:
                found = prompt.surgery(averaged)
                if (chosen := surgery.read_cell(cell, found)) is None:
                    return markup.message("Choose a cell of the table first.")
                name, place = chosen
                routes = {"unmodified model": Route.own(self.depth), name: found.edits[place - 1].route}
                parts = [
                    f"<h4>{markup.escaped(title)}</h4>"
                    + comparison.written(model, comparison.continuation(model, prompt.ids, route))
                    for title, route in routes.items()
                ]
                return markup.columns(parts)
        except DepthscopeError as error:
            return markup.message(str(error), "problem")

    def heads(self, text: str) -> str:
        """The strongest heads on a prompt."""
        try:
            with self.session.reading(text) as prompt:
                return attention.strongest_heads(prompt.head_scores)
        except DepthscopeError as error:
            return markup.message(str(error), "problem")

    def strongest(self, text: str) -> tuple[int, int]:
        """(layer, head) that attends most to the previous token; (0, 0) if there is none."""
        try:
            with self.session.reading(text) as prompt:
                best = prompt.head_scores.previous[0]
                return best.layer, best.head
        except (DepthscopeError, IndexError):  # a prompt of one token has no previous tokens
            return 0, 0

    def pattern(self, text: str, layer: int | float | None, head: int | float | None) -> tuple[go.Figure | None, str]:
        """(the pattern of a head, an error message). A number field left empty is None."""
        try:
            with self.session.reading(text) as prompt:
                return self._pattern(prompt, _whole("layer", layer), _whole("head", head)), ""
        except DepthscopeError as error:
            return None, markup.message(str(error), "problem")

    def layers(self, layer: int) -> tuple[str, str]:
        """(counts of prediction and suppression neurons by layer, the highest-kurtosis neurons of one layer)."""
        try:
            with self.session.using():
                layer = min(max(layer, 0), self.depth - 1)
                sharpest = neurons.sharpest_table(self._neuron_layers, layer)
                return neurons.layers_table(self._neuron_layers), sharpest
        except DepthscopeError as error:
            return markup.message(str(error), "problem"), ""

    def sharpest(self) -> str:
        """The initial neuron, LAYER.NEURON: the prediction neuron of highest kurtosis in the layers measured."""
        try:
            with self.session.using():
                return neurons.sharpest(self._neuron_layers)
        except DepthscopeError:
            return f"{self.depth - 1}.0"

    def neuron(self, text: str, typed: str) -> str:
        """A neuron by LAYER.NEURON: its tokens, and its activations on the prompt if there is one."""
        try:
            layer, neuron = parse_neuron(typed.strip())
            with self.session.using():
                card = neurons.neuron_card(self.session.neurons.neuron(layer, neuron))
        except DepthscopeError as error:
            return markup.message(str(error), "problem")
        try:
            with self.session.reading(text) as prompt:
                values = neurons.activations(self.session.model, prompt.ids, layer, neuron)
                return card + neurons.activations_text(prompt.tokens, values)
        except DepthscopeError as error:
            return card + markup.message(str(error))

    @cached_property
    def _neuron_layers(self) -> neurons.NeuronLayers:
        return neurons.NeuronLayers(self.session.model, self.session.neurons)

    def _route(self, prompt: Prompt, typed: str, write: bool) -> str:
        """A route's card, or an error message if the route is invalid."""
        model = self.session.model
        try:
            route = comparison.read_route(typed, self.depth)
            q = comparison.last_probabilities(model, prompt.ids, route)
        except RouteError as error:
            return f"<h4>{markup.escaped(typed.strip())}</h4>{markup.message(str(error), 'problem')}"
        own = Route.own(self.depth)
        p = comparison.last_probabilities(model, prompt.ids, own)
        title = "unmodified model" if route == own else typed.strip()
        under = f"{route.name}, KL to the unmodified model {comparison.divergence(p, q):.4g} nats"
        below = comparison.written(model, comparison.continuation(model, prompt.ids, route)) if write else WRITING
        return comparison.card(title, under, self._best(q), below)

    def _best(self, probabilities: Float64[Tensor, " vocab"]) -> list[tuple[str, float]]:
        best = probabilities.topk(min(TOP, len(probabilities)))
        shown = map(self.session.vocabulary.shown, best.indices.tolist())
        return list(zip(shown, best.values.tolist(), strict=True))

    def _top(self, found: Surgery, place: int) -> list[tuple[str, float]]:
        ids, values = found.top_ids[place].tolist(), found.top_probabilities[place].tolist()
        return list(zip(map(self.session.vocabulary.shown, ids), values, strict=True))

    def _pattern(self, prompt: Prompt, layer: int, head: int) -> go.Figure:
        pattern = attention.pattern_of(prompt.baseline, layer, head)
        return attention.pattern_figure(pattern, prompt.tokens, f"Attention of head {layer}.{head}")


def _whole(what: str, number: int | float | None) -> int:
    if number is None or not 0 <= number < MOST or number != int(number):
        got = "nothing" if number is None else f"{number:g}"
        raise DataError(f"Expected a {what} as a whole number, 0 or more, got {got}.")
    return int(number)


MOST = 1_000_000
"""More layers or heads than any model has."""


WRITING = "<p class='written under'>writing …</p>"

"""Surgery: every swap and drop on one prompt at once, and the resulting predictions."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from depthscope.edit_registry import sweeps, title_of
from depthscope.engine.baseline import Baseline
from depthscope.engine.divergence import compare, reference
from depthscope.engine.measure_routes import Pieces, RouteMeter
from depthscope.errors import NumericError
from depthscope.experiments.sweep import LayerEdit, layer_edits, possible_edits, runnable
from depthscope.explore import markup
from depthscope.models.model import Model
from depthscope.routes import Route

LAST, MEAN = "last token", "mean over tokens"
AVERAGED = (LAST, MEAN)
"""Where KL is measured."""
TOGETHER = 1024
"""Tokens per call of a block: on a short prompt several routes are batched."""
FAINT, STRONG = 1e-3, 10.0
"""KL in nats at which a cell's colour starts, and at which it is full; logarithmic in between."""


@dataclass(frozen=True, slots=True)
class Surgery:
    """Route 0 is the unmodified model, route i + 1 is `edits[i]`. KL of the model to each is in nats; `top` tokens are the
    most likely ones after the last token."""

    depth: int
    edits: list[LayerEdit]
    not_done: dict[str, str]
    kl: Float32[Tensor, "routes measured"]
    """At the last token alone, or at every token."""
    top_ids: Int64[Tensor, "routes top"]
    top_probabilities: Float64[Tensor, "routes top"]

    def place(self, kind: str, layer: int) -> int | None:
        """The index of an edit's route; None if it was not run."""
        found = [i for i, edit in enumerate(self.edits) if (edit.kind, edit.layer) == (kind, layer)]
        return found[0] + 1 if found else None


def operate(model: Model, baseline: Baseline, top: int, averaged: str = LAST) -> Surgery:
    """Every swap, drop and component drop that the model supports, in one plan that shares the common parts of routes.

    KL is measured at the last token alone or, at higher cost, at all tokens. Raises NumericError, naming the route, for NaN
    or infinity.
    """
    kinds, not_done = possible_edits(None, model)
    edits, refused = runnable(layer_edits(kinds, model.depth, model.components), model)
    not_done |= refused
    meter = RouteMeter(model, [edit.route for edit in edits], Pieces(together=TOGETHER))
    routes = [Route.own(model.depth), *meter.routes]
    first = baseline.ids.shape[1] - 1 if averaged == LAST else 0
    targets, count = baseline.ids[0, first:].long(), min(top, model.unembedding.vocabulary)
    kl = torch.zeros(len(routes), len(targets))
    ids = torch.zeros(len(routes), count, dtype=torch.int64)
    probabilities = torch.zeros(len(routes), count, dtype=torch.float64)
    base = None
    for ended, hidden in meter.ends(baseline, start=first):
        base = base or reference(model.unembedding, hidden)  # the baseline route is the first to end
        copies = len(ended)
        last = hidden.unflatten(0, (copies, len(targets)))[:, -1]
        best = model.unembedding.logits(last).double().softmax(-1).topk(count)
        measured = compare(model.unembedding, base, hidden, targets)
        divergences = measured.kl.view(copies, len(targets)).cpu()
        for place, indices in enumerate(ended):
            if not bool(torch.isfinite(divergences[place]).all()):
                raise NumericError(f"NaN or infinity on the route {routes[indices[0]].name!r} of {model.name}")
            for index in indices:
                kl[index] = divergences[place] if index else 0.0
                ids[index], probabilities[index] = best.indices[place].cpu(), best.values[place].cpu()
    return Surgery(model.depth, edits, not_done, kl, ids, probabilities)


def surgery_table(surgery: Surgery, shown: list[str], averaged: str) -> str:
    """Layers × edits: the most likely next token after the prompt, coloured by KL. `shown[i]` is route i's token."""
    values = surgery.kl.double().mean(1).tolist()
    kinds = [kind for kind in sweeps() if any(edit.kind == kind for edit in surgery.edits)]
    rows = []
    for layer in range(surgery.depth):
        row = [f"<th scope='row'>{layer}</th>"]
        for kind in kinds:
            place = surgery.place(kind, layer)
            row.append("<td></td>" if place is None else _cell(kind, layer, values[place], shown[place], shown[0]))
        rows.append(row)
    caption = (
        f"The most likely next token after each edit, and KL to the unmodified model in nats ({averaged}). "
        f"The unmodified model predicts {markup.token(shown[0])}; cells with another token are framed. Choose a cell."
    )
    reasons = "".join(markup.message(f"{title_of(kind)}: {why}.") for kind, why in surgery.not_done.items())
    return markup.table(["layer", *(title_of(kind) for kind in kinds)], rows, caption, "surgery") + reasons


def _cell(kind: str, layer: int, kl: float, says: str, own: str) -> str:
    inside = f"{markup.token(says)}<small>{kl:.3g}</small>"
    title = f"{kind}({layer}): KL {kl:.4g} nats, then {says}"
    return markup.choice(f"{kind},{layer}", inside, title, strength(kl), "" if says == own else "changed")


def strength(kl: float) -> str:
    """The colour for a KL: logarithmic between FAINT and STRONG."""
    if kl <= FAINT:
        return markup.shade(0.0)
    return markup.shade(math.log(kl / FAINT) / math.log(STRONG / FAINT))


def read_cell(cell: str, surgery: Surgery) -> tuple[str, int] | None:
    """(edit's name, index of its route) for a chosen cell; None if there is no such cell."""
    kind, _, layer = cell.partition(",")
    known = layer.isdecimal() and len(layer) <= len(str(surgery.depth))
    place = surgery.place(kind, int(layer)) if known else None
    return None if place is None else (f"{kind}({layer})", place)

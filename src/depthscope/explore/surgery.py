"""Surgery: every swap and drop on one prompt at once, and what the model says then."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from depthscope.engine.baseline import Baseline
from depthscope.engine.divergence import compare, reference
from depthscope.engine.execute import execute
from depthscope.engine.plan import make_plan
from depthscope.errors import NumericError
from depthscope.experiments.sweep import EDITS, LayerEdit, layer_edits, possible_edits, runnable
from depthscope.explore import markup
from depthscope.models.model import Model
from depthscope.routes import Route
from depthscope.schema import sweep as schema

LAST, MEAN = "last token", "mean over tokens"
AVERAGED = (LAST, MEAN)
"""Where KL is taken."""
TOGETHER = 1024
"""Tokens in one call of a block: several routes go in together on a short prompt."""
FAINT, STRONG = 1e-3, 10.0
"""KL in nats at which a cell begins to be coloured, and at which it is at its fullest; logarithmic between."""
TITLES = {kind.name: kind.title for kind in schema.EDIT_KINDS.values()}


@dataclass(frozen=True, slots=True)
class Surgery:
    """Route 0 is the model's own, route i + 1 is `edits[i]`. KL of the model to each is in nats; `top` tokens are the likeliest
    after the last."""

    depth: int
    edits: list[LayerEdit]
    not_done: dict[str, str]
    kl: Float32[Tensor, "routes measured"]
    """Of the last token alone, or of every token."""
    top_ids: Int64[Tensor, "routes top"]
    top_probabilities: Float64[Tensor, "routes top"]

    def place(self, kind: str, layer: int) -> int | None:
        """The route of an edit; None where it was not done."""
        found = [i for i, edit in enumerate(self.edits) if (edit.kind, edit.layer) == (kind, layer)]
        return found[0] + 1 if found else None


def operate(model: Model, baseline: Baseline, top: int, averaged: str = LAST) -> Surgery:
    """Every swap, drop and drop of a component that the model can do, in one plan that shares what routes have in common.

    KL is taken at the last token alone or, which is more work, at all. Raises NumericError, naming the route, for NaN or
    infinity.
    """
    kinds, not_done = possible_edits(None, model)
    edits, refused = runnable(layer_edits(kinds, model.depth, model.components), model)
    not_done |= refused
    routes = [Route.own(model.depth), *(edit.route for edit in edits)]
    first = baseline.ids.shape[1] - 1 if averaged == LAST else 0
    base = reference(model.head, model.head.hidden(baseline.residuals[-1][:, first:]))
    targets, count = baseline.ids[0, first:].long(), min(top, model.head.vocabulary)
    kl = torch.zeros(len(routes), len(targets))
    ids = torch.zeros(len(routes), count, dtype=torch.int64)
    probabilities = torch.zeros(len(routes), count, dtype=torch.float64)
    plan = make_plan(routes, max(1, TOGETHER // baseline.ids.numel()))
    for ended, residual in execute(model, plan, baseline.ids, baseline.entry, baseline.residuals, baseline.states):
        copies, hidden = len(ended), model.head.hidden(residual[:, first:])
        last = hidden.unflatten(0, (copies, len(targets)))[:, -1]
        best = model.head.logits(last).double().softmax(-1).topk(count)
        measured = compare(model.head, base, hidden, targets)
        divergences = measured.kl.view(copies, len(targets)).cpu()
        for place, indices in enumerate(ended):
            if not bool(torch.isfinite(divergences[place]).all()):
                raise NumericError(f"NaN or infinity on the route {routes[indices[0]].name!r} of {model.name}")
            for index in indices:
                kl[index] = divergences[place] if index else 0.0
                ids[index], probabilities[index] = best.indices[place].cpu(), best.values[place].cpu()
    return Surgery(model.depth, edits, not_done, kl, ids, probabilities)


def surgery_table(surgery: Surgery, shown: list[str], averaged: str) -> str:
    """Layers × edits: what the model now says after the prompt, coloured by KL. `shown[i]` is route i's likeliest token."""
    values = surgery.kl.double().mean(1).tolist()
    kinds = [kind for kind in EDITS if any(edit.kind == kind for edit in surgery.edits)]
    rows = []
    for layer in range(surgery.depth):
        row = [f"<th scope='row'>{layer}</th>"]
        for kind in kinds:
            place = surgery.place(kind, layer)
            row.append("<td></td>" if place is None else _cell(kind, layer, values[place], shown[place], shown[0]))
        rows.append(row)
    caption = (
        f"What follows the prompt after each edit, and KL to the model's own prediction in nats ({averaged}). "
        f"The model itself says {markup.token(shown[0])}; framed where the edit changes that. Choose a cell."
    )
    reasons = "".join(markup.message(f"{TITLES.get(kind, kind)}: {why}.") for kind, why in surgery.not_done.items())
    return markup.table(["layer", *(TITLES[kind] for kind in kinds)], rows, caption, "surgery") + reasons


def _cell(kind: str, layer: int, kl: float, says: str, own: str) -> str:
    inside = f"{markup.token(says)}<small>{kl:.3g}</small>"
    title = f"{kind}({layer}): KL {kl:.4g} nats, then {says}"
    return markup.choice(f"{kind},{layer}", inside, title, strength(kl), "" if says == own else "changed")


def strength(kl: float) -> str:
    """The colour of a KL: logarithmic between FAINT and STRONG."""
    if kl <= FAINT:
        return markup.shade(0.0)
    return markup.shade(math.log(kl / FAINT) / math.log(STRONG / FAINT))


def read_cell(cell: str, surgery: Surgery) -> tuple[str, int] | None:
    """(edit's name, route) of a chosen cell, None for one that is not there."""
    kind, _, layer = cell.partition(",")
    known = layer.isdecimal() and len(layer) <= len(str(surgery.depth))
    place = surgery.place(kind, int(layer)) if known else None
    return None if place is None else (f"{kind}({layer})", place)

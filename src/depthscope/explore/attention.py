"""Attention on a prompt: one head's pattern, and the heads that attend most to the previous or first token."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
import torch
from jaxtyping import Float
from torch import Tensor

from depthscope.engine.baseline import Baseline
from depthscope.errors import UnsupportedError
from depthscope.explore import markup
from depthscope.explore.figures import dressed
from depthscope.models.patterns import attention_patterns
from depthscope.report.palette import GREEN

STRONGEST = 5
LABELLED = 48
"""Most tokens labelled on an axis."""


@dataclass(frozen=True, slots=True)
class HeadScore:
    """A head's mean attention to one kind of key, over the queries that have such a key."""

    layer: int
    head: int
    score: float


@dataclass(frozen=True, slots=True)
class HeadScores:
    """Every head's attention on one prompt to the previous token, and to the first token (excluding the first query)."""

    heads: list[int]
    """Number of heads with readable patterns in each block."""
    previous: list[HeadScore]
    first: list[HeadScore]


def head_scores(baseline: Baseline) -> HeadScores:
    """The scores of all heads, strongest first. Raises UnsupportedError if no block has attention patterns."""
    heads, previous, first = [], [], []
    for layer, pattern in enumerate(baseline.patterns()):
        heads.append(0 if pattern is None else pattern.shape[1])
        if pattern is None or pattern.shape[2] < 2:
            continue
        on_previous = pattern[0].double().diagonal(-1, 1, 2).mean(-1)
        on_first = pattern[0, :, 1:, 0].double().mean(-1)
        previous += [HeadScore(layer, head, score) for head, score in enumerate(on_previous.tolist())]
        first += [HeadScore(layer, head, score) for head, score in enumerate(on_first.tolist())]
    if not any(heads):
        raise UnsupportedError(f"{baseline.model.name} ({baseline.model.family}) has no attention patterns to show")
    return HeadScores(heads, *(sorted(scores, key=lambda one: -one.score) for scores in (previous, first)))


def pattern_of(baseline: Baseline, layer: int, head: int) -> Float[Tensor, "seq seq"]:
    """One head's attention from each query (rows) to each key. Raises UnsupportedError if the head does not exist."""
    name, depth = baseline.model.name, baseline.model.depth
    if not 0 <= layer < depth:
        raise UnsupportedError(f"{name} has no layer {layer}: expected 0 … {depth - 1}")
    patterns: Any = attention_patterns(baseline.model, baseline.ids, baseline.residuals)
    with closing(patterns):  # the model uses eager attention until then
        pattern = next((found for block, found in enumerate(patterns) if block == layer), None)
    if pattern is None:
        raise UnsupportedError(f"layer {layer} of {name} has no attention pattern that can be read")
    if not 0 <= head < pattern.shape[1]:
        raise UnsupportedError(f"{name} has no head {head} in layer {layer}: expected 0 … {pattern.shape[1] - 1}")
    return pattern[0, head].float().cpu()


def pattern_figure(pattern: Float[Tensor, "seq seq"], tokens: Sequence[str], name: str) -> go.Figure:
    """A heat map with queries as rows and keys as columns. Keys after the query are left empty."""
    length = len(tokens)
    labels = [f"{position} {markup.escaped(one)}" for position, one in enumerate(tokens)]
    seen = torch.where(torch.ones(length, length).tril() > 0, pattern, torch.nan).numpy()
    trace = go.Heatmap(
        z=seen,
        x=labels,
        y=labels,
        hovertemplate="%{y} → %{x}: <b>%{z:.1%}</b><extra></extra>",
        hoverongaps=False,
        colorscale=[[0, "rgba(0,158,115,0.04)"], [1, GREEN]],
        zmin=0,
        zmax=1,
        colorbar={"thickness": 10, "outlinewidth": 0, "tickformat": ".0%"},
    )
    shown = dressed(go.Figure(trace), name, height=min(760, max(360, 150 + 18 * length)))
    axis = {"type": "category", "showgrid": False, "zeroline": False, "nticks": min(length, LABELLED)}
    shown.update_xaxes(axis, title="attended to", tickangle=-60)
    shown.update_yaxes(axis, title="from", autorange="reversed")
    return shown


def strongest_heads(scores: HeadScores) -> str:
    """The strongest previous-token and first-token heads on this prompt as HTML with clickable heads."""
    return markup.columns(
        markup.table(
            ["layer.head", "mean attention"],
            [
                [
                    markup.choice(f"{one.layer},{one.head}", f"{one.layer}.{one.head}", "show this head"),
                    f"<td class='cell' style='{markup.shade(one.score)}'>{markup.percent(one.score)}</td>",
                ]
                for one in found[:STRONGEST]
            ],
            f"Most attention to {what}",
            "heads",
        )
        for what, found in (("the previous token", scores.previous), ("the first token", scores.first))
    )

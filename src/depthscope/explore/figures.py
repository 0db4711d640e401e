"""Plot style of the explorer: no background, grey text that is readable on light and dark, and no links."""

import re
from typing import Any

import plotly.graph_objects as go

from depthscope.explore import markup
from depthscope.report.palette import FONT

INK, GRID = "#7D858D", "rgba(125,133,141,0.22)"

_MARKUP = re.compile(r"<(?!/?(?:b|i|br|sub|sup|extra)\s*/?>)", re.IGNORECASE)
"""A `<` that begins something else than plain emphasis, a line break, or the end of a hover text. plotly makes links of
`<a href>` and applies styles of `<span style>`."""


def without_links(shown: go.Figure) -> go.Figure:
    """The figure with all of its texts free of links and styles, whatever a run's files put into names, labels and values.

    The panels escape what they show. This holds for the whole of a figure, also where a new panel forgets to.
    """
    return go.Figure(_plain(shown.to_plotly_json()))


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return _MARKUP.sub("&lt;", value)
    if isinstance(value, dict):
        return {key: _plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(member) for member in value]
    if getattr(value, "dtype", None) is not None and value.dtype.kind in "OU":  # an array of texts
        return [_plain(member) for member in value.tolist()]
    return value


def dressed(shown: go.Figure, title: str | None = None, height: int | None = None) -> go.Figure:
    """The figure without background and in system fonts; `title` is text, not HTML."""
    shown.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 12, "color": INK},
        dragmode=False,
        title_pad={"t": 14},
        # Below the plot, with room reserved by plotly: above it, a long legend runs into the title of a narrow window.
        legend={"orientation": "h", "yref": "container", "y": 0, "yanchor": "bottom", "x": 0, "xanchor": "left"},
    )
    shown.update_xaxes(gridcolor=GRID, zerolinecolor=GRID, linecolor=GRID, automargin=True)
    shown.update_yaxes(gridcolor=GRID, zerolinecolor=GRID, linecolor=GRID, automargin=True)
    if title is not None:
        shown.update_layout(title={"text": markup.escaped(title), "font": {"size": 14}}, margin={"t": 44, "r": 8})
    if height is not None:
        shown.update_layout(height=height)
    return without_links(shown)

"""Plot style of the explorer: no background, and grey text that is readable on light and dark."""

import plotly.graph_objects as go

from depthscope.explore import markup
from depthscope.report.palette import FONT

INK, GRID = "#7D858D", "rgba(125,133,141,0.22)"


def dressed(shown: go.Figure, title: str | None = None, height: int | None = None) -> go.Figure:
    """The figure without background and in system fonts; `title` is text, not HTML."""
    shown.update_layout(
        template="none",
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 12, "color": INK},
        dragmode=False,
        title_pad={"t": 14},
    )
    shown.update_xaxes(gridcolor=GRID, zerolinecolor=GRID, linecolor=GRID, automargin=True)
    shown.update_yaxes(gridcolor=GRID, zerolinecolor=GRID, linecolor=GRID, automargin=True)
    if title is not None:
        shown.update_layout(title={"text": markup.escaped(title), "font": {"size": 14}}, margin={"t": 44, "r": 8})
    if height is not None:
        shown.update_layout(height=height)
    return shown

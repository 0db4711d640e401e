"""The page's pictures, drawn from the reference runs and the measurements of single layers.

A PNG records the hash of the numbers it shows, so that a test can tell whether it is up to date.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.findings.costly_layers import CHANGES
from benchmarks.findings.evidence import Curve, swept
from benchmarks.findings.interventions import KEPT, LOST
from depthscope.report.canvas import drawn
from depthscope.report.charts import Curve as Line
from depthscope.report.charts import layers, lines
from depthscope.report.palette import DROP, INK, OWN, PURPLE, SOFT
from depthscope.report.panels import Panel
from depthscope.report.publish import STYLE
from depthscope.run.files import atomic_file
from depthscope.run.references import about
from depthscope.run.store import RunDirectory
from depthscope.schema.sweep import AGREEMENT

MOST = 0.95
"""The upper end of the range the paper gives."""
SHOWN = ("drop", "drop_attn", "drop_mlp", "drop_rest", "drop_first", "drop_mlp_first", "only_coordinate")
"""The changes that the second picture compares."""
DPI = 160
HEADING = (
    "Predictions that stay the same when a layer is dropped, 95% intervals. Green: 72–95%, which Lad et al. 2024 report for "
    "middle layers."
)


def save(figure: Figure, file: Path, numbers: Any) -> None:
    """Write a figure as PNG with the hash of its numbers."""
    with atomic_file(file) as stream:
        figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": "", "Description": fingerprint(numbers)})


def fingerprint(numbers: Any) -> str:
    """A hash of the numbers a picture shows."""
    return hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()


def recorded(file: Path) -> str | None:
    """The hash of the numbers that a picture was drawn from."""
    with Image.open(file) as image:
        return image.info.get("Description")


def drop_numbers(runs: Sequence[RunDirectory]) -> Any:
    """What `drops` shows: per model the agreement kept without each layer."""
    found = {}
    for run in runs:
        curve = swept(run, "drop", AGREEMENT)
        rows = [[layer, value.mean, value.low, value.high] for layer, value in curve.values.items()]
        found[run.path.name] = {"heading": heading(run, curve), "rows": rows}
    return found


def heading(run: RunDirectory, curve: Curve) -> str:
    """A model's title with what was measured."""
    facts = about(run)
    stored = f" ({facts['quantisation']})" if facts.get("quantisation") else ""
    return f"{facts.get('title', run.path.name)}{stored}: {curve.tokens:,} tokens, {curve.documents} documents"


def drops(runs: Sequence[RunDirectory]) -> Figure:
    """Top-1 agreement kept without each layer, a panel per model, over the range that the paper gives for middle layers."""
    panels = [_drop_panel(run) for run in runs]
    with mpl.rc_context({**STYLE, "font.size": 7.5}):
        figure = drawn(panels, 2, HEADING)
        plots = [axes for axes in figure.axes if axes.lines]
        for axes, run in zip(plots, runs, strict=True):
            axes.axhspan(KEPT, MOST, color="#009E73", alpha=0.13, linewidth=0, zorder=0)
            _mark_outliers(axes, swept(run, "drop", AGREEMENT))
    return figure


def _drop_panel(run: RunDirectory) -> Panel:
    curve = swept(run, "drop", AGREEMENT)
    line = Line(look=DROP, values=curve.values, call="drop({})", title="layer dropped")
    return lines(run.path.name, heading(run, curve), AGREEMENT, [line], layers(curve.depth), unit="")


def _mark_outliers(axes: Axes, curve: Curve) -> None:
    """The numbers of the middle layers without which most predictions surely change."""
    every = curve.together(curve.middle)
    for layer, value in every.items():
        if value.high is not None and value.high < LOST:
            low, peak = (
                value.mean < 0.12,
                value.mean > max(every[near].mean for near in (layer - 1, layer + 1) if near in every),
            )
            place = (4, -1) if low else (0, 4 if peak else -9)
            axes.annotate(
                f"{layer}",
                (layer, value.mean),
                xytext=place,
                textcoords="offset points",
                ha="left" if low else "center",
                fontsize=6.5,
                color=INK[0],
            )


def layer_picture(name: str, layer: int) -> str:
    """The file of a picture of one layer."""
    return f"findings-{name}-layer-{layer}.png"


def layer_numbers(measured: dict[str, Any], layer: int) -> Any:
    """What `costly_layer` shows."""
    own = measured["layers"][str(layer)]
    return {
        "stream": [measured["stream"]["first"], measured["stream"]["rest"]],
        "kl": {change: own["changes"][change]["kl"] for change in SHOWN},
        "attention": {change: own["attention_on_first"][change] for change in ("none", "drop", "only_coordinate")},
    }


def costly_layer(measured: dict[str, Any], layer: int) -> Figure:
    """Three panels: the largest value in the residual stream by depth, what taking away parts of the layer costs, and the
    attention on the first token with and without the layer."""
    with mpl.rc_context({**STYLE, "font.size": 7.5}):
        figure = Figure(figsize=(7.2, 2.5), layout="constrained")
        stream, costs, sinks = figure.subplots(1, 3, width_ratios=(1, 1.05, 1))
        _stream(stream, measured["stream"], layer)
        _costs(costs, measured["layers"][str(layer)]["changes"])
        _sinks(sinks, measured["layers"][str(layer)]["attention_on_first"], layer)
    return figure


def _stream(axes: Axes, stream: dict[str, Any], layer: int) -> None:
    first = [mean for mean, _, _ in stream["first"]]
    axes.semilogy(first, color=PURPLE, marker="o", markersize=2.5, linewidth=1.1, label="first token")
    axes.semilogy(stream["rest"], color=SOFT[0], marker="s", markersize=2, linewidth=1.1, label="other tokens, median")
    axes.axvline(layer + 0.5, color=DROP.light, linewidth=0.8, linestyle=":")
    axes.annotate(
        f"layer {layer}", (layer + 0.5, 0.92), (-3, 0), xycoords=axes.get_xaxis_transform(),
        textcoords="offset points", fontsize=6.5, color=DROP.light, ha="right",
    )  # fmt: skip
    axes.set_title("Largest coordinate of the residual stream", loc="left", fontsize=7.5, fontweight="bold")
    axes.set_xlabel("depth l of x_l")
    axes.grid(axis="both")
    axes.legend(frameon=False, fontsize=6.5, loc="lower right")


def _costs(axes: Axes, changes: dict[str, Any]) -> None:
    shown = [(change, changes[change]["kl"]) for change in SHOWN]
    for place, (change, (mean, low, high)) in enumerate(shown[::-1]):
        colour = PURPLE if change == "only_coordinate" else DROP.light
        axes.barh(place, mean, color=colour, alpha=0.75, height=0.62)
        if low is not None:
            axes.plot([low, high], [place, place], color=INK[0], linewidth=0.9)
        axes.annotate(
            f"{mean:.2f}", (high or mean, place), (3, 0), textcoords="offset points", va="center", fontsize=6.5
        )
    axes.set_yticks(range(len(shown)), [SHORT[change] for change, _ in shown[::-1]], fontsize=6.5)
    axes.set_xlim(0, 1.25 * max(high or mean for _, (mean, _, high) in shown))
    axes.set_title("KL when this is taken away (nats)", loc="left", fontsize=7.5, fontweight="bold")
    axes.grid(axis="x")


def _sinks(axes: Axes, attention: dict[str, Any], layer: int) -> None:
    looks = {"none": (OWN.light, "o"), "drop": (DROP.light, "s"), "only_coordinate": (PURPLE, "D")}
    for change, (colour, marker) in looks.items():
        values = [mean for mean, _, _ in attention[change]]
        # What is taken away changes nothing before the layer.
        start = 0 if change == "none" else layer + 1
        axes.plot(
            range(start, len(values)), values[start:], color=colour, marker=marker, markersize=2.2, linewidth=1.1,
            label=SINKS[change],
        )  # fmt: skip
    axes.axvline(layer, color=DROP.light, linewidth=0.8, linestyle=":")
    axes.set_ylim(-0.02, 1.02)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
    axes.set_title("Attention on the first token", loc="left", fontsize=7.5, fontweight="bold")
    axes.set_xlabel("layer")
    axes.grid(axis="both")
    axes.legend(frameon=False, fontsize=6.5, loc="upper left")


SHORT = {
    "drop": "the layer",
    "drop_attn": "its attention",
    "drop_mlp": "its MLP",
    "drop_rest": "the layer,\nnot at first token",
    "drop_first": "the layer,\nat first token only",
    "drop_mlp_first": "its MLP,\nat first token only",
    "only_coordinate": "the layer, except\none number",
}
SINKS = {"none": "unmodified", "drop": "layer dropped", "only_coordinate": "dropped, except one number"}
assert set(SHORT) <= set(CHANGES)

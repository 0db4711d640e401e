"""The figures by name, each as one plotly figure for notebooks; the page uses the same panels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from depthscope.errors import DepthscopeError, RunError
from depthscope.report.palette import FONT
from depthscope.report.panels import AXES, LAYER, Heat, Panel
from depthscope.report.section import Kind, Section
from depthscope.report.sections import (
    ablation,
    attention,
    dependency,
    depth_probes,
    depth_regime,
    dimension,
    effective_depth,
    entropy_neurons,
    geometry,
    guess_refine,
    heads,
    influence,
    layer_maps,
    lens,
    linearity,
    massive,
    neurons,
    norms,
    overview,
    painters,
    patching,
    probes,
    prune,
    similarity,
    sinks,
    stages,
    sweep,
    tasks,
    token_classes,
)
from depthscope.report.sections.default import default_section
from depthscope.report.traces import Cell, alone, axis_key, hovermode, layout, plain, traces, with_margins
from depthscope.report.unexpected import as_run_error
from depthscope.run.store import RunDirectory
from depthscope.schema.declaration import Experiment
from depthscope.schema.experiments import EXPERIMENTS, declared_experiments
from depthscope.schema.metric import Metric

FIGURES: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        overview.KIND,
        stages.KIND,
        *sweep.KINDS,
        lens.KIND,
        effective_depth.KIND,
        guess_refine.KIND,
        neurons.KIND,
        probes.KIND,
        norms.KIND,
        attention.KIND,
        sinks.KIND,
        massive.KIND,
        heads.KIND,
        similarity.KIND,
        influence.KIND,
        geometry.KIND,
        tasks.KIND,
        layer_maps.KIND,
        painters.KIND,
        dependency.KIND,
        *token_classes.KINDS,
        dimension.KIND,
        dimension.TRAJECTORY_KIND,
        ablation.HEAD_KIND,
        ablation.NEURON_KIND,
        linearity.KIND,
        depth_probes.KIND,
        patching.KIND,
        depth_regime.KIND,
        entropy_neurons.KIND,
    )
}
"""The built-in figures, in the order of the page."""
Drawn = tuple[list[dict[str, Any]], dict[str, Any]]
"""Traces and layout of a figure."""
SEPARATE: dict[str, Kind] = {prune.KIND.name: prune.KIND}
"""Figures of experiments that are no part of a study, for runs that have them."""


def figures(run: RunDirectory | None = None) -> dict[str, Kind]:
    """All figures by name: FIGURES, then a default one for every table of an experiment without its own figure.

    With a run, first those of its experiments that are no part of a study, and last those of tables of experiments not
    registered here: a reader of a run need not have registered them.
    """
    drawn = {kind.experiment for kind in FIGURES.values()}
    others = {
        name: _default(experiment, name, table.metrics)
        for experiment in EXPERIMENTS.values()
        if experiment.name not in drawn
        for name, table in experiment.tables.items()
    }
    declared = {name for experiment in declared_experiments().values() for name in experiment.tables}
    declared |= {name for kind in FIGURES.values() for name in kind.more_tables}
    declared |= {Path(kind.file).stem for kind in FIGURES.values()}
    requested = [] if run is None else run.settings.experiments
    separate = {name: kind for name, kind in SEPARATE.items() if kind.experiment in requested}
    unknown = {} if run is None else {name: _default(name, name, ()) for name in run.tables() if name not in declared}
    return {**separate, **FIGURES, **others, **unknown}


def _default(experiment: Experiment | str, name: str, metrics: Sequence[Metric]) -> Kind:
    """The default figure of a table; `experiment` is a name if the experiment is not registered."""
    known = isinstance(experiment, Experiment)
    title = experiment.title.rstrip(".") if isinstance(experiment, Experiment) else name.replace("_", " ").capitalize()
    several = isinstance(experiment, Experiment) and len(experiment.tables) > 1

    def build(run: RunDirectory) -> Section:
        return default_section(name, title, run.table(name), metrics)

    return Kind(
        name=name,
        title=f"{title} ({name})" if several else title,
        source=experiment.source if known else "an experiment that is not registered here",
        experiment=experiment.name if known else experiment,
        file=f"tables/{name}.parquet",
        build=build,
    )


def figure(run: RunDirectory, name: str, axis: str = LAYER) -> go.Figure:
    """A figure of a run by its name: the page's panels in a grid.

    Error bars are 95% intervals over documents; `customdata` holds layer, relative depth and the interval's bounds. `axis` is
    `layer` or `relative depth`; panels with another x axis are unchanged. Raises DepthscopeError for an unknown name or axis,
    RunError if the run has no data for the figure.
    """
    there = figures(run)
    if name not in there:
        raise DepthscopeError(f"unknown figure {name!r}: expected one of {', '.join(there)}")
    if axis not in AXES:
        raise DepthscopeError(f"unknown axis {axis!r}: expected one of {', '.join(AXES)}")
    section = there[name].section(run)
    if not section.panels:
        raise RunError(f"{run.path} has no data for the figure {name!r}. {' '.join(section.missing)}".strip())
    with as_run_error(run.path, f"the figure {name!r}"):
        drawn, whole = _alone(section.panels[0], axis) if len(section.panels) == 1 else grid(section, axis)
    whole |= {
        "title": {
            "text": plain(f"{there[name].title}: {run.settings.subject}"),
            "x": 0,
            "xref": "paper",
            "y": 1,
            "yref": "container",
            "yanchor": "top",
        },
        "template": "plotly_white",
        "font": {"family": FONT, "size": 13},
        "legend": {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.12, "yanchor": "bottom"},
        "margin": {"l": 56, "r": 24, "t": 92, "b": 56},
    }
    return go.Figure(drawn, with_margins(whole))  # made once: plotly checks all of a figure whenever it is changed


def _alone(panel: Panel, axis: str) -> Drawn:
    cell = alone(panel)
    whole = {**layout(panel, cell, x_is=axis), "height": panel.height + 120}
    return traces(panel, cell, x_is=axis), whole if panel.together else whole | {"hovermode": "closest"}


def grid(section: Section, axis: str) -> Drawn:
    """A section's panels in rows of `across`, with one legend entry per curve name."""
    columns = min(section.across, len(section.panels))
    rows = -(-len(section.panels) // columns)
    maps = any(isinstance(mark, Heat) for panel in section.panels for mark in panel.marks)
    whole: dict[str, Any] = make_subplots(
        rows=rows,
        cols=columns,
        horizontal_spacing=0.14 if maps else 0.09,
        vertical_spacing=0.32 / rows,
        subplot_titles=[plain(panel.called) for panel in section.panels],
    ).layout.to_plotly_json()
    whole |= {"height": 120 + 300 * rows, "hovermode": hovermode(section.panels)}
    drawn: list[dict[str, Any]] = []
    named: set[str] = set()
    free = len(section.panels) + 1
    for place, panel in enumerate(section.panels):
        cell = _cell(whole, panel, place, free)
        free += len(panel.y) - 1
        for trace in traces(panel, cell, x_is=axis):
            if trace["type"] == "heatmap":
                trace["colorbar"] = trace.get("colorbar", {}) | _beside(whole, cell)
            elif trace.get("showlegend", True):
                trace |= {"legendgroup": trace["name"], "showlegend": trace["name"] not in named}
                named.add(trace["name"])
            drawn.append(trace)
        for key, value in layout(panel, cell, x_is=axis).items():
            if key in ("shapes", "annotations"):
                whole[key] = [*whole.get(key, ()), *value]
            else:
                whole[key] = whole.get(key, {}) | value if isinstance(value, dict) else value
    return drawn, whole


def _cell(whole: Mapping[str, Any], panel: Panel, place: int, free: int) -> Cell:
    """A subplot's axes; further rows of its panel get separate y axes, numbered from `free`."""
    number = "" if place == 0 else str(place + 1)
    more = (f"y{free + row}" for row in range(len(panel.y) - 1))
    return Cell(x=f"x{number}", y=(f"y{number}", *more), height=tuple(whole[f"yaxis{number}"]["domain"]))


def _beside(whole: Mapping[str, Any], cell: Cell) -> dict[str, Any]:
    """Where a colour bar is next to its subplot."""
    low, high = cell.height
    beside = whole[axis_key(cell.x)]["domain"][1]
    return {"x": beside, "xanchor": "left", "y": (low + high) / 2, "len": high - low}

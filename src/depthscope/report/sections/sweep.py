"""Layer swaps and drops, and drops of attention and MLP (the paper's figures 3 and 13 to 15)."""

from functools import partial

from depthscope.report import findings
from depthscope.report.measured import SWEEP, Measured, read_sweep
from depthscope.report.palette import SHOWN
from depthscope.report.panels import Curve, layers, lines
from depthscope.report.section import Kind, Section
from depthscope.run.store import RunDirectory
from depthscope.schema.sweep import AGREEMENT, ENTROPY_CHANGE, KL, METRICS

PANELS = (KL, AGREEMENT, ENTROPY_CHANGE)
WHOLE, PARTS = "sweep", "components"
SHOWS = {WHOLE: ("swap", "drop"), PARTS: ("drop", "drop_attn", "drop_ssm", "drop_mlp", "drop_ple")}
"""The edits laid over each other."""
NEEDS = {WHOLE: ("swap", "drop"), PARTS: ("drop_attn", "drop_mlp")}
"""Without one of these the figure says nothing of its own."""


def build(name: str, run: RunDirectory) -> Section:
    """Three panels: KL in nats on a logarithmic axis (the first layer dwarfs the rest on a linear one), agreement as a
    share, change in entropy in nats."""
    measured = read_sweep(run)
    there = [edit for edit in SHOWS[name] if edit in measured.edits]
    there = there if set(there) & set(NEEDS[name]) else []
    panels = [
        lines(
            f"{name}-{metric.name}",
            metric.title,
            metric,
            [Curve(look=SHOWN[edit], values=measured.series(edit, metric), call=f"{edit}({{}})") for edit in there],
            layers(measured.depth),
            log=metric is KL,
        )
        for metric in PANELS
        if there
    ]
    return Section(
        panels=panels,
        sentences=findings.components(measured) if name == PARTS and there else (),
        legend=[SHOWN[edit] for edit in there],
        missing=[_why_missing(edit, measured, run) for edit in NEEDS[name] if edit not in measured.edits],
        definitions=[*(SHOWN[edit] for edit in there), *METRICS.values()] if there else (),
        log_note=findings.zeros_note(measured, there),
    )


def _why_missing(edit: str, measured: Measured, run: RunDirectory) -> str:
    title, not_done = SHOWN[edit].title, run.manifest.get("not_done", {})
    if edit in not_done:
        return f"{title} could not be done: {not_done[edit]}."
    if edit == "swap" and measured.depth == 1:
        return f"{title}: a model of one layer has no neighbours that could change places."
    return f"{title} was not part of this run."


KINDS = (
    Kind(
        name=WHOLE,
        title="Layer swaps and drops",
        source="Lad et al. 2024, figures 2 and 3",
        experiment=SWEEP,
        file=f"tables/{SWEEP}.parquet",
        build=partial(build, WHOLE),
        look_for="a first layer that stands far above all others, a flat middle where most predictions survive, swaps that "
        "cost less than drops, and a rise at the end.",
    ),
    Kind(
        name=PARTS,
        title="Layer, attention and MLP drops",
        source="Lad et al. 2024, figures 13 to 15",
        experiment=SWEEP,
        file=f"tables/{SWEEP}.parquet",
        build=partial(build, PARTS),
        look_for="which half of a layer carries its cost: layers where attention’s curve lies above the MLP’s, and where "
        "the drop of both costs more than the two drops together.",
    ),
)

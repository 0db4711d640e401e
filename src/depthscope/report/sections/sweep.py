"""Layer swaps and drops, and drops of attention and MLP (the paper's figures 3 and 13 to 15)."""

from functools import partial

from depthscope.edit_registry import sweeps, title_of
from depthscope.report import findings
from depthscope.report.charts import Curve, layers, lines
from depthscope.report.measured import SWEEP, SweepValues, read_sweep
from depthscope.report.palette import edit_looks
from depthscope.report.section import Kind, Section
from depthscope.run.store import RunDirectory
from depthscope.schema.measures import metrics_of
from depthscope.schema.sweep import AGREEMENT, ENTROPY_CHANGE, KL, METRICS

PANELS = (KL, AGREEMENT, ENTROPY_CHANGE)
WHOLE, PARTS = "sweep", "components"
EXPECTED = {WHOLE: ("swap", "drop"), PARTS: ("drop_attn", "drop_mlp")}
"""The edits expected in each figure: it reports why one is missing."""


def build(name: str, run: RunDirectory) -> Section:
    """Three panels: KL in nats on a logarithmic axis (the first layer dwarfs the rest on a linear one), agreement as a
    share, change in entropy in nats. Each registered measure adds a panel."""
    measured = read_sweep(run)
    there, looks = _shown(name, measured), edit_looks(measured.edits)
    panels = [
        lines(
            f"{name}-{metric.name}",
            metric.title,
            metric,
            [Curve(look=looks[edit], values=measured.series(edit, metric), call=f"{edit}({{}})") for edit in there],
            layers(measured.depth),
            log=metric is KL,
        )
        for metric in (*PANELS, *measured.more)
        if there
    ]
    return Section(
        panels=panels,
        sentences=findings.components(measured) if name == PARTS and there else (),
        legend=[looks[edit] for edit in there],
        missing=[_why_missing(edit, measured, run) for edit in EXPECTED[name] if edit not in measured.edits],
        definitions=[*(looks[edit] for edit in there), *METRICS.values(), *metrics_of(measured.more).values()]
        if there
        else (),
        log_note=findings.zeros_note(measured, there),
    )


def _shown(name: str, measured: SweepValues) -> list[str]:
    """The edits overlaid in a figure: those of whole layers, or those of components with the drop of the layer."""
    of_components = [edit for edit, how in sweeps().items() if how.component is not None]
    parts = [edit for edit in measured.edits if edit in of_components]
    if name == WHOLE:
        return [edit for edit in measured.edits if edit not in parts]
    return [edit for edit in measured.edits if edit == "drop" or edit in parts] if parts else []


def _why_missing(edit: str, measured: SweepValues, run: RunDirectory) -> str:
    title, not_done = title_of(edit), run.manifest.not_done
    if edit in not_done:
        return f"{title} could not be done: {not_done[edit]}."
    if edit == "swap" and measured.depth == 1:
        return f"{title}: a one-layer model has no neighbouring layers to swap."
    return f"{title} was not part of this run."


KINDS = (
    Kind(
        name=WHOLE,
        title="Layer swaps and drops",
        source="Lad et al. 2024, figures 2 and 3",
        experiment=SWEEP,
        file=f"tables/{SWEEP}.parquet",
        build=partial(build, WHOLE),
        look_for="a first layer far above all others, a flat middle where most predictions survive, swaps that "
        "cost less than drops, and a rise at the end.",
    ),
    Kind(
        name=PARTS,
        title="Layer, attention and MLP drops",
        source="Lad et al. 2024, figures 13 to 15",
        experiment=SWEEP,
        file=f"tables/{SWEEP}.parquet",
        build=partial(build, PARTS),
        look_for="which component accounts for a layer’s cost: layers where attention’s curve is above the MLP’s, and where "
        "dropping both costs more than the sum of the two drops.",
    ),
)

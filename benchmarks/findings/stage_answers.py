"""What the stage finder says of each model (E12), for the findings page."""

from collections.abc import Sequence

from benchmarks.findings.markdown import table
from depthscope.run.references import about
from depthscope.run.store import RunDirectory
from depthscope.schema.found_stages import Stages
from depthscope.schema.stages import STAGES, SUPPORTED, verdict_shown

INTRODUCTION = """
## The four stages

The [stage finder](../stages.md) compares every model with signals that change smoothly with depth, and names a transition only
where readings confirm what interventions found, few other hypotheses fit as well, and the stage's defining signature holds. A
model of fewer than 16 layers is too shallow for a name whatever it shows.
""".strip()


def stage_sections(runs: Sequence[RunDirectory]) -> list[str]:
    """The finder's answer on each model, and the verdict on each signature."""
    found = {about(run).get("title") or run.path.name: run.stages for run in runs}
    known = {name: stages for name, stages in found.items() if stages is not None and stages.structure is not None}
    if not known:
        return []
    return [INTRODUCTION, _answers(known), *_summaries(known), "### Signatures of table 1", _signatures(known)]


def _answers(found: dict[str, Stages]) -> str:
    rows = []
    for name, stages in found.items():
        assert stages.structure is not None
        edges = [f"layer {one.layer} ({one.signal}, {one.ratio:.3g}×)" for one in stages.edges if one.exceptional]
        named = [f"{STAGES[one.after].lower()} from layer {one.layer}" for one in stages.boundaries if one.after]
        best = min(stages.shapes, key=lambda shape: shape.error)
        rows.append(
            (
                name,
                f"{stages.layers}",
                f"{'yes' if stages.structure.beyond_smooth else 'no'} (p = {stages.structure.p:.2g})",
                "; ".join(named) or "none",
                "; ".join(edges) or "none",
                best.title,
            )
        )
    head = (
        "model",
        "layers",
        "a step beyond smooth change",
        "stages named",
        "exceptional ends",
        "best shape over depth",
    )
    return table(head, rows, right=(1,))


def _summaries(found: dict[str, Stages]) -> list[str]:
    """Why each transition is not named."""
    lines = []
    for name, stages in found.items():
        reasons = {one.reason for one in stages.transitions if not one.named}
        lines.append(f"- **{name}**: {stages.summary}" + (f" ({'; '.join(sorted(reasons))})" if reasons else ""))
    return ["\n".join(lines)]


def _signatures(found: dict[str, Stages]) -> str:
    cells: dict[str, dict[str, str]] = {}
    for name, stages in found.items():
        for one in stages.signatures:
            shown = verdict_shown(one.verdict)
            effect = str(one).rsplit(" (", 1)[1].split(";")[0] if one.effect is not None else ""
            said = f"**{shown}**" if one.verdict == SUPPORTED else shown
            label = f"{one.title}{' (defining)' if one.defining else ''}"
            cells.setdefault(label, {})[name] = f"{said} {effect}".strip()
    rows = [(title, *(verdicts.get(name, "–") for name in found)) for title, verdicts in cells.items()]
    return table(("signature", *found), rows)

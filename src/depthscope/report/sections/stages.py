"""The stages that were found, with how sure their boundaries are, and the signatures they were told by."""

import json
from typing import Any

from depthscope.errors import RunError
from depthscope.report.measured import NBSP
from depthscope.report.section import Kind, Section, TextTable
from depthscope.report.sections.stage_map import boundary, changes, said_number, span, stage_map, stage_title
from depthscope.run.store import RunDirectory
from depthscope.schema.metric import Metric

NAME = "stages"
NO_MAP = "So there is no map of the layers: the signals were not compared."
FILE = "stages.json"


def read_stages(run: RunDirectory) -> dict[str, Any]:
    """What the stage finder wrote. Raises RunError where it wrote nothing, or it cannot be read."""
    file = run.path / FILE
    if not file.exists():
        raise RunError(f"{run.path} has no {FILE}: stages were not looked for")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read: {error}") from error
    expected = ("found", "summary", "layers", "stages", "boundaries", "signals", "signatures")
    missing = [key for key in expected if key not in found] if isinstance(found, dict) else expected
    if missing:
        raise RunError(f"{file} lacks {', '.join(missing)}")
    return found


def build(run: RunDirectory) -> Section:
    """The map of the stages over the signals, the stages' boundaries, and the table of signatures."""
    found = read_stages(run)
    compared = any(signal.get("standardised") for signal in found["signals"])
    return Section(
        panels=[stage_map(found)] if compared or found["stages"] else [],
        sentences=[found["summary"], *(boundary(one) for one in changes(found))],
        missing=[] if compared or found["stages"] else [NO_MAP],
        tables=[
            table
            for table in (_stages(found), _signatures(found), *([] if compared else [_signals(found)]))
            if table.rows
        ],
        notes=[
            *(
                ["Points beneath the stages are the changes, their bars 95% intervals from resampling documents."]
                if any(one["low"] is not None for one in changes(found))
                else []
            ),
            "Each strip shows how far a signal lies from its median over layers, in robust spreads, as stages are found by it: "
            "from 3 below (the page’s colour) to 3 above, cut there.",
        ],
        definitions=[Metric(s["name"], s["unit"], s["title"], s["sentence"]) for s in found["signals"]],
        across=1,
    )


def _stages(found: dict[str, Any]) -> TextTable:
    rows = [
        (
            stage["title"],
            span(stage),
            f"{stage['supported']} of {stage['signatures']}" if "signatures" in stage else "–",
        )
        for stage in found["stages"]
    ]
    return TextTable(title="The stages", head=("Stage", "Layers", "Signatures supported"), rows=rows)


def _signatures(found: dict[str, Any]) -> TextTable:
    rows = [
        (
            stage_title(one["stage"]),
            one["title"],
            (one["verdict"], one.get("reason") or ""),
            (said_number(one["effect"], one["unit"]), _bracket(one)),
            one["test"],
        )
        for one in found["signatures"]
    ]
    head = ("Stage", "Signature", "Verdict", "Effect", "Test")
    return TextTable(title="The signatures of the stages", head=head, rows=rows, words=True)


def _signals(found: dict[str, Any]) -> TextTable:
    """The signals as they were measured, where they were not set beside each other in a map."""
    rows = [
        (signal["title"], *(said_number(value, signal["unit"]) for value in signal["values"]))
        for signal in found["signals"]
    ]
    return TextTable(title="The signals by layer", head=("Signal", *map(str, range(found["layers"]))), rows=rows)


def _bracket(one: dict[str, Any]) -> str:
    if one["ci_low"] is None or one["ci_high"] is None:
        return ""
    return f"{said_number(one['ci_low'], one['unit'])}{NBSP}to{NBSP}{said_number(one['ci_high'], one['unit'])}"


KIND = Kind(
    name=NAME,
    title="The stages",
    source="Lad et al. 2024, figure 1 and table 1",
    experiment=NAME,
    file=FILE,
    build=build,
    look_for="strips that turn together at a boundary; boundaries with a short bar, which most signals would place alike; "
    "and verdicts, which say which parts of the hypothesis this model bears out.",
)

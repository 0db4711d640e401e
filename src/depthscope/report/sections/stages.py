"""The stages found, the certainty of their boundaries, and the signatures that support them."""

from depthscope.errors import RunError
from depthscope.report.measured import NBSP
from depthscope.report.section import Kind, Section, TextTable
from depthscope.report.sections.stage_map import boundary, changes, said_number, span, stage_map, stage_title
from depthscope.report.sections.stage_tests import edge_table, established, places_panel, transition_table
from depthscope.run.store import STAGES, RunDirectory
from depthscope.schema.found_stages import SignatureVerdict, Stages
from depthscope.schema.metric import Metric
from depthscope.schema.stages import verdict_shown

NAME = "stages"
NO_MAP = "There is no map of the layers: the signals were not compared."


def read_stages(run: RunDirectory) -> Stages:
    """The stage finder's result. Raises RunError if it is missing or cannot be read."""
    found = run.stages
    if found is None:
        raise RunError(f"{run.path} has no {STAGES}: the run did not look for stages")
    return found


def build(run: RunDirectory) -> Section:
    """The map of stages and signals, sentences on the boundaries, and the tables of stages and signatures."""
    found = read_stages(run)
    compared = any(signal.standardised for signal in found.signals)
    return Section(
        panels=[stage_map(found), *places_panel(found)] if compared or found.stages else [],
        sentences=[found.summary, *established(found), *(boundary(one) for one in changes(found))],
        missing=[] if compared or found.stages else [NO_MAP],
        tables=[
            table
            for table in (
                _stages(found),
                transition_table(found),
                edge_table(found),
                _signatures(found),
                *([] if compared else [_signals(found)]),
            )
            if table.rows
        ],
        notes=[
            *(
                ["Points below the stages are changes; their bars are 95% intervals over documents and layer noise."]
                if any(one.low is not None for one in changes(found))
                else []
            ),
            "Each strip shows a signal’s distance from its median over layers, in robust spreads: from 3 below (background "
            "colour) to 3 above, clipped there. The first and the last layer are tested by themselves, not as stages.",
        ],
        definitions=[Metric(s.name, s.unit, s.title, s.sentence) for s in found.signals],
        across=1,
    )


def _stages(found: Stages) -> TextTable:
    rows = [(stage.title, span(stage), f"{stage.supported} of {stage.signatures}") for stage in found.stages]
    return TextTable(title="The stages", head=("Stage", "Layers", "Signatures supported"), rows=rows)


def _signatures(found: Stages) -> TextTable:
    rows = [
        (
            stage_title(one.stage),
            (one.title, "defines the stage") if one.defining else one.title,
            (verdict_shown(one.verdict), one.reason),
            (said_number(one.effect, one.unit), _bracket(one)),
            one.test,
        )
        for one in found.signatures
    ]
    head = ("Stage", "Signature", "Verdict", "Effect", "Test")
    return TextTable(title="The signatures of the stages", head=head, rows=rows, words=True)


def _signals(found: Stages) -> TextTable:
    """The measured signals, for runs without a map that compares them."""
    rows = [
        (
            signal.title,
            *(said_number(value, signal.unit) for value in signal.values),
            *["–"] * (found.layers - len(signal.values)),
        )
        for signal in found.signals
    ]
    return TextTable(title="The signals by layer", head=("Signal", *map(str, range(found.layers))), rows=rows)


def _bracket(one: SignatureVerdict) -> str:
    if one.ci_low is None or one.ci_high is None:
        return ""
    return f"{said_number(one.ci_low, one.unit)}{NBSP}to{NBSP}{said_number(one.ci_high, one.unit)}"


KIND = Kind(
    name=NAME,
    title="The stages",
    source="Lad et al. 2024, figure 1 and table 1",
    experiment=NAME,
    file=STAGES,
    build=build,
    look_for="what is established: a step beyond smooth change, an exceptional end, a named transition with a short bar; why "
    "the other transitions are not named; and the verdicts on the parts of the hypothesis.",
)

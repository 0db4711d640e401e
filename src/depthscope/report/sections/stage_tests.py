"""What the stage finder established: the tests of the transitions, the ends of the model, and the shape over depth."""

from dataclasses import replace

from depthscope.report.charts import Curve, layers, lines
from depthscope.report.measured import Value
from depthscope.report.palette import OWN
from depthscope.report.panels import Panel
from depthscope.report.section import TextTable
from depthscope.report.sections.stage_map import in_sentence, said_number, stage_title
from depthscope.schema.found_stages import DepthShape, Edge, Stages, Transition
from depthscope.schema.metric import Metric
from depthscope.schema.stages import SIGNALS, verdict_shown

STYLES = (("circle", "solid"), ("square", "dash"), ("diamond", "dot"))
PLACES = Metric(
    "places",
    "share",
    "Share of resamples",
    "share of resamples of documents and layer noise in which the transition is named and its later stage begins at this layer",
    0.0,
    1.0,
)


def established(found: Stages) -> list[str]:
    """What is established whether or not stages are, in sentences."""
    said = []
    if found.structure is not None:
        beyond = "have" if found.structure.beyond_smooth else "do not have"
        said.append(
            f"The signals {beyond} a step beyond smooth change with depth and autocorrelated noise "
            f"({_said_p(found.structure.p)}; level {100 * found.structure.level:g} %)."
        )
    if shape := _best_shapes(found.shapes):
        said.append(shape)
    for one in found.edges:
        if one.exceptional:
            said.append(
                f"Layer {one.layer} is exceptional: its {in_sentence(_title(one))} is {said_number(one.ratio, 'times')} the "
                f"median layer’s, off a smooth continuation of the others ({_said_p(one.p)})."
            )
    return said


def _best_shapes(shapes: list[DepthShape]) -> str | None:
    """How segments compare with smooth curves as predictions of a layer left out."""
    smooth, segments = ([one for one in shapes if one.smooth is kind] for kind in (True, False))
    if not smooth or not segments:
        return None
    curve, parts = (min(those, key=lambda one: one.error) for those in (smooth, segments))
    first, second = (curve, parts) if curve.error <= parts.error else (parts, curve)
    how = "hardly better than" if second.worse < second.standard_error else "better than"
    return (
        f"A layer that is left out is predicted best by {first.title} over depth, {how} by {second.title} (squared error "
        f"{first.error:.2f} and {second.error:.2f} of the variance)."
    )


def transition_table(found: Stages) -> TextTable:
    """A row per transition of the hypothesis: whether it is named, where, and why not."""
    rows = [
        (
            f"{stage_title(one.before)} → {stage_title(one.after).lower()}",
            ("named" if one.named else "not named", one.reason),
            ("–" if one.layer is None else f"layer {one.layer}", _interval(one)),
            "–" if one.absent is None else f"{100 * one.absent:.0f} %",
            "–" if one.p_readings is None else _p(one.p_readings),
            "–" if one.p_hypotheses is None else _p(one.p_hypotheses),
            verdict_shown(one.defining) or "–",
        )
        for one in found.transitions
    ]
    head = (
        "Transition",
        "Verdict",
        "Best place",
        "Absent in resamples",
        "p (readings)",
        "p (hypotheses)",
        "Defining signature",
    )
    return TextTable(title="The transitions of the hypothesis", head=head, rows=rows, words=True)


def edge_table(found: Stages) -> TextTable:
    """A row per end of the model and signal."""
    rows = [
        (
            f"{one.end} (layer {one.layer})",
            _title(one),
            said_number(one.ratio, "times"),
            _p(one.p),
            "exceptional" if one.exceptional else "not exceptional",
        )
        for one in found.edges
    ]
    head = ("Layer", "Signal", "KL over the median layer’s", "p", "Verdict")
    return TextTable(title="The first and the last layer", head=head, rows=rows)


def places_panel(found: Stages) -> list[Panel]:
    """Where resamples put each named transition; nothing if no resample names any."""
    drawn = [one for one in found.transitions if any(one.places)]
    if not drawn:
        return []
    curves = [
        Curve(
            look=replace(OWN, title=f"{stage_title(one.after)} begins", marker=marker, dash=dash),
            values={layer: Value(share) for layer, share in enumerate(one.places)},
            call=f"{stage_title(one.after)} from layer {{}}",
        )
        for one, (marker, dash) in zip(drawn, STYLES, strict=False)
    ]
    return [lines("stages-places", "Where resamples begin each stage", PLACES, curves, layers(found.layers))]


def _interval(one: Transition) -> str:
    return "" if one.low is None else f"95% interval {one.low} to {one.high}"


def _title(one: Edge) -> str:
    return SIGNALS[one.signal].title if one.signal in SIGNALS else one.signal


def _said_p(value: float) -> str:
    return f"p {_p(value)}" if value < 0.001 else f"p = {_p(value)}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.2g}"

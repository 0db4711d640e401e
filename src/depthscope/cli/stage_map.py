"""The stage map printed after a study: layers as a bar divided into stages, and a line per signature with its verdict."""

from rich.text import Text

from depthscope.cli.console import console, styled
from depthscope.printable import printable
from depthscope.schema.found_stages import Boundary, SignatureVerdict, Stages
from depthscope.schema.stages import (
    CANNOT_TELL,
    NOT_SUPPORTED,
    SIGNALS,
    STAGES,
    SUPPORTED,
    verdict_shown,
    votes_near,
    written,
)

WIDTH = 72
STYLES = {"detokenization": "cyan", "feature_engineering": "green", "prediction_ensembling": "yellow"}
GLYPHS = dict(zip(STAGES, "░▒▓█", strict=True))
MARKS = {SUPPORTED: ("✓", "green"), NOT_SUPPORTED: ("✗", "red"), CANNOT_TELL: ("?", "yellow")}
TITLE = 40


def print_stages(found: Stages) -> None:
    """Print the contents of RUN/stages.json."""
    console.print(styled("Stages of inference", "bold"))
    console.print(printable(found.summary))
    if found.stages:
        _print_bar(found)
    for boundary in found.boundaries:
        console.print(_boundary_line(boundary))
    for one in found.transitions:
        if not one.named:
            console.print(
                f"{STAGES[one.before].lower()} → {STAGES[one.after].lower()}: not named, {printable(one.reason)}"
            )
    for change in found.unnamed_changes:
        console.print(
            f"the signals step before layer {change.layer}, which matches no transition of the hypothesis",
        )
    for edge in found.edges:
        if edge.exceptional:
            console.print(
                f"layer {edge.layer} is exceptional: {SIGNALS[edge.signal].title.lower()} {written(edge.ratio, 'times')} the "
                f"median layer's (p = {edge.p:.2g})",
                highlight=False,
            )
    console.print()
    _print_signatures(found.signatures)


def _print_bar(found: Stages) -> None:
    layers = found.layers
    cell = max(1, min(6, WIDTH // layers))
    bar, numbers = Text("  "), Text("  ")
    for stage in found.stages:
        first_name = stage.name.split("+")[0]
        for layer in range(stage.first, stage.last + 1):
            edge = "│" if layer == stage.first and layer > 0 else GLYPHS[first_name]
            bar.append((edge + GLYPHS[first_name] * (cell - 1))[:cell], style=STYLES.get(first_name, "magenta"))
    label_every = max(1, -(-3 // cell), layers // 12)
    for layer in range(layers):
        shown = str(layer) if layer % label_every == 0 else ""
        numbers.append(shown.ljust(cell)[:cell] if cell > len(shown) else shown[:cell])
    console.print()
    console.print(bar, no_wrap=True)
    if cell >= 2:
        console.print(numbers, no_wrap=True, style="dim")
    for stage in found.stages:
        first_name = stage.name.split("+")[0]
        where = f"{stage.first}" if stage.first == stage.last else f"{stage.first}–{stage.last}"
        verdicts = f"{stage.supported}/{stage.signatures} signatures"
        console.print(f"  {GLYPHS[first_name] * 2} layers {where:6} {printable(stage.title)} ({verdicts})")
    console.print()


def _boundary_line(boundary: Boundary) -> str:
    before, after = (STAGES[side].lower() if side else "a stage" for side in (boundary.before, boundary.after))
    votes = boundary.votes
    near = votes_near(boundary.layer, votes)
    interval = (
        "no interval: too few documents" if boundary.low is None else f"95% interval {boundary.low} to {boundary.high}"
    )
    low, high = boundary.without_one or (boundary.layer, boundary.layer)
    return (
        f"{before} ends before layer {boundary.layer} ({interval}; {low} to {high} with any one signal left out; "
        f"{near} of the {len(votes)} signals for {after} change within a layer of it on their own)"
    )


def _print_signatures(signatures: list[SignatureVerdict]) -> None:
    """A line per signature, grouped by stage: verdict, effect with its interval, threshold."""
    stage = None
    for one in signatures:
        if one.stage != stage:
            stage = one.stage
            console.print(styled(STAGES[stage], "bold"))
        title = printable(f"{one.title}*" if one.defining else one.title)
        console.print(Text.assemble("  ", MARKS[one.verdict], f" {title:{TITLE}} {_effect(one)}"))
    counts = [Text.assemble(mark, f" {verdict_shown(verdict)}") for verdict, mark in MARKS.items()]
    console.print(Text(", ").join(counts) + "; [95% interval]; ≥ threshold; * defines its stage")


def _effect(one: SignatureVerdict) -> str:
    """Effect, interval and threshold, with the unit once; the reason if there is no effect."""
    if one.effect is None:
        return printable(one.reason)
    numbers = [_bare(one.effect, one.unit)]
    if one.ci_low is not None and one.ci_high is not None:
        numbers.append(f"[{_bare(one.ci_low, one.unit)}, {_bare(one.ci_high, one.unit)}]")
    return f"{' '.join(numbers)}; ≥ {written(one.threshold, one.unit)}"


def _bare(value: float, unit: str) -> str:
    """A number without its unit."""
    return written(value, unit).split()[0].rstrip("×%")

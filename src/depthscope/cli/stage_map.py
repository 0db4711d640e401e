"""The stage map a study ends with: layers as a bar divided into stages, and each signature's verdict in a line."""

from typing import Any

from rich.markup import escape
from rich.text import Text

from depthscope.cli.console import console
from depthscope.schema.stages import CANNOT_TELL, NOT_SUPPORTED, STAGES, SUPPORTED, votes_near, written

WIDTH = 72
STYLES = {"detokenization": "cyan", "feature_engineering": "green", "prediction_ensembling": "yellow"}
GLYPHS = dict(zip(STAGES, "░▒▓█", strict=True))
MARKS = {SUPPORTED: "[green]✓[/]", NOT_SUPPORTED: "[red]✗[/]", CANNOT_TELL: "[yellow]?[/]"}
TITLE = 40


def print_stages(found: dict[str, Any]) -> None:
    """Print what RUN/stages.json holds."""
    console.print("[bold]Stages of inference[/]")
    console.print(escape(found["summary"]), highlight=False)
    if found["stages"]:
        _print_bar(found)
    for boundary in found["boundaries"]:
        console.print(_boundary_line(boundary), highlight=False)
    for change in found["unnamed_changes"]:
        console.print(
            f"the signals change at layer {change['layer']} too, in none of the hypothesis's ways", highlight=False
        )
    console.print()
    _print_signatures(found["signatures"])


def _print_bar(found: dict[str, Any]) -> None:
    layers = found["layers"]
    cell = max(1, min(6, WIDTH // layers))
    bar, numbers = Text("  "), Text("  ")
    for stage in found["stages"]:
        first_name = stage["name"].split("+")[0]
        for layer in range(stage["first"], stage["last"] + 1):
            edge = "│" if layer == stage["first"] and layer > 0 else GLYPHS[first_name]
            bar.append((edge + GLYPHS[first_name] * (cell - 1))[:cell], style=STYLES.get(first_name, "magenta"))
    label_every = max(1, -(-3 // cell), layers // 12)
    for layer in range(layers):
        shown = str(layer) if layer % label_every == 0 else ""
        numbers.append(shown.ljust(cell)[:cell] if cell > len(shown) else shown[:cell])
    console.print()
    console.print(bar, no_wrap=True)
    if cell >= 2:
        console.print(numbers, no_wrap=True, style="dim")
    for stage in found["stages"]:
        first_name = stage["name"].split("+")[0]
        where = f"{stage['first']}" if stage["first"] == stage["last"] else f"{stage['first']}–{stage['last']}"
        verdicts = f"{stage['supported']}/{stage['signatures']} signatures"
        console.print(f"  {GLYPHS[first_name] * 2} layers {where:6} {stage['title']} ({verdicts})", highlight=False)
    console.print()


def _boundary_line(boundary: dict[str, Any]) -> str:
    before, after = (STAGES[boundary[side]].lower() for side in ("before", "after"))
    votes = boundary["votes"]
    near = votes_near(boundary["layer"], votes)
    interval = (
        "no interval: too few documents"
        if boundary["low"] is None
        else f"95% interval {boundary['low']} to {boundary['high']}"
    )
    low, high = boundary["without_one"]
    return (
        f"{before} ends before layer {boundary['layer']} ({interval}; without any one signal {low} to {high}; "
        f"{near} of the {len(votes)} signals for {after} change within a layer of it by themselves)"
    )


def _print_signatures(signatures: list[dict[str, Any]]) -> None:
    """A line each, under its stage: verdict, effect with its interval, what was needed."""
    stage = None
    for one in signatures:
        if one["stage"] != stage:
            stage = one["stage"]
            console.print(f"[bold]{STAGES[stage]}[/]", highlight=False)
        console.print(f"  {MARKS[one['verdict']]} {one['title']:{TITLE}} {_effect(one)}", highlight=False)
    counts = [f"{mark} {verdict}" for verdict, mark in MARKS.items()]
    console.print(f"{', '.join(counts)}; \\[95% interval]; ≥ what is needed", highlight=False, markup=True)


def _effect(one: dict[str, Any]) -> str:
    """Effect, interval and threshold, the unit said once; why, where there is no effect."""
    if one["effect"] is None:
        return escape(one["reason"])
    numbers = [_bare(one["effect"], one["unit"])]
    if one["ci_low"] is not None:
        numbers.append(f"\\[{_bare(one['ci_low'], one['unit'])}, {_bare(one['ci_high'], one['unit'])}]")
    return f"{' '.join(numbers)}; ≥ {written(one['threshold'], one['unit'])}"


def _bare(value: float, unit: str) -> str:
    """Without its unit."""
    return written(value, unit).split()[0].rstrip("×%")

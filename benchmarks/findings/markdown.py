"""Values and tables as Markdown."""

from collections.abc import Sequence

from benchmarks.findings.claims import COUNT, DEPTH, SHARE
from depthscope.report.measured import NBSP, Value, decimals_for


def shown_value(value: Value, unit: str) -> str:
    """A value with its interval, in a claim's unit."""
    numbers = [value.mean, *((value.low, value.high) if value.low is not None and value.high is not None else ())]
    if unit in (SHARE, DEPTH):
        texts = [f"{100 * number:.1f}" for number in numbers]
        end = f"{NBSP}%"
    else:
        digits = 0 if unit == COUNT else decimals_for([numbers[0]])
        texts, end = [f"{number:,.{digits}f}" for number in numbers], ""
    texts = [text.replace("-", "−") for text in texts]
    return f"{texts[0]}{end}" + (f" [{texts[1]}, {texts[2]}]" if len(texts) > 1 else "")


def table(head: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A Markdown table; `right`: columns of numbers."""
    rule = [("--:" if place in right else "---") for place in range(len(head))]
    lines = [head, rule, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

"""The summary a study ends with: per layer, what each edit does, with intervals."""

from collections.abc import Sequence

import polars as pl
from rich.table import Table

from depthscope.cli.console import console
from depthscope.run.store import RunDirectory
from depthscope.schema.sweep import AGREEMENT, EDIT_KINDS, KL

PAIRS = (("swap", "drop"), ("drop_attn", "drop_mlp"))


def print_summary(run: RunDirectory) -> None:
    """Print the sweep per layer: swaps and drops, then components, then what was not done."""
    table = run.table("sweep")
    settings = run.settings
    documents = int(table["documents"][0])
    console.print(
        f"\n{settings['model']} on {settings['tokens']:,} tokens of {documents} documents ({settings['data']})\n"
        "KL in nats and share of unchanged top-1 tokens in %, each ± half of its 95% interval over documents\n",
        highlight=False,
    )
    for pair in PAIRS:
        kinds = [kind for kind in pair if kind in set(table["edit"])]
        if kinds:
            console.print(_rows(table, kinds))
            console.print()
    if documents == 1:
        console.print("one document gives no interval: give text with several documents", highlight=False)
    for kind, reason in run.manifest.get("not_done", {}).items():
        console.print(f"not done: {EDIT_KINDS[kind].title}, because {reason}", highlight=False)


def _rows(table: pl.DataFrame, kinds: Sequence[str]) -> Table:
    shown = Table(header_style="bold", box=None, pad_edge=False)
    shown.add_column("layer", justify="right")
    for kind in kinds:
        shown.add_column(f"{EDIT_KINDS[kind].title} KL", justify="right")
        shown.add_column("agreement", justify="right")
    cells = {(edit, layer, metric): rest for edit, layer, metric, *rest in _estimates(table)}
    for layer in range(max(layer for _, layer, _ in cells) + 1):
        row = [str(layer)]
        for kind in kinds:
            row.append(_cell(cells.get((kind, layer, KL.name)), 1.0, 3))
            row.append(_cell(cells.get((kind, layer, AGREEMENT.name)), 100.0, 1))
        shown.add_row(*row)
    return shown


def _estimates(table: pl.DataFrame) -> list[tuple]:
    return table.select("edit", "layer", "metric", "mean", "ci_low", "ci_high").rows()


def _cell(estimate: Sequence[float | None] | None, scale: float, digits: int) -> str:
    mean, low, high = estimate or (None, None, None)
    if mean is None:
        return ""
    if low is None or high is None:
        return f"{mean * scale:.{digits}f}"
    half = max(mean - low, high - mean)  # an end may have been cut at what the metric can be
    return f"{mean * scale:.{digits}f} ± {half * scale:.{digits}f}"

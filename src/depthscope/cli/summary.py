"""What a study prints at its end: per layer what each experiment found, with intervals, and what could not be done."""

from collections.abc import Callable, Sequence

import polars as pl
from rich.table import Table

from depthscope.cli.console import console
from depthscope.run.store import RunDirectory
from depthscope.schema import attention, lens, norms, similarity
from depthscope.schema.metric import Metric
from depthscope.schema.sweep import AGREEMENT, EDIT_KINDS, KL

PAIRS = (("swap", "drop"), ("drop_attn", "drop_mlp"))


def print_summary(run: RunDirectory, experiments: Sequence[str] = ()) -> None:
    """Print the tables of some experiments, all by default, then what was not done."""
    settings = run.settings
    documents = run.manifest["text"]["documents"]
    console.print(
        f"\n{settings['model']} on {settings['tokens']:,} tokens of {documents} documents ({settings['data']})\n"
        "each number ± half of its 95% interval over documents; information in nats, shares in %\n",
        highlight=False,
    )
    for name, show in SHOWN.items():
        if name in run.tables() and (not experiments or name in experiments):
            show(run.table(name))
            console.print()
    if documents == 1:
        console.print("one document gives no interval: give text with several documents", highlight=False)
    for what, reason in run.manifest.get("not_done", {}).items():
        title = EDIT_KINDS[what].title if what in EDIT_KINDS else what
        console.print(f"not done: {title}, because {reason}", highlight=False)


def _print_sweep(table: pl.DataFrame) -> None:
    for pair in PAIRS:
        kinds = [kind for kind in pair if kind in set(table["edit"])]
        columns = [
            (title, (kind, metric.name), metric)
            for kind in kinds
            for title, metric in ((f"{EDIT_KINDS[kind].title} KL", KL), ("agreement", AGREEMENT))
        ]
        if kinds:
            _print_by_layer(table.filter(pl.col("layer") >= 0), ["edit", "metric"], columns)


def _by_metric(*metrics: Metric) -> Callable[[pl.DataFrame], None]:
    """A table of one row per layer and metric, a column per metric."""

    def show(table: pl.DataFrame) -> None:
        there = set(table["metric"])
        _print_by_layer(table, ["metric"], [(m.title, (m.name,), m) for m in metrics if m.name in there])

    return show


def _print_by_layer(
    table: pl.DataFrame, keys: Sequence[str], columns: Sequence[tuple[str, tuple[str, ...], Metric]]
) -> None:
    shown = Table(header_style="bold", box=None, pad_edge=False)
    shown.add_column("layer", justify="right")
    for title, _, _ in columns:
        shown.add_column(title, justify="right")
    cells = {tuple(key): rest for *key, mean, low, high in _estimates(table, keys) for rest in [(mean, low, high)]}
    for layer in sorted(set(table["layer"])):
        shown.add_row(str(layer), *(_cell(cells.get((layer, *key)), metric) for _, key, metric in columns))
    console.print(shown)


def _estimates(table: pl.DataFrame, keys: Sequence[str]) -> list[tuple]:
    return table.select("layer", *keys, "mean", "ci_low", "ci_high").rows()


def _cell(estimate: Sequence[float | None] | None, metric: Metric) -> str:
    mean, low, high = estimate or (None, None, None)
    if mean is None:
        return ""
    scale, digits = (100.0, 1) if metric.unit == "share" else (1.0, 3)
    if low is None or high is None:
        return f"{mean * scale:.{digits}f}"
    half = max(mean - low, high - mean)  # an end may have been cut at what the metric can be
    return f"{mean * scale:.{digits}f} ± {half * scale:.{digits}f}"


def _print_attention(table: pl.DataFrame) -> None:
    reaches = [
        m for kinds in (attention.PREVIOUS, attention.BANDS) for reach, m in kinds.items() if reach in (1, 5, 16)
    ]
    _by_metric(*reaches, attention.FIRST, attention.ITSELF)(table)


def _print_similarity(table: pl.DataFrame) -> None:
    """Means over the two moves of a swap, attention beside MLP."""
    whole = table.group_by("layer", "component", "metric", maintain_order=True).agg(
        pl.col("mean", "ci_low", "ci_high").mean()
    )
    metrics = {metric.name: metric for metric in similarity.SWAP_METRICS}
    columns = [
        (f"{component} {name}", (component, name), metric)
        for component in similarity.COMPONENTS
        for name, metric in metrics.items()
    ]
    _print_by_layer(whole, ["component", "metric"], columns)


SHOWN: dict[str, Callable[[pl.DataFrame], None]] = {
    "sweep": _print_sweep,
    "lens": _by_metric(*lens.METRICS),
    "norms": _by_metric(*norms.METRICS),
    "attention": _print_attention,
    "similarity": _print_similarity,
    "influence": _by_metric(similarity.BLOCK_INFLUENCE),
}
"""How each table is printed."""

"""The summary printed after a study: results by layer with intervals, and what could not be done."""

from collections.abc import Callable, Sequence

import polars as pl
from rich.table import Table

from depthscope.cli.console import console, styled
from depthscope.cli.stage_map import print_stages
from depthscope.edit_registry import sweeps, title_of
from depthscope.printable import printable
from depthscope.report.measured import Value, give_or_take
from depthscope.report.sections import (
    ablation,
    dependency,
    depth_probes,
    depth_regime,
    effective_depth,
    entropy_neurons,
    guess_refine,
    layer_maps,
    linearity,
    painters,
    patching,
    sinks,
    token_classes,
)
from depthscope.report.sections.heads import of_a_kind
from depthscope.report.trust import precision_goal
from depthscope.report.wording import counted_documents, counted_units
from depthscope.run.store import RunDirectory
from depthscope.schema import probes, similarity
from depthscope.schema.declaration import Experiment
from depthscope.schema.declaration import Table as DeclaredTable
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.experiments import EXPERIMENTS
from depthscope.schema.heads import HEAD_METRICS, MERGING
from depthscope.schema.metric import Metric
from depthscope.schema.neurons import ENTROPY, KINDS, PARTITION, PREDICTION, SUPPRESSION
from depthscope.schema.sweep import AGREEMENT, BASELINE_EDIT, KL

COUNTED = (PREDICTION.name, SUPPRESSION.name, ENTROPY.name, PARTITION.name)
WHOLE_STUDY = ("sweep",)
"""What is printed for a study with all experiments: the rest is on the page."""
EXPECTED_KERNELS = ("packed", "torch's own", "compiled", "plain")
"""Kernels that need no message: any other is printed, because it explains a slower run."""
BESIDE = 2
"""Edits per printed table of the sweep: the built-in ones come in pairs."""


def print_summary(run: RunDirectory, experiments: Sequence[str] = ()) -> None:
    """Print the tables of some experiments, by default the sweep, then the stages and what was not done."""
    settings, text = run.settings, run.manifest.text
    console.print(
        f"\n{printable(settings.subject)} on {settings.tokens:,} tokens of {counted_documents(text)} "
        f"({printable(settings.data)})\n"
        f"values are mean ± half-width of the 95% interval over {counted_units(text, None)}; KL and entropy in nats, shares in "
        "%\n",
    )
    for name in (name for name in EXPERIMENTS if name in (experiments or WHOLE_STUDY)):
        _print_tables(run, EXPERIMENTS[name])
    if linearity.NAME in experiments and linearity.NAME in run.tables():
        console.print(linearity.few_tokens(run, run.table(linearity.NAME)) or "")
    if (not experiments or "sweep" in experiments) and (goal := precision_goal(run.manifest)):
        console.print(f"{goal}\n")
    if (not experiments or "stages" in experiments) and (found := run.stages):
        print_stages(found)
    if text.documents == 1:
        what = "cluster" if text.clustered else "pack" if text.packed else "document"
        several = counted_units(text, None) if text.clustered else "documents"
        console.print(f"no intervals from a single {what}: use text with several {several}")
    if text.given_up:
        console.print(
            f"reading ended early: {text.too_short:,} of {text.documents_read:,} documents are shorter than a window. "
            "Use a shorter --window, or join them with --pack",
        )
    for what, how in run.manifest.kernels.items():
        if how not in EXPECTED_KERNELS:
            console.print(f"{printable(what)}: {printable(how)}")
    for what, reason in run.manifest.not_done.items():
        console.print(f"not done: {printable(title_of(what))}, because {printable(reason)}")


def _print_tables(run: RunDirectory, experiment: Experiment) -> None:
    there = run.tables()
    shown = {name: show for name, one in experiment.tables.items() if name in there and (show := printer(name, one))}
    for name, show in shown.items():
        if len(shown) > 1:
            console.print(styled(name.replace("_", " ").capitalize(), "bold"))
        show(run.table(name))
        console.print()


def _print_sweep(table: pl.DataFrame) -> None:
    there = [edit for edit in table["edit"].unique(maintain_order=True) if edit != BASELINE_EDIT]
    edits = [*sweeps(), *(edit for edit in there if edit not in sweeps())]
    for start in range(0, len(edits), BESIDE):
        kinds = [kind for kind in edits[start : start + BESIDE] if kind in there]
        columns = [
            (title, (kind, metric.name), metric)
            for kind in kinds
            for title, metric in ((f"{title_of(kind)} KL", KL), ("agreement", AGREEMENT))
        ]
        if kinds:
            _print_by_layer(table.filter(pl.col("layer") >= 0), ["edit", "metric"], columns)


def _by_metric(*metrics: Metric) -> Callable[[pl.DataFrame], None]:
    """A printer for tables with one row per layer and metric: a column per metric."""

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
    return "" if mean is None else give_or_take(Value(mean, low, high), metric)


def _print_similarity(table: pl.DataFrame) -> None:
    """Means over the two moves of a swap, attention next to MLP."""
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


def _print_neurons(counts: pl.DataFrame) -> None:
    shown = _table("layer", *(f"{KINDS[kind].title.lower()} neurons" for kind in COUNTED), "of", "largest kurtosis")
    for (layer,), rows in counts.group_by("layer", maintain_order=True):
        by_kind = dict(zip(rows["kind"], rows["count"], strict=True))
        largest = rows["largest_kurtosis"][0]
        cells = (*(by_kind.get(kind, 0) for kind in COUNTED), rows["neurons"][0])
        shown.add_row(str(layer), *map(str, cells), "" if largest is None else f"{largest:.1f}")
    console.print(shown)


def _print_heads(table: pl.DataFrame) -> None:
    """The three highest heads of each metric, and how many pass the test of its kind."""
    shown = _table("heads", "first", "second", "third", "of the kind")
    for (name,), rows in table.group_by("metric", maintain_order=True):
        metric = HEAD_METRICS[str(name)]
        best = rows.sort("rank").head(3).iter_rows(named=True)
        cells = [f"{r['layer']}.{r['head']}  {_cell((r['mean'], r['ci_low'], r['ci_high']), metric)}" for r in best]
        if metric not in MERGING and of_a_kind(table, metric) == 0:
            cells = ["none; strongest", cells[0]]
        passed = "not tested" if rows["of_kind"].is_null().all() else f"{rows['of_kind'].sum()} of {len(rows)}"
        shown.add_row(metric.title, *cells, *[""] * (3 - len(cells)), passed)
    console.print(shown)


def _print_probes(table: pl.DataFrame) -> None:
    """Accuracy and selectivity of each group with its fewest and its most neurons."""
    accuracy = table.filter((pl.col("metric") == probes.ACCURACY.name) & pl.col("draw").is_null())
    above_control = table.filter(metric=probes.SELECTIVITY.name)
    selectivity = {(r["group"], r["k"]): r for r in above_control.iter_rows(named=True)}
    shown = _table(f"next token ends in -{printable(table['suffix'][0])}", "neurons", "accuracy", "selectivity")
    for (group,), rows in accuracy.group_by("group", maintain_order=True):
        for row in rows.filter(pl.col("k").is_in([rows["k"].min(), rows["k"].max()])).iter_rows(named=True):
            found = [row, selectivity.get((group, row["k"]))]
            cells = [_cell((r["mean"], r["ci_low"], r["ci_high"]), probes.ACCURACY) if r else "" for r in found]
            shown.add_row(str(group).replace("_", " "), str(row["k"] or ""), *cells)
    console.print(shown)


def _print_linearity(table: pl.DataFrame) -> None:
    """Over all positions: both scores, and the KL of replacing and of dropping the block."""
    metrics = (linearity.STREAM, linearity.WRITE, linearity.LINEAR_KL, linearity.DROP_KL)
    _by_metric(*metrics)(table.filter(pl.col("positions") == linearity.ALL))


def _print_depth_regime(table: pl.DataFrame) -> None:
    """Over all positions."""
    _by_metric(*depth_regime.CURVES)(table.filter(pl.col("positions") == linearity.ALL))


def _print_rows(
    head: Sequence[str], rows: Callable[[pl.DataFrame], list[tuple[str, ...]]]
) -> Callable[[pl.DataFrame], None]:
    """A printer for a table whose rows the page also shows as text."""

    def show(table: pl.DataFrame) -> None:
        shown = _table(*head)
        for row in rows(table):
            shown.add_row(*map(printable, row))
        console.print(shown)

    return show


def _table(first: str, *others: str) -> Table:
    shown = Table(header_style="bold", box=None, pad_edge=False)
    shown.add_column(first)
    for title in others:
        shown.add_column(title, justify="right", no_wrap=True)  # never wrap a number
    return shown


SHOWN: dict[str, Callable[[pl.DataFrame], None]] = {
    "sweep": _print_sweep,
    "similarity": _print_similarity,
    "neuron_counts": _print_neurons,
    "heads": _print_heads,
    "probes": _print_probes,
    layer_maps.BEST_NAME: _print_rows(layer_maps.BEST_HEAD, layer_maps.best_rows),
    painters.ORDER_NAME: _print_rows(painters.ORDER_HEAD, painters.order_rows),
    dependency.DEPTH_NAME: _print_rows(dependency.DEPTH_HEAD, dependency.depth_rows),
    **dict.fromkeys(token_classes.LAYERS_OF.values(), _print_rows(token_classes.HEAD, token_classes.class_rows)),
    **{
        name + ablation.BEST: _print_rows(ablation.BEST_HEAD, ablation.best_rows)
        for name in (ablation.HEADS, ablation.NEURONS)
    },
    sinks.MODEL: _print_rows(sinks.MODEL_HEAD, sinks.model_rows),
    linearity.NAME: _print_linearity,
    linearity.MEAN_NAME: _print_rows(linearity.MEAN_HEAD, linearity.mean_rows),
    effective_depth.NAME: _print_rows(effective_depth.HEAD, effective_depth.reading_rows),
    guess_refine.NAME: _print_rows(guess_refine.HEAD, guess_refine.table_rows),
    depth_probes.BEST: _print_rows(depth_probes.BEST_HEAD, depth_probes.best_rows),
    patching.DEPTHS: _print_rows(patching.DEPTHS_HEAD, patching.depth_rows),
    depth_regime.NAME: _print_depth_regime,
    depth_regime.READINGS: _print_rows(depth_regime.READINGS_HEAD, depth_regime.reading_rows),
    depth_regime.VERDICT: _print_rows(depth_regime.VERDICT_HEAD, depth_regime.verdict_rows),
    entropy_neurons.GROUPS: _print_rows(entropy_neurons.HEAD, entropy_neurons.group_rows),
}
"""Tables with their own printer."""


def printer(name: str, declared: DeclaredTable) -> Callable[[pl.DataFrame], None] | None:
    """The printer of a table: from SHOWN, else a column per metric for estimates by layer, else None."""
    if name in SHOWN:
        return SHOWN[name]
    keys = [column for column in declared.columns if column not in ESTIMATE]
    metrics = declared.metrics if declared.in_terminal is None else declared.in_terminal
    return _by_metric(*metrics) if keys == ["layer"] and metrics else None

"""Which blocks can be removed: the criteria's sets on documents that no search saw (Men, Gromov, Sieberling et al. 2024)."""

import polars as pl

from depthscope.errors import RunError
from depthscope.report.charts import Curve, XAxis, lines, ranking
from depthscope.report.measured import NBSP, Series, Value, give_or_take, read_table, series, spoken
from depthscope.report.palette import CRITERIA, OWN
from depthscope.report.panels import Panel
from depthscope.report.section import Kind, Section, TextTable
from depthscope.report.wording import joined, ranges
from depthscope.run.store import RunDirectory
from depthscope.schema.manifest import PruneOutcome
from depthscope.schema.metric import Metric
from depthscope.schema.prune import (
    AGREEMENT,
    BEAM,
    GIVEN,
    GREEDY,
    HELD_OUT,
    KL,
    KL_DIFFERENCE,
    LOSS_CHANGE,
    METRICS,
    MOST_BLOCKS,
    NAME,
    PERPLEXITY,
    PRUNE_METHODS_TABLE,
    PRUNE_STEPS_TABLE,
    RANDOM,
    SEARCH,
    TITLES,
    UNMODIFIED,
)

TABLE, STEPS = "prune_methods", "prune_steps"
MOST_REMOVED = 2 * MOST_BLOCKS
"""An attention and an MLP of every block."""
SHOWN = (KL, AGREEMENT, PERPLEXITY, KL_DIFFERENCE)


def build(run: RunDirectory) -> Section:
    """KL on held-out documents by the number of blocks removed, the difference to the chosen set, and the sets."""
    table, outcome = read_table(run, TABLE, PRUNE_METHODS_TABLE), outcome_of(run)
    last = int(table["removed"].max())  # type: ignore[arg-type]
    if not 0 <= last <= MOST_REMOVED:
        raise RunError(f"{run.path} has a set of {last:,} removed blocks: expected at most {MOST_REMOVED:,}")
    curves = {name: _curve(table, name) for name in CRITERIA}
    shown = [
        Curve(look=CRITERIA[name], values=values, call=f"{TITLES[name]}, {{}} removed")
        for name, values in curves.items()
        if values
    ]
    panels: list[Panel] = []
    if shown:
        axis = XAxis(title="removed", first=1, last=last, relative=False)
        panels.append(lines("prune-kl", "KL on held-out documents", KL, shown, axis, log=True))
    # Without random choices, whose interval would hide the differences of the others.
    found = {name: _final(table, name, KL_DIFFERENCE, HELD_OUT) for name in criteria(table) if name != RANDOM}
    worse = [(TITLES[name], value) for name, value in found.items() if value is not None]
    if len(worse) > 1:
        height = 120 + 34 * len(worse)
        panels.append(ranking("prune-difference", KL_DIFFERENCE.title, KL_DIFFERENCE, OWN, worse, height))
    return Section(
        panels=panels,
        sentences=sentences(run),
        legend=[curve.look for curve in shown],
        tables=[TextTable(title="Sets by criterion", head=HEAD, rows=rows(table), words=True)],
        missing=[f"{TITLES.get(name, name)} has no set: {why}." for name, why in outcome.not_found.items()],
        definitions=[*(curve.look for curve in shown), *METRICS],
        across=2,
    )


def outcome_of(run: RunDirectory) -> PruneOutcome:
    """What was chosen. Raises RunError for a run without it."""
    if run.manifest.prune is None:
        raise RunError(f"{run.path} has no outcome of a search for blocks to remove: it is incomplete")
    return run.manifest.prune


def criteria(table: pl.DataFrame) -> list[str]:
    """The criteria in a table, in its order."""
    return [name for name in table["method"].unique(maintain_order=True) if name in TITLES and name != UNMODIFIED]


HEAD = ("criterion", "removed", "KL, search", "KL, held-out", "agreement", "perplexity", "KL above the chosen set’s")


def rows(table: pl.DataFrame) -> list[tuple[str, ...]]:
    """A row of text for each criterion and for the unmodified model: HEAD."""
    found = []
    for name in (UNMODIFIED, *criteria(table)):
        finals = _of(table, name)
        blocks = finals["blocks"].drop_nulls().unique().to_list() if name != RANDOM else []
        draws = table.filter(pl.col("method") == RANDOM)["draw"].drop_nulls().n_unique()
        said = f"mean of {draws} draws" if name == RANDOM else short(str(blocks[0])) if blocks else ""
        cells = [_cell(table, name, KL, SEARCH), *(_cell(table, name, metric, HELD_OUT) for metric in SHOWN)]
        found.append((TITLES[name], said or "nothing", *cells))
    return found


def sentences(run: RunDirectory) -> list[str]:
    """What was chosen and what it costs, which criteria cost more, how certain the first choice is, and what was saved."""
    table, outcome = read_table(run, TABLE, PRUNE_METHODS_TABLE), outcome_of(run)
    name = outcome.method
    cost, searched = _final(table, name, KL, HELD_OUT), _final(table, name, KL, SEARCH)
    if name == RANDOM:
        cost, searched = (_of_draw(table, " ".join(outcome.blocks), text) for text in (HELD_OUT, SEARCH))
    loss = _final(table, name, LOSS_CHANGE, HELD_OUT)
    text = "this text" if name == GIVEN else "held-out documents"
    said = [
        f"Without {short(' '.join(outcome.blocks))} ({TITLES[name].lower()}) the KL is {spoken(cost, KL)} on {text}"
        + (f"; on the documents by which it was chosen, {spoken(searched, KL)}" if searched else "")
        + (f". The loss changes by {spoken(loss, LOSS_CHANGE)}" if loss else "")
        + "."
        if cost
        else ""
    ]
    said += [_misleading(table, name), _first_choice(run)]
    if outcome.block_calls and outcome.block_calls < outcome.block_calls_alone:
        share = 1 - outcome.block_calls / outcome.block_calls_alone
        said.append(
            f"Blocks were applied {outcome.block_calls:,} times to a window: {share:.0%} fewer than if every set had been run "
            f"on its own ({outcome.block_calls_alone:,}), because sets share the blocks before their first difference and are "
            "measured once."
        )
    if outcome.cannot_run:
        said.append(f"{outcome.cannot_run:,} sets were not tried: the model cannot run without them.")
    return [one for one in said if one]


def short(blocks: str) -> str:
    """Items as text: `blocks 3 and 7–9`, `3~attn and 7~mlp`."""
    items = blocks.split()
    numbers = [int(item) for item in items if item.isdecimal()]
    if len(numbers) != len(items):
        return joined(items)
    return f"block{'s' if len(numbers) > 1 else ''} {ranges(sorted(numbers))}" if numbers else ""


def _misleading(table: pl.DataFrame, chosen: str) -> str:
    blocks = {name: _of(table, name)["blocks"].drop_nulls().unique().to_list() for name in criteria(table)}
    alike = [name for name in blocks if name not in (chosen, RANDOM, GIVEN) and blocks[name] == blocks.get(chosen)]
    others = {
        name: value
        for name in blocks
        if name not in (chosen, GIVEN, *alike)
        and (value := _final(table, name, KL_DIFFERENCE, HELD_OUT))
        and value.has_interval
    }
    worse = sorted((name for name in others if (others[name].low or 0) > 0), key=lambda name: -others[name].mean)
    same = [name for name in others if name not in worse and (others[name].high or 0) >= 0]
    better = [name for name in others if (others[name].high or 0) < 0]
    parts = [f"The same set is that of {_names(alike)}."] if alike else []
    if worse:
        costs = [f"{TITLES[name].lower()} by {spoken(others[name], KL_DIFFERENCE)}" for name in worse]
        parts.append(f"On held-out documents, sets of these criteria cost more than the chosen one: {joined(costs)}.")
    if same:
        parts.append(f"Not distinguished from it, by 95% intervals paired by document: {_names(same)}.")
    if better:
        parts.append(f"Better than it: {_names(better)}.")
    return " ".join(parts)


def _first_choice(run: RunDirectory) -> str:
    """Whether the greedy search's first choice is certain, by the paired interval between the best and the second best."""
    if STEPS not in run.tables() or run.table(STEPS).is_empty():
        return ""
    table = read_table(run, STEPS, PRUNE_STEPS_TABLE)
    first = table.filter(pl.col("method").is_in([GREEDY, BEAM]), pl.col("step") == 1).sort(
        "above_best", maintain_order=True
    )
    first = first.filter(pl.col("method") == first["method"][0]) if len(first) else first
    if len(first) < 2:
        return ""
    best, second = first["blocks"][:2]
    above = Value(*first.select("above_best", "above_best_low", "above_best_high").row(1))
    if not above.has_interval:
        return ""
    certain = "is certain" if (above.low or 0) > 0 else "is not certain"
    return (
        f"The first choice, {short(best)} before {short(second)}, {certain}: removing {short(second)} instead costs "
        f"{spoken(above, KL_DIFFERENCE)} more on the search’s documents (paired by document, not corrected for having chosen)."
    )


def _names(names: list[str]) -> str:
    return joined([TITLES[name].lower() for name in names])


def _curve(table: pl.DataFrame, name: str) -> Series:
    held_out = table.filter(pl.col("method") == name, pl.col("text") == HELD_OUT, pl.col("draw").is_null())
    return series(held_out, KL, by="removed")


def _of(table: pl.DataFrame, name: str) -> pl.DataFrame:
    """The rows of a criterion's final set."""
    own = table.filter(pl.col("method") == name, pl.col("draw").is_null())
    return own.filter(pl.col("removed") == own["removed"].max())


def _final(table: pl.DataFrame, name: str, metric: Metric, text: str) -> Value | None:
    finals = _of(table, name).filter(pl.col("text") == text)
    return next(iter(series(finals, metric, by="removed").values()), None)


def _of_draw(table: pl.DataFrame, blocks: str, text: str) -> Value | None:
    drawn = table.filter(pl.col("method") == RANDOM, pl.col("blocks") == blocks, pl.col("text") == text)
    return next(iter(series(drawn, KL, by="removed").values()), None)


def _cell(table: pl.DataFrame, name: str, metric: Metric, text: str) -> str:
    value = _final(table, name, metric, text)
    if value is None:
        return ""
    if metric is PERPLEXITY and value.low is not None and value.high is not None:
        # Its interval is that of the loss, exponentiated: far from symmetric where there is little text.
        return f"{value.mean:.4g} ({value.low:.4g}{NBSP}to{NBSP}{value.high:.4g})"
    return give_or_take(value, metric, 3) + ("%" if metric is AGREEMENT else "")


KIND = Kind(
    name=NAME,
    title="Which blocks to remove",
    source="Men et al. 2024; Gromov et al. 2024; Sieberling et al. 2024",
    experiment=NAME,
    file=f"tables/{TABLE}.parquet",
    build=build,
    look_for="criteria whose curve leaves the lowest one: they mislead from that number of removed blocks on.",
    more_tables=(STEPS,),
)

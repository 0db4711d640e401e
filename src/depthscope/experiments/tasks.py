"""Tasks of the lm-evaluation-harness under edits: requests are answered for all edits at once, in units that are stored.

The harness then computes every edit's metrics from the stored answers, so that a run that was stopped goes on with the next
unit, and gives the same tables.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from depthscope.engine.sizes import sizes_for
from depthscope.errors import DepthscopeError, RunError
from depthscope.experiments.edit_text import EditText
from depthscope.experiments.task_batches import units
from depthscope.experiments.task_requests import RouteScorer
from depthscope.experiments.task_texts import RouteWriter
from depthscope.models.model import Model
from depthscope.printable import first_line
from depthscope.routes import Route
from depthscope.schema.sweep import BASELINE_EDIT
from depthscope.schema.tasks import (
    ANSWER_SHARD,
    CORRELATION_TABLE,
    CORRELATIONS,
    EVAL,
    EXAMPLE_TABLE,
    EXAMPLES,
    TASK_TABLE,
    TASKS,
    require_answers,
)
from depthscope.statistics.paired import spearman

if TYPE_CHECKING:
    from depthscope.experiments.task_harness import Answer, HarnessTasks, TaskResult


def load_tasks(
    names: Sequence[str], *, limit: int | None = None, shots: int | None = None, include: str | None = None
) -> "HarnessTasks":
    """The tasks with these names. Raises DepthscopeError without the harness, and what HarnessTasks raises."""
    try:
        from depthscope.experiments.task_harness import HarnessTasks
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("depthscope"):
            raise
        raise DepthscopeError(
            f"tasks are run by the lm-evaluation-harness, which is not installed ({first_line(error)}): install it with pip "
            "install 'depthscope[eval]'"
        ) from error
    return HarnessTasks(names, limit=limit, shots=shots, include=include)


class TaskAnswers:
    """The requests of tasks under routes by name: an experiment with units of its own.

    `text` has measured the same edits on a text, for the correlation with the KL there.
    """

    name = EVAL

    def __init__(
        self, model: Model, tasks: "HarnessTasks", routes: Mapping[str, Route], text: EditText | None = None
    ) -> None:
        self.model, self.tasks, self.text = model, tasks, text
        self.routes = {BASELINE_EDIT: Route.own(model.depth), **routes}
        self.scored, self.written = tasks.requests(model)
        require_answers(len(self.scored) + len(self.written), len(self.routes), list(tasks.tasks))
        tokens = sizes_for(model.device, model.unembedding.weight.shape[1]).tokens
        self._of_scores = units(self.scored, tokens)
        self._units = [*self._of_scores, *units(self.written, tokens)]
        self.units = len(self._units)
        self._scorer = RouteScorer(model, list(routes.values()))
        self._writer = RouteWriter(model, list(routes.values()))
        self.settings: dict[str, Any] = {
            "tasks": tasks.described(),
            "limit": tasks.limit,
            "routes": {name: route.name for name, route in routes.items()},
        }

    def work(self, unit: int) -> pl.DataFrame:
        """The shard of a unit (ANSWER_SHARD)."""
        return pl.concat(self._answered(unit, batch) for batch in self._units[unit])

    def _answered(self, unit: int, places: list[int]) -> pl.DataFrame:
        answers: dict[str, Any] = {"loglikelihood": None, "greedy": None, "text": None}
        if unit < len(self._of_scores):
            logs, greedy = self._scorer.score([self.scored[place] for place in places])
            answers |= {"loglikelihood": logs.T.ravel(), "greedy": greedy.T.ravel()}
        else:
            texts = self._writer.write([self.written[place] for place in places])
            answers["text"] = [text for of_request in zip(*texts, strict=True) for text in of_request]
        about = {"request": np.repeat(places, len(self.routes)), "edit": [*self.routes] * len(places)}
        return pl.DataFrame(about | answers, schema=ANSWER_SHARD)

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """The harness's metrics of every edit with paired differences, what they are of each example, and correlations."""
        answers = self._answers(shards)
        rows: list[dict[str, Any]] = []
        examples: list[pl.DataFrame] = []
        unmodified: list[TaskResult] = []
        for (edit, route), of_edit in zip(self.routes.items(), answers, strict=True):
            found = self.tasks.results(self.model, dict(zip([*self.scored, *self.written], of_edit, strict=True)))
            unmodified = unmodified or found
            for one, before in zip(found, unmodified, strict=True):
                rows.append(_row(one, before, edit, route))
                examples.append(_examples(one, edit))
        table = _finite(pl.DataFrame(rows, schema=TASK_TABLE).sort("task", "filter", "metric", maintain_order=True))
        return {
            TASKS: table,
            EXAMPLES: _finite(pl.concat(examples).sort("task", "filter", "metric", maintain_order=True)),
            CORRELATIONS: _finite(pl.DataFrame(list(self._correlations(table)), schema=CORRELATION_TABLE)),
        }

    def _answers(self, shards: Iterable[pl.DataFrame]) -> Iterator[list["Answer"]]:
        """Every edit's answers to all requests. Raises RunError where shards are not of these requests."""
        edits = len(self.routes)
        logs = np.full((len(self.scored), edits), np.nan)
        greedy = np.zeros(logs.shape, dtype=bool)
        texts: list[str] = []
        for unit, shard in enumerate(shards):
            places = [place for batch in self._units[unit] for place in batch]
            expected = pl.Series("request", np.repeat(places, edits), pl.Int64)
            same = shard.schema == ANSWER_SHARD and shard["request"].equals(expected)
            if not same or shard["edit"].to_list() != [*self.routes] * len(places):
                raise RunError(
                    f"shard {unit} of {self.name} is not of these requests: it was made by another version. Measure again with "
                    "another --out"
                )
            if unit >= len(self._of_scores):
                texts.extend(shard["text"].to_list())
                continue
            logs[places] = shard["loglikelihood"].to_numpy().reshape(len(places), -1)
            greedy[places] = shard["greedy"].to_numpy().reshape(len(places), -1)
        for edit in range(edits):
            yield [*zip(logs[:, edit].tolist(), greedy[:, edit].tolist(), strict=True), *texts[edit::edits]]

    def _correlations(self, table: pl.DataFrame) -> Iterator[dict[str, Any]]:
        if self.text is None:
            return
        for (task, kept, metric), rows in table.group_by("task", "filter", "metric", maintain_order=True):
            differences = {
                edit: change
                for edit, change in rows.select("edit", "difference").iter_rows()
                if edit in self.text.kl and change is not None
            }
            rho, low, high = spearman(
                np.array(list(differences.values())), np.array([self.text.kl[edit] for edit in differences])
            )
            about = {"task": task, "filter": kept, "metric": metric, "edits": len(differences)}
            yield about | {"spearman": rho, "ci_low": low, "ci_high": high}


def _row(one: "TaskResult", unmodified: "TaskResult", edit: str, route: Route) -> dict[str, Any]:
    difference, low, high = one.difference(unmodified)
    changed = sum(a != b for a, b in zip(one.values, unmodified.values, strict=True))
    if not changed:  # equal values have no spread, which would be an interval of no width
        low = high = math.nan
    return {
        "task": one.task,
        "filter": one.filter,
        "metric": one.metric,
        "edit": edit,
        "route": route.name,
        "value": one.value,
        "stderr": one.stderr,
        "difference": difference,
        "ci_low": low,
        "ci_high": high,
        "changed": changed,
        "examples": len(one.values),
        "clusters": len(np.unique(one.clusters)),
        "higher_is_better": one.higher_is_better,
    }


def _examples(one: "TaskResult", edit: str) -> pl.DataFrame:
    of_all = {"task": one.task, "filter": one.filter, "metric": one.metric, "edit": edit}
    columns = {"example": one.examples, "cluster": one.clusters, "value": one.numbers}
    return (
        pl.DataFrame(columns)
        .with_columns(**{name: pl.lit(value) for name, value in of_all.items()})
        .select(pl.col(name).cast(kind) for name, kind in EXAMPLE_TABLE.items())
    )


def _finite(table: pl.DataFrame) -> pl.DataFrame:
    """The table with null for what is not a finite number: no interval, or a perplexity that overflows."""
    floats = [name for name, kind in table.schema.items() if kind.is_float()]
    return table.with_columns(pl.when(pl.col(name).is_finite()).then(pl.col(name)).alias(name) for name in floats)

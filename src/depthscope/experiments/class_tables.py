"""The sweep, the lens and maps by class of the predicted token: which predictions depend on which layers.

One reading breaks down another's values per token, which both take from the same pass (`Baseline.shared`). Its shards have the
sums of every row on every class; they are apart from those of what is broken down, so a run can get them later.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import polars as pl
from jaxtyping import Float32, Float64, Int64

from depthscope.data.predicted_classes import PredictedClasses, predicted_classes
from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline, Keep
from depthscope.errors import UnsupportedError
from depthscope.experiments import layer_maps, lens, sweep
from depthscope.experiments.document_sums import TOKEN_CLASS, Rows, Sums, class_sums, estimate_columns
from depthscope.experiments.experiment import Subject
from depthscope.schema.class_tables import (
    HIGHEST,
    KL_RATIO,
    LENS_CLASS_LAYERS_TABLE,
    LOWEST,
    MOST_ROWS,
    SWEEP_CLASS_LAYERS_TABLE,
)
from depthscope.schema.layer_maps import AGREEMENT, LOSS_CHANGE
from depthscope.schema.lens import METRICS as LENS_METRICS
from depthscope.schema.lens import lens_names
from depthscope.schema.measures import KL, metrics_of
from depthscope.schema.metric import Metric
from depthscope.schema.sweep import BASELINE_EDIT
from depthscope.statistics.class_ratios import ClassGroups, Ratios
from depthscope.statistics.estimate import Estimate

CLASSING = "classing"
Derive = Callable[[Sums], Float64[np.ndarray, "derived rows"]]


@runtime_checkable
class PerToken(Protocol):
    """A reading with values per token, which can be broken down."""

    name: str
    rows: Rows
    keep: Keep
    readouts: int

    @property
    def settings(self) -> Mapping[str, Any]:
        """What determines its numbers."""
        ...

    def values(self, baseline: Baseline) -> Float32[np.ndarray, "metrics rows tokens"]:
        """The metrics of `rows` for every token, in order."""
        ...


class ByClass:
    """Another reading's rows on each class of predicted tokens. A reading of the shared pass.

    `metrics` are those of the table, which `derive` computes from a document's sums. Raises UnsupportedError for more than
    MOST_ROWS rows, with `reduce`, what to do about it.
    """

    def __init__(
        self,
        whole: PerToken,
        classes: PredictedClasses,
        metrics: Sequence[Metric],
        derive: Derive,
        *,
        picked: Mapping[str, Any] | None = None,
        reduce: str = "fewer --edits",
    ) -> None:
        self.name, self.whole, self.classes = f"{whole.name}_classes", whole, classes
        own = {name: value for name, value in whole.settings.items() if name != "per_token"}
        self.settings = {**own, "classes": classes.settings}
        self.not_done = {**getattr(whole, "not_done", {}), **classes.not_done}
        self.keep, self.readouts = whole.keep | Keep.ROUTES, whole.readouts
        self.picked = picked
        names, rows = classes.names, whole.rows
        count = len(rows.names) * len(names)
        if count > MOST_ROWS:
            raise UnsupportedError(
                f"{len(rows.names):,} rows of {whole.name} by {len(names)} classes are {count:,}: expected at most "
                f"{MOST_ROWS:,}. Use {reduce}, or leave out --by-class"
            )
        keys = {**rows.keys, CLASSING: pl.String, TOKEN_CLASS: pl.String}
        by_class = [(*row, *one) for row in rows.names for one in names]
        self.rows = Rows(keys, by_class, rows.metrics, rows.undefined)
        self.table_rows = Rows(keys, by_class, (*metrics, KL_RATIO))
        self._derive = derive
        first = classes.classings[0].name
        self._parts = np.array([place for place, (classing, _) in enumerate(names) if classing == first])
        """The classes of one classing: together they are all tokens."""

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a unit: sums of every row on every class, by document."""
        entropy = baseline.reference.own.entropy.float().cpu().numpy().reshape(len(windows), windows.length)
        member = self.classes.member(windows, entropy)
        sums, tokens = class_sums(self.whole.values(baseline), member, len(windows))
        return self.rows.shard(sums, tokens, windows.document)

    def joined(self, shards: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """The shard of a unit that was read in parts."""
        return self.rows.joined(shards)

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """The table by class, and of a sweep or lens the layers that each class depends on most and least, in one pass."""
        rows, classes = len(self.whole.rows.names), len(self.classes.names)
        moments = Rows(self.rows.keys, self.rows.names, self.table_rows.metrics[:-1]).moments()
        groups = ClassGroups(rows, classes)
        kl = [metric.name for metric in self.rows.metrics].index(KL.name)
        for document in self.rows.documents(shards):
            tokens = document.tokens[:classes]
            part = document.sums[kl].reshape(rows, classes)
            groups.add(part, tokens, part[:, self._parts].sum(1), int(tokens[self._parts].sum()))
            moments.add(document.tokens, self._derived(document.sums, classes))
        estimate = moments.estimate()
        tables = {self.name: self._table(estimate, groups.ratios())}
        if self.picked is not None:
            counts = (np.broadcast_to(one, rows * classes)[:classes] for one in (estimate.tokens, estimate.documents))
            tables[f"{self.whole.name}_class_layers"] = self._class_layers(groups, *counts)
        return tables

    def _derived(self, sums: Sums, classes: int) -> Float64[np.ndarray, "derived rows"]:
        """The metrics of the table, class by class: what is derived compares rows of the same class."""
        derived = [self._derive(np.ascontiguousarray(sums[:, place::classes])) for place in range(classes)]
        return np.stack(derived, -1).reshape(len(derived[0]), -1)

    def _table(self, estimate: Estimate, ratios: Ratios) -> pl.DataFrame:
        """Classes without tokens are left out, and ratios to a KL of 0."""
        mean, low, high = (
            np.vstack([own, ratio.ravel()])
            for own, ratio in (
                (estimate.mean, ratios.mean),
                (estimate.low, ratios.low),
                (estimate.high, ratios.high),
            )
        )
        whole = Estimate(mean, low, high, estimate.tokens, estimate.documents)
        without = (pl.col("metric") == KL_RATIO.name) & pl.col("mean").is_null()
        table = self.table_rows.filled(whole).filter(pl.col("tokens") > 0, ~without)
        # As in the table of all tokens: that of maps has no baseline.
        return table.filter(pl.col("kind") != BASELINE_EDIT) if "kind" in self.rows.keys else table

    def _class_layers(
        self, groups: ClassGroups, tokens: Int64[np.ndarray, " classes"], documents: Int64[np.ndarray, " classes"]
    ) -> pl.DataFrame:
        """Of each edit and class the layers with the highest and lowest ratio, with intervals that cover all of the edit."""
        schema = pl.Schema(self.picked)
        keys = list(self.whole.rows.keys)
        edits = [name[0] if "edit" in keys else None for name in self.whole.rows.names]
        layers = [name[keys.index("layer")] for name in self.whole.rows.names]
        parts = [pl.DataFrame(schema=schema)]
        for edit in dict.fromkeys(one for one in edits if one != BASELINE_EDIT):
            rows = np.array([place for place, one in enumerate(edits) if one == edit])
            found = groups.together(rows)
            cells = int(np.isfinite(found.low).sum())
            for place, (classing, token_class) in enumerate(self.classes.names):
                means = found.mean[:, place]
                if not np.isfinite(means).any():
                    continue
                for extreme, pick in ((HIGHEST, np.nanargmax), (LOWEST, np.nanargmin)):
                    row = int(pick(means))
                    mean, low, high = (bound[row : row + 1, place] for bound in (found.mean, found.low, found.high))
                    estimate = Estimate(mean, low, high, int(tokens[place]), int(documents[place]))
                    values = estimate_columns(estimate, [KL_RATIO])
                    named = {CLASSING: classing, TOKEN_CLASS: token_class, "extreme": extreme, "cells": cells}
                    about = pl.DataFrame({**named, "edit": edit, "layer": layers[rows[row]]})
                    parts.append(about.hstack(values).select(*schema).cast(schema))
        return pl.concat(parts)


def sweep_classes(subject: Subject) -> ByClass:
    """The requested sweep by class of the predicted token."""
    whole = sweep.make(subject)
    derive = partial(sweep.with_changes, measures=whole.measures)
    metrics = tuple(metrics_of(whole.measures).values())
    return ByClass(whole, _classes(subject), metrics, derive, picked=SWEEP_CLASS_LAYERS_TABLE)


def lens_classes(subject: Subject) -> ByClass:
    """The requested lens without training by class of the predicted token."""
    kind, *_ = lens_names(subject.options["lens"])
    whole = lens.LensReading(subject.model, subject.options["protocol"], kind)
    return ByClass(whole, _classes(subject), LENS_METRICS, lambda sums: sums, picked=LENS_CLASS_LAYERS_TABLE)


def map_classes(subject: Subject) -> ByClass:
    """The requested maps by class of the predicted token."""
    whole = layer_maps.make(subject)
    metrics = (KL, AGREEMENT, LOSS_CHANGE)
    derive = lambda sums: whole.derived(sums)[: len(metrics)]  # noqa: E731
    return ByClass(whole, _classes(subject), metrics, derive, reduce="--band, or fewer kinds")


def _classes(subject: Subject) -> PredictedClasses:
    return predicted_classes(subject.model, subject.windows)

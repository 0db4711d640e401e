"""What edits by name, of any kind, do to the predictions on a text: a reading of the shared pass."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import polars as pl

from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline
from depthscope.engine.measure_routes import RouteMeter
from depthscope.experiments.document_sums import Rows, window_sums
from depthscope.experiments.sweep import with_changes
from depthscope.models.model import Model
from depthscope.routes import Route
from depthscope.schema.measures import BUILT_IN, metrics_of
from depthscope.schema.sweep import BASELINE_EDIT
from depthscope.schema.tasks import EDIT_KL, EDIT_TEXT

KEYS = {"edit": pl.String}
MEASURES = tuple(BUILT_IN.values())


class EditText:
    """The built-in measures for routes by name, on the run's text; the unmodified model, `none`, comes first."""

    name = EDIT_TEXT

    def __init__(self, model: Model, routes: Mapping[str, Route]) -> None:
        self.settings: dict[str, Any] = {"routes": {name: route.name for name, route in routes.items()}}
        self._meter = RouteMeter(model, list(routes.values()))
        self.keep, self.readouts = self._meter.keep, len(routes) + 1
        self._rows = Rows(KEYS, [(BASELINE_EDIT,), *((name,) for name in routes)], MEASURES)
        self.kl: dict[str, float] = {}
        """Mean KL of each edit, once its tables have been made."""

    @property
    def halved(self) -> int:
        """How often a piece of work did not fit into memory and was done in two halves."""
        return self._meter.halved

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a unit: sums over the tokens of each document."""
        found = self._meter.against(baseline)
        values = np.stack([found[measure.name].flatten(1).float().numpy() for measure in MEASURES])
        return self._rows.shard(window_sums(values, len(windows)), windows.length, windows.document)

    def joined(self, shards: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """The shard of a unit that was read in parts."""
        return self._rows.joined(shards)

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """Means and intervals over documents (KL_TABLE), including changes from the unmodified model."""
        table = Rows(KEYS, self._rows.names, tuple(metrics_of(MEASURES).values()))
        found = table.estimated(self._rows.documents(shards), partial(with_changes, measures=MEASURES))
        of_kl = found.filter(pl.col("metric") == "kl", pl.col("edit") != BASELINE_EDIT)
        self.kl = dict(of_kl.select("edit", "mean").iter_rows())
        return {EDIT_KL: found}

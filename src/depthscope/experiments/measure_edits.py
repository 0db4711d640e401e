"""Any edits with any measures: estimates with intervals over documents, without a run directory."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl

from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline
from depthscope.engine.measure_routes import RouteMeter
from depthscope.engine.reductions import reductions_for
from depthscope.engine.sizes import sizes_for
from depthscope.experiments.document_sums import Rows, window_sums
from depthscope.experiments.sweep import with_changes
from depthscope.models.model import Model
from depthscope.routes import Route
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.measures import Measure, metrics_of
from depthscope.schema.sweep import BASELINE_EDIT

KEYS = {"edit": pl.String}
MEASURE_TABLE = {**KEYS, **ESTIMATE}
"""What `depthscope.measure` returns: one row per edit and metric, in the order given. `edit` is the name of the edit or route;
the unmodified model, `none`, comes first."""


def measure_edits(
    model: Model,
    windows: Windows,
    routes: Mapping[str, Route],
    measures: Sequence[Measure],
    tell: Callable[[str, int, int], None] | None = None,
) -> pl.DataFrame:
    """MEASURE_TABLE of routes by name. `tell` is called with what is being done, units done and total units.

    Raises RouteError for a route that the model cannot run, and whatever measuring raises.
    """
    model.kernels.forget()
    meter = RouteMeter(model, list(routes.values()), measures=measures)
    names = [(BASELINE_EDIT,), *((name,) for name in routes)]
    measured, table = Rows(KEYS, names, measures), Rows(KEYS, names, tuple(metrics_of(measures).values()))
    sizes = sizes_for(model.device, model.unembedding.weight.shape[1])
    logits = float(windows.tokens) * model.unembedding.vocabulary * len(names)
    form, _ = reductions_for(model.device, logits, sizes.reductions)
    at_once = max(1, sizes.tokens // windows.length)
    starts = range(0, len(windows), at_once)
    shards = []
    for done, start in enumerate(starts, 1):
        part = windows.part(start, min(start + at_once, len(windows)))
        with model.measuring():
            baseline = Baseline(model, *part.batch(), keep=meter.keep, reductions=form, named=part.called)
            found = meter.against(baseline)
        values = np.stack([found[measure.name].flatten(1).float().numpy() for measure in measures])
        shards.append(measured.shard(window_sums(values, len(part)), part.length, part.document))
        if tell is not None:
            tell("measuring edits", done, len(starts))
    return table.estimated(measured.documents(shards), lambda sums: with_changes(sums, measures))

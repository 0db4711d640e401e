"""The sweep (E1, E2, E3 of the paper): every swap and drop, layer by layer, and what it does to the predictions."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Float32, Float64

from depthscope.data.windows import Windows
from depthscope.edits import Edit, drop, drop_attn, drop_mlp, drop_ple, drop_ssm, swap
from depthscope.engine.baseline import Baseline
from depthscope.engine.measure_routes import RouteMeasures, RouteMeter
from depthscope.errors import RouteError, UnsupportedError
from depthscope.experiments.document_sums import Rows, Sums, window_sums
from depthscope.models.components import NAMES, Components
from depthscope.models.model import Model
from depthscope.routes import ATTN, MLP, PLE, SSM, Route
from depthscope.schema.sweep import (
    BASELINE_EDIT,
    BASELINE_LAYER,
    DROP,
    DROP_ATTN,
    DROP_MLP,
    DROP_PLE,
    DROP_SSM,
    MEASURED,
    METRICS,
    SWAP,
    TOKEN_SHARD,
    check_edits,
)

NAME = "sweep"
KEYS = {"edit": pl.String, "layer": pl.Int32}
EDITS: dict[str, Callable[[int], Edit]] = {
    SWAP.name: swap,
    DROP.name: drop,
    DROP_ATTN.name: drop_attn,
    DROP_MLP.name: drop_mlp,
    DROP_SSM.name: drop_ssm,
    DROP_PLE.name: drop_ple,
}
COMPONENT_EDITS = {DROP_ATTN.name: ATTN, DROP_SSM.name: SSM, DROP_MLP.name: MLP, DROP_PLE.name: PLE}
"""Edit -> the component it silences."""


@dataclass(frozen=True, slots=True)
class LayerEdit:
    """One row of a sweep: an edit applied at one layer of the model's own route."""

    kind: str
    layer: int
    route: Route


def layer_edits(kinds: Sequence[str], depth: int, components: Components | None = None) -> list[LayerEdit]:
    """Each kind of edit at each layer it can be applied to: of a component, where `components` has it (everywhere by default).

    Raises RouteError for an unknown kind.
    """
    check_edits(kinds)
    own = Route.own(depth)
    layers = {kind: depth - 1 if kind == SWAP.name else depth for kind in kinds}
    return [
        LayerEdit(kind, layer, EDITS[kind](layer)(own))
        for kind in kinds
        for layer in range(layers[kind])
        if components is None or kind not in COMPONENT_EDITS or COMPONENT_EDITS[kind] in components.parts[layer]
    ]


def possible_edits(kinds: Sequence[str] | None, model: Model) -> tuple[list[str], dict[str, str]]:
    """The kinds that can be done on a model, each once, and for the others why not; None: all that the model has.

    Raises UnsupportedError where none of them can be, RouteError for one there is not.
    """
    asked = list(dict.fromkeys(EDITS if kinds is None else kinds))
    check_edits(asked)
    if model.components is None:
        silencing = [kind for kind in asked if kind in COMPONENT_EDITS]
        if silencing == asked:
            model.require_components()
        reason = "the model has no separate attention and MLP that its blocks add to the residual stream"
        named = silencing if kinds is not None else [DROP_ATTN.name, DROP_MLP.name]
        return [kind for kind in asked if kind not in silencing], dict.fromkeys(named, reason)
    has = model.components.kinds
    lacking = [kind for kind in asked if kind in COMPONENT_EDITS and COMPONENT_EDITS[kind] not in has]
    if lacking == asked:
        raise UnsupportedError(f"{model.name} ({model.family}): no block has a {NAMES[COMPONENT_EDITS[lacking[0]]]}")
    not_done = {kind: f"no block has a {NAMES[COMPONENT_EDITS[kind]]}" for kind in lacking if kinds is not None}
    return [kind for kind in asked if kind not in lacking], not_done


def runnable(edits: Sequence[LayerEdit], model: Model) -> tuple[list[LayerEdit], dict[str, str]]:
    """Those whose route the model can run, and for the others why not (a later block reads what it stores)."""
    possible, refused = [], {}
    for edit in edits:
        try:
            model.check_route(edit.route)
        except RouteError as error:
            refused[f"{edit.kind}({edit.layer})"] = str(error)
        else:
            possible.append(edit)
    return possible, refused


class Sweep:
    """A sweep of given edits over given windows: a reading of the shared pass."""

    name = NAME

    def __init__(self, model: Model, length: int, kinds: Sequence[str], per_token: bool = False) -> None:
        self.settings = {"edits": list(kinds), "per_token": per_token}
        self.length, self.per_token = length, per_token
        self.edits, self.refused = runnable(layer_edits(kinds, model.depth, model.components), model)
        self.meter = RouteMeter(model, [edit.route for edit in self.edits])
        self.keep, self.readouts = self.meter.keep, len(self.edits) + 1
        names = [(BASELINE_EDIT, BASELINE_LAYER), *((edit.kind, edit.layer) for edit in self.edits)]
        self.rows = Rows(KEYS, names, MEASURED)

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a unit: rows of TOKEN_SHARD or DOCUMENT_SHARD."""
        values = _values(self.meter.against(baseline))
        if self.per_token:
            return self._token_rows(windows, values)
        return self.rows.shard(window_sums(values, len(windows)), windows.length, windows.document)

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """Means and intervals (SWEEP_TABLE), changes against the baseline among them."""
        table = Rows(KEYS, self.rows.names, tuple(METRICS.values()))
        return {NAME: table.estimated(self.rows.documents(summed(shards, self.length)), _with_changes)}

    def _token_rows(self, windows: Windows, values: Float32[np.ndarray, "metrics routes tokens"]) -> pl.DataFrame:
        names = self.rows.names
        document, position = windows.places
        per_route = {
            "document": document.ravel(),
            "position": position.ravel(),
            "token": windows.ids[:, :-1].ravel(),
            "next_token": windows.ids[:, 1:].ravel(),
        }
        columns = {name: np.tile(column, len(names)) for name, column in per_route.items()}
        edit = pl.Series("edit", [kind for kind, _ in names])[np.repeat(np.arange(len(names)), windows.tokens)]
        layer = np.repeat(np.array([layer for _, layer in names]), windows.tokens)
        measured = {metric.name: values[i].ravel() for i, metric in enumerate(MEASURED)}
        return (
            pl.DataFrame({**columns, "edit": edit, "layer": layer, **measured})
            .cast(pl.Schema(TOKEN_SHARD))
            .select(*TOKEN_SHARD)
        )


def summed(shards: Iterable[pl.DataFrame], length: int) -> Iterator[pl.DataFrame]:
    """Shards as sums over documents, those with a row per token too; windows are `length` tokens long.

    A window's first token belongs to the document that the window counts as.
    """
    for shard in shards:
        if "position" not in shard.columns:
            yield shard
            continue
        names = shard.select("edit", "layer").unique(maintain_order=True).rows()
        values = np.stack([shard[metric.name].to_numpy().reshape(len(names), -1) for metric in MEASURED])
        documents = shard["document"].to_numpy()[: values.shape[2] : length]
        yield Rows(KEYS, names, MEASURED).shard(window_sums(values, len(documents)), length, documents)


def _values(measures: RouteMeasures) -> Float32[np.ndarray, "metrics routes tokens"]:
    columns = (measures.kl, measures.agreement, measures.entropy, measures.loss)
    return np.stack([column.flatten(1).float().numpy() for column in columns])


def _with_changes(sums: Sums) -> Float64[np.ndarray, "more routes"]:
    """KL, agreement, entropy and loss, then entropy and loss less the baseline's, in the order of METRICS."""
    by_name = {metric.name: sums[i] for i, metric in enumerate(MEASURED)}
    changes = {f"{name}_change": values - values[0] for name, values in by_name.items()}
    return np.stack([{**by_name, **changes}[name] for name in METRICS])

"""Attention heads and MLP neurons ablated one at a time: every head of every layer, or the neurons that write the most."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from jaxtyping import Float64, Int64

from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline
from depthscope.engine.measure_routes import RouteMeter
from depthscope.errors import RouteError, UnsupportedError
from depthscope.experiments.document_sums import Rows, Sums, estimate_columns, window_sums
from depthscope.experiments.experiment import Subject
from depthscope.models.model import Model
from depthscope.models.weights import mlp_output_weights
from depthscope.routes import HEAD, HOLDERS, NEURON, ZERO, Route, Step
from depthscope.schema.ablation import (
    BEST,
    EXTREMES,
    HEADS,
    HIGHEST,
    KINDS,
    LAYER_METRICS,
    LAYERS,
    LOSS_CHANGE,
    MEASURED,
    METRICS,
    NEURONS,
    best_columns_of,
    columns_of,
)
from depthscope.schema.measures import AGREEMENT, KL
from depthscope.schema.sweep import BASELINE_EDIT, BASELINE_LAYER
from depthscope.statistics.estimate import ClusterMoments, Estimate
from depthscope.statistics.ratios import RatioMoments
from depthscope.statistics.simultaneous import GroupedSums

ALL = -1
"""In place of a head: all of the layer that are measured."""
WHOLE = "component"
"""In place of a mode: the component dropped."""
BASELINE = (BASELINE_LAYER, ALL, BASELINE_EDIT)
MOST_ROUTES = 1 << 16
Key = tuple[int, int, str]
Parts = dict[int, list[int]]
"""By block, the heads or neurons that are ablated, in order."""


def ablation_routes(kind: str, parts: Parts, modes: Sequence[str], depth: int) -> dict[Key, Route]:
    """Each head or neuron ablated alone, all of a block together, and the block's component dropped. Raises RouteError for
    more than MOST_ROUTES."""
    count = len(modes) * (sum(map(len, parts.values())) + len(parts)) + len(parts)
    if count > MOST_ROUTES:
        raise RouteError(
            f"{count:,} routes: expected at most {MOST_ROUTES:,}. Use fewer neurons, or one --ablation at a time"
        )

    def route(changed: Step) -> Route:
        return Route.own(depth).map(lambda step: changed if step.block == changed.block else step)

    alone = {
        (block, index, mode): route(Step(block).ablating(kind, [index], mode))
        for block, indices in parts.items()
        for index in indices
        for mode in modes
    }
    together = {
        (block, ALL, mode): route(Step(block).ablating(kind, indices, mode))
        for block, indices in parts.items()
        for mode in modes
    }
    return alone | together | {(block, ALL, WHOLE): route(Step(block).without(HOLDERS[kind])) for block in parts}


def every_head(model: Model) -> tuple[Parts, dict[str, str]]:
    """All heads of the blocks whose heads can be ablated, and why those of the others cannot."""
    return _possible(model, HEAD, lambda block: [*range(model.inside.projection(HEAD, block).count)])


def top_neurons(model: Model, top: int) -> tuple[Parts, dict[str, str]]:
    """Of each block the neurons that write the most: ‖w_out‖ times the root mean square of the activation, on the reference
    text. That is the size of what zero ablation takes from the residual stream."""

    def largest(block: int) -> list[int]:
        weights = mlp_output_weights(model, block)
        sizes = weights.norm(dim=1) * model.inside.substitute(NEURON, block).squares.sqrt()
        return torch.argsort(sizes, descending=True, stable=True)[:top].tolist()

    return _possible(model, NEURON, largest)


def _possible(model: Model, kind: str, chosen: Callable[[int], list[int]]) -> tuple[Parts, dict[str, str]]:
    parts: Parts = {}
    refused: list[str] = []
    for block in range(model.depth):
        try:
            parts[block] = chosen(block)
        except UnsupportedError as error:
            refused.append(str(error))
    if not parts:
        raise UnsupportedError(refused[0])
    return parts, {f"{kind}s": f"{len(refused)} of {model.depth} blocks: {refused[0]}"} if refused else {}


@dataclass(frozen=True, slots=True)
class Places:
    """Where the rows of shards are: those ablated alone; and by layer and mode all together, those of the layer alone, and the
    component dropped."""

    alone: Int64[np.ndarray, " alone"]
    layer_of: Int64[np.ndarray, " alone"]
    """For each of those ablated alone, its layer's row of the table by layer."""
    together: Int64[np.ndarray, " layers"]
    component: Int64[np.ndarray, " layers"]


class Ablations:
    """Heads or neurons of a model, ablated one at a time. A reading of the shared pass."""

    def __init__(
        self, model: Model, name: str, parts: Parts, modes: Sequence[str], not_done: Mapping[str, str]
    ) -> None:
        self.name, self.kind, self.modes, self.not_done = name, KINDS[name], tuple(modes), not_done
        routes = ablation_routes(self.kind, parts, self.modes, model.depth)
        self.settings = {
            "ablation": list(self.modes),
            f"{self.kind}s": {str(block): indices for block, indices in parts.items()},
            "reference": None if set(self.modes) == {ZERO} else reference_hash(model),
        }
        self.meter = RouteMeter(model, list(routes.values()), measures=MEASURED)
        self.keep, self.readouts = self.meter.keep, len(routes) + 1
        self.names: list[Key] = [BASELINE, *routes]
        self.ranks = {(block, index): rank for block, several in parts.items() for rank, index in enumerate(several, 1)}
        self.rows = Rows({"layer": pl.Int32, self.kind: pl.Int32, "mode": pl.String}, self.names, MEASURED)
        self.layers = [(block, mode) for block in parts for mode in self.modes]
        self.places = self._places()

    @property
    def halved(self) -> int:
        """How often a piece of work did not fit into memory and was done in two halves."""
        return self.meter.halved

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a unit: per document the sums of every route."""
        measured = self.meter.against(baseline)
        # One measure after the other: together, in float64, they would be the largest thing in memory.
        sums = [
            window_sums(measured[measure.name].flatten(1).float().numpy()[None], len(windows)) for measure in MEASURED
        ]
        return self.rows.shard(np.concatenate(sums), windows.length, windows.document)

    def joined(self, shards: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """The shard of a unit that was read in parts."""
        return self.rows.joined(shards)

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """The table of heads or neurons, that of layers and that of the best and worst, in one pass."""
        alone, layers = len(self.places.alone), len(self.layers)
        moments, shares = ClusterMoments((3, alone)), RatioMoments(alone)
        by_layer, grouped = ClusterMoments((len(LAYER_METRICS), layers)), GroupedSums(2 * alone)
        for document in self.rows.documents(shards):
            tokens = int(document.tokens[0])
            kl, agreement, loss = _with_loss_change(document.sums)
            own = self.places.alone
            apart = np.bincount(self.places.layer_of, kl[own], layers)
            together, component = kl[self.places.together], kl[self.places.component]
            moments.add(tokens, np.stack([kl[own], agreement[own], loss[own]]))
            shares.add(tokens, kl[own], apart[self.places.layer_of])
            by_layer.add(tokens, np.stack([apart, together, together - apart, component]))
            grouped.add(tokens, np.concatenate([kl[own], loss[own]]))
        estimate = _stacked(moments.estimate(), shares.estimate())
        return {
            self.name: self._parts(estimate),
            self.name + LAYERS: Rows({"layer": pl.Int32, "mode": pl.String}, self.layers, LAYER_METRICS).filled(
                by_layer.estimate()
            ),
            self.name + BEST: self._best(grouped, estimate),
        }

    def _parts(self, estimate: Estimate) -> pl.DataFrame:
        names = [self.names[row] for row in self.places.alone]
        keys = {"layer": pl.Int32, self.kind: pl.Int32, "mode": pl.String}
        found = Rows(keys, names, METRICS).filled(estimate)
        ranks = [self.ranks[block, index] for block, index, _ in names for _ in METRICS]
        columns = columns_of(self.kind)
        return found.with_columns(rank=pl.Series(ranks, dtype=pl.Int32)).select(*columns).cast(pl.Schema(columns))

    def _best(self, grouped: GroupedSums, estimate: Estimate) -> pl.DataFrame:
        """The best and worst of each mode, with intervals that cover all of the mode at once."""
        names = [self.names[row] for row in self.places.alone]
        found = []
        for mode in self.modes:
            rows = np.array([row for row, (_, _, own) in enumerate(names) if own == mode])
            for one in EXTREMES:
                offset = 0 if one.metric is KL else len(names)
                among = grouped.intervals((rows + offset).tolist(), positive=one.metric is KL)
                means = estimate.mean[METRICS.index(one.metric), rows]
                place = int(np.argmax(means) if one.extreme == HIGHEST else np.argmin(means))
                layer, index, _ = names[rows[place]]
                mean, low, high = (bound[place : place + 1] for bound in (means, among.low, among.high))
                values = Estimate(mean, low, high, estimate.tokens, estimate.documents)
                keys = pl.DataFrame({"mode": mode, "extreme": one.extreme, "layer": layer, self.kind: index})
                found.append(keys.hstack(estimate_columns(values, [one.metric])).with_columns(measured=len(rows)))
        return pl.concat(found).cast(pl.Schema(best_columns_of(self.kind)))

    def _places(self) -> Places:
        row = {name: place for place, name in enumerate(self.names)}
        layer = {key: place for place, key in enumerate(self.layers)}
        alone = [name for name in self.names if name[1] != ALL]
        return Places(
            alone=np.array([row[name] for name in alone]),
            layer_of=np.array([layer[block, mode] for block, _, mode in alone]),
            together=np.array([row[block, ALL, mode] for block, mode in self.layers]),
            component=np.array([row[block, ALL, WHOLE] for block, _ in self.layers]),
        )


def _with_loss_change(sums: Sums) -> Float64[np.ndarray, "derived rows"]:
    """A document's sums of KL, agreement and loss change; the first row is the baseline."""
    kl, agreement, loss = sums
    assert METRICS[:3] == (KL, AGREEMENT, LOSS_CHANGE)
    return np.stack([kl, agreement, loss - loss[0]])


def _stacked(first: Estimate, last: Estimate) -> Estimate:
    """Estimates of the same columns as one, the last as another metric."""
    mean, low, high = (np.vstack([getattr(first, name), getattr(last, name)[None]]) for name in ("mean", "low", "high"))
    return Estimate(mean, low, high, first.tokens, first.documents)


def reference_hash(model: Model) -> str:
    """SHA-256 of the tokens of the reference text."""
    return hashlib.sha256(np.ascontiguousarray(model.reference_ids().cpu().numpy()).tobytes()).hexdigest()


def make_heads(subject: Subject) -> Ablations:
    """Every head of a model."""
    parts, not_done = every_head(subject.model)
    return Ablations(subject.model, HEADS, parts, subject.options["ablation"], not_done)


def make_neurons(subject: Subject) -> Ablations:
    """The neurons of a model that write the most."""
    parts, not_done = top_neurons(subject.model, subject.options["top_neurons"])
    return Ablations(subject.model, NEURONS, parts, subject.options["ablation"], not_done)

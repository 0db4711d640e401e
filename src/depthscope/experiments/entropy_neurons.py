"""Entropy neurons, causally (Stolfo et al. 2024): each mean-ablated with the final norm live, and with its scale frozen."""

from collections.abc import Iterable, Sequence

import numpy as np
import polars as pl
import torch
from jaxtyping import Float64

from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline
from depthscope.engine.divergence import TokenMeasures, compare
from depthscope.engine.frozen_norm import FrozenNorm, FrozenScale
from depthscope.engine.measure_routes import RouteMeter
from depthscope.experiments.ablation import reference_hash
from depthscope.experiments.document_sums import Rows, Sums, estimate_columns, window_sums
from depthscope.experiments.entropy_candidates import SEED, ChosenNeuron, chosen_neurons
from depthscope.experiments.experiment import Subject
from depthscope.models.model import Model
from depthscope.routes import MEAN, NEURON, Route, Step
from depthscope.schema.entropy_neurons import (
    BEST,
    CANDIDATE,
    CONTROL,
    DIFFERENCE,
    ENTROPY_DIRECT,
    ENTROPY_DIRECT_SIZE,
    ENTROPY_NEURONS_BEST_TABLE,
    ENTROPY_NEURONS_GROUPS_TABLE,
    ENTROPY_NEURONS_TABLE,
    ENTROPY_TOTAL,
    ENTROPY_TOTAL_SIZE,
    EXTREMES,
    GROUPS,
    HIGHEST,
    LOSS_DIRECT,
    LOSS_DIRECT_SIZE,
    LOSS_TOTAL,
    LOSS_TOTAL_SIZE,
    METRICS,
    NAME,
    SHARES,
    SUMMED,
)
from depthscope.schema.measures import ENTROPY, LOSS
from depthscope.schema.metric import Metric
from depthscope.shapes import Residual
from depthscope.statistics.estimate import ClusterMoments, Estimate
from depthscope.statistics.mean_ratios import RatioTotals
from depthscope.statistics.ratios import RatioMoments
from depthscope.statistics.simultaneous import GroupedSums

KEYS = {"layer": pl.Int32, "neuron": pl.Int32, "group": pl.String}
ROW = {metric: row for row, metric in enumerate(SUMMED)}
SIZES = ((LOSS_DIRECT_SIZE, LOSS_TOTAL_SIZE), (ENTROPY_DIRECT_SIZE, ENTROPY_TOTAL_SIZE))
"""For each of SHARES, the metrics whose ratio is what is not mediated."""


class EntropyNeurons:
    """Neurons mean-ablated one at a time, with the final norm live and frozen. A reading of the shared pass.

    Raises UnsupportedError for a model whose neurons cannot be ablated or whose final norm has no scale to freeze.
    """

    name = NAME

    def __init__(self, model: Model, chosen: Sequence[ChosenNeuron]) -> None:
        self.chosen = tuple(chosen)
        self.norm = FrozenNorm(model)
        own = Route.own(model.depth)
        self.meter = RouteMeter(model, [_ablated(own, one) for one in self.chosen], measures=(ENTROPY, LOSS))
        self.settings = {
            "neurons": {
                group: [[one.layer, one.neuron] for one in self.chosen if one.group == group]
                for group in (CANDIDATE, CONTROL)
            },
            "seed": SEED,
            "reference": reference_hash(model),
        }
        self.keep, self.readouts = self.meter.keep, 2 * len(self.chosen) + 1
        self.rows = Rows(KEYS, [(one.layer, one.neuron, one.group) for one in self.chosen], SUMMED)

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a unit: per document the sums of every neuron's effects."""
        frozen = self.norm.freeze(baseline.residuals[-1])
        sums = np.zeros((len(SUMMED), len(self.chosen), len(windows)))
        streams = self.meter.streams(baseline)
        next(streams)  # the unmodified model
        for groups, residual in streams:
            for routes, edited in zip(groups, residual.split(len(windows)), strict=True):
                found = self._effects(baseline, frozen, edited)
                for route in routes:
                    sums[:, route - 1] = window_sums(found[:, None], len(windows))[:, 0]
        return self.rows.shard(sums, windows.length, windows.document)

    def _effects(
        self, baseline: Baseline, frozen: FrozenScale, edited: Residual
    ) -> Float64[np.ndarray, "metrics tokens"]:
        """Every one of SUMMED at each token."""
        head, own = self.meter.model.unembedding, baseline.measured
        values: dict[Metric, np.ndarray] = {}
        for hidden, of_loss, of_entropy in (
            (head.hidden(edited), (LOSS_TOTAL, LOSS_TOTAL_SIZE), (ENTROPY_TOTAL, ENTROPY_TOTAL_SIZE)),
            (
                self.norm.hidden(frozen, edited),
                (LOSS_DIRECT, LOSS_DIRECT_SIZE),
                (ENTROPY_DIRECT, ENTROPY_DIRECT_SIZE),
            ),
        ):
            measured = compare(head, baseline.reference, hidden, baseline.flat_targets)
            for name, (signed, size) in (("loss", of_loss), ("entropy", of_entropy)):
                values[signed] = _change(measured, own, name)
                values[size] = np.abs(values[signed])
        return np.stack([values[metric] for metric in SUMMED])

    def joined(self, shards: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """The shard of a unit that was read in parts."""
        return self.rows.joined(shards)

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """The tables of neurons, of groups, and of the most extreme candidates, in one pass."""
        groups = [group for group in (CANDIDATE, CONTROL) if any(one.group == group for one in self.chosen)]
        members = np.array([[one.group == group for one in self.chosen] for group in groups], dtype=np.float64)
        count, signed = len(self.chosen), len(METRICS) - len(SHARES)
        alone, shares = ClusterMoments((signed, count)), [RatioMoments(count) for _ in SHARES]
        pooled, totals = ClusterMoments((signed, len(groups))), RatioTotals(len(SHARES) * len(groups))
        grouped = GroupedSums(len(EXTREMES) * count)
        for document in self.rows.documents(shards):
            tokens = int(document.tokens[0])
            sums = _with_mediated(document.sums)
            alone.add(tokens, sums)
            pooled.add(tokens, sums @ (members / members.sum(1, keepdims=True)).T)
            for moments, (direct, total) in zip(shares, SIZES, strict=True):
                moments.add(tokens, sums[ROW[direct]], sums[ROW[total]])
            totals.add(*(np.concatenate([members @ sums[ROW[pair[side]]] for pair in SIZES]) for side in (0, 1)))
            grouped.add(tokens, np.concatenate([sums[ROW[one.metric]] for one in EXTREMES]))
        estimate = _stacked(alone.estimate(), [_one_minus(moments.estimate()) for moments in shares])
        return {
            NAME: self._neurons(estimate),
            GROUPS: _groups(groups, members, pooled.estimate(), totals),
            BEST: self._best(grouped, estimate),
        }

    def _neurons(self, estimate: Estimate) -> pl.DataFrame:
        found = Rows(KEYS, self.rows.names, METRICS).filled(estimate)
        described = {
            name: pl.Series([getattr(one, name) for one in self.chosen for _ in METRICS], dtype=kind)
            for name, kind in ENTROPY_NEURONS_TABLE.items()
            if name in ("rank", "kind", "norm_z", "effect_z")
        }
        return found.with_columns(**described).select(*ENTROPY_NEURONS_TABLE)

    def _best(self, grouped: GroupedSums, estimate: Estimate) -> pl.DataFrame:
        """The candidates with the most extreme effects, with intervals that cover all candidates at once."""
        candidates = [place for place, one in enumerate(self.chosen) if one.group == CANDIDATE]
        found = []
        for row, one in enumerate(EXTREMES):
            columns = [row * len(self.chosen) + place for place in candidates]
            among = grouped.intervals(columns, positive=one.metric.lowest == 0)
            means = estimate.mean[METRICS.index(one.metric), candidates]
            place = int(np.argmax(means) if one.extreme == HIGHEST else np.argmin(means))
            neuron = self.chosen[candidates[place]]
            mean, low, high = (bound[place : place + 1] for bound in (means, among.low, among.high))
            values = Estimate(mean, low, high, estimate.tokens, estimate.documents)
            keys = pl.DataFrame({"extreme": one.extreme, "layer": neuron.layer, "neuron": neuron.neuron})
            found.append(keys.hstack(estimate_columns(values, [one.metric])).with_columns(measured=len(candidates)))
        return pl.concat(found).cast(pl.Schema(ENTROPY_NEURONS_BEST_TABLE))


def _ablated(own: Route, one: ChosenNeuron) -> Route:
    changed = Step(one.layer).ablating(NEURON, [one.neuron], MEAN)
    return own.map(lambda step: changed if step.block == one.layer else step)


def _change(measured: TokenMeasures, own: TokenMeasures, name: str) -> Float64[np.ndarray, " tokens"]:
    return (measured[name] - own[name]).to("cpu", torch.float64).numpy()


def _with_mediated(sums: Sums) -> Float64[np.ndarray, "derived rows"]:
    """A document's sums of SUMMED, and total minus direct of loss and entropy."""
    pairs = ((LOSS_TOTAL, LOSS_DIRECT), (ENTROPY_TOTAL, ENTROPY_DIRECT))
    return np.concatenate([sums, np.stack([sums[ROW[total]] - sums[ROW[direct]] for total, direct in pairs])])


def _one_minus(ratio: Estimate) -> Estimate:
    return Estimate(1 - ratio.mean, 1 - ratio.high, 1 - ratio.low, ratio.tokens, ratio.documents)


def _stacked(first: Estimate, others: Sequence[Estimate]) -> Estimate:
    """Estimates of the same columns as one, the others as further metrics."""
    mean, low, high = (
        np.vstack([getattr(first, name), *(getattr(one, name)[None] for one in others)])
        for name in ("mean", "low", "high")
    )
    return Estimate(mean, low, high, first.tokens, first.documents)


def _groups(
    groups: Sequence[str], members: Float64[np.ndarray, "groups neurons"], pooled: Estimate, totals: RatioTotals
) -> pl.DataFrame:
    """ENTROPY_NEURONS_GROUPS_TABLE: the groups, and the candidates' shares less the control's."""
    several = len(groups)
    whole = totals.estimate(np.eye(len(SHARES) * several), positive=False)
    shares = [_one_minus(whole.columns(np.arange(several) + several * row)) for row in range(len(SHARES))]
    found = Rows({"group": pl.String}, [(group,) for group in groups], METRICS).filled(_stacked(pooled, shares))
    counts = dict(zip(groups, members.sum(1).astype(int).tolist(), strict=True))
    if several == 2:
        # Of 1 − R the difference is that of the ratios, the other way round.
        weights = np.kron(np.eye(len(SHARES)), [[-1.0, 1.0]])
        apart = totals.estimate(weights, positive=False)
        columns = estimate_columns(
            Estimate(apart.mean, apart.low, apart.high, pooled.tokens, pooled.documents),
            [Metric(one.name, one.unit, one.title, one.definition) for one in SHARES],  # a difference has no bounds
        )
        found = pl.concat([found, pl.DataFrame({"group": [DIFFERENCE] * len(SHARES)}).hstack(columns)])
        counts[DIFFERENCE] = len(members[0])
    return found.with_columns(neurons=pl.col("group").replace_strict(counts, return_dtype=pl.Int64)).select(
        *ENTROPY_NEURONS_GROUPS_TABLE
    )


def make(subject: Subject) -> EntropyNeurons:
    """The candidates and controls of a model."""
    options = subject.options
    return EntropyNeurons(
        subject.model, chosen_neurons(subject.model, options["entropy_top"], options["entropy_layers"])
    )

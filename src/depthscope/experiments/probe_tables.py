"""The tables of the probes: fits on the training examples, accuracy on the test examples with intervals over documents."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Float64, Int64

from depthscope.experiments.class_neurons import ClassNeurons
from depthscope.measure.estimate import ClusterMoments, Estimate
from depthscope.measure.probing import SingleProbes, Split, best_threshold, probes_together, single_probes, wide_probe
from depthscope.schema.metric import Metric
from depthscope.schema.probes import (
    ACCURACY,
    BOTH,
    CHOSEN_GROUPS,
    LAYER,
    MAJORITY,
    MODEL_THRESHOLD,
    MODEL_TOP1,
    OVER_MODEL,
    OVER_RANDOM,
    OVER_SINGLE,
    OVER_THRESHOLD,
    PREDICTION,
    PROBE_NEURONS_TABLE,
    PROBES_TABLE,
    RANDOM,
    SUPPRESSION,
)


@dataclass(frozen=True, slots=True)
class Pools:
    """Which of the neurons that were read each group may use, as columns of the activations."""

    prediction: Int64[np.ndarray, " prediction"]
    suppression: Int64[np.ndarray, " suppression"]
    random: Sequence[Int64[np.ndarray, " chosen"]]
    """Per draw, in place of each prediction and then each suppression neuron, one of the same layer."""
    layer: int
    """The layer that has most of the chosen neurons."""
    whole: Int64[np.ndarray, " width"]
    """All neurons of that layer."""

    def members(self) -> dict[str, Int64[np.ndarray, " some"]]:
        """Which of the chosen neurons (prediction, then suppression) each group has; the same places for every draw."""
        first, count = len(self.prediction), len(self.prediction) + len(self.suppression)
        return {PREDICTION: np.arange(first), SUPPRESSION: np.arange(first, count), BOTH: np.arange(count)}


@dataclass(frozen=True, slots=True)
class _Row:
    """What a row of the table is about, and the quantity it is the mean of, per test example."""

    group: str
    layer: int | None
    k: int
    draw: int | None
    metric: Metric
    values: Float64[np.ndarray, " test"]


def probe_tables(
    suffix: str, examples: pl.DataFrame, pools: Pools, prediction: ClassNeurons, suppression: ClassNeurons, seed: int
) -> dict[str, pl.DataFrame]:
    """PROBES_TABLE and PROBE_NEURONS_TABLE from all examples, rows of `probe_shard` in order of documents."""
    split = Split(*(examples[name].to_numpy() for name in ("training", "label", "document")))
    activations = examples["activations"].to_numpy()
    top1, threshold, majority = _deciders(examples, split)
    chosen = np.concatenate([pools.prediction, pools.suppression])
    alone = single_probes(activations[:, chosen], split)
    together = _together(activations[:, chosen], alone, pools, split)
    drawn = []
    for places in pools.random:
        features = activations[:, places]
        drawn.append(_together(features, single_probes(features, split), pools, split))
    rows: list[_Row] = []
    for group in CHOSEN_GROUPS:
        random = np.stack([draw[group] for draw in drawn])
        rows += _chosen_rows(group, together[group], random.mean(0), top1, threshold)
        rows += _random_rows(RANDOM[group], random)
    whole = activations[:, pools.whole]
    of_layer = split.right(wide_probe(whole, split, seed).predict(whole)).astype(np.float64)
    rows += [
        _Row(LAYER, pools.layer, len(pools.whole), None, ACCURACY, of_layer),
        _Row(LAYER, pools.layer, len(pools.whole), None, OVER_MODEL, of_layer - top1),
        _Row(LAYER, pools.layer, len(pools.whole), None, OVER_THRESHOLD, of_layer - threshold),
        _Row(MODEL_TOP1, None, 0, None, ACCURACY, top1),
        _Row(MODEL_THRESHOLD, None, 0, None, ACCURACY, threshold),
        _Row(MAJORITY, None, 0, None, ACCURACY, majority),
    ]
    test_documents = split.documents[~split.training]
    estimate = _estimate(np.stack([row.values for row in rows]), test_documents)
    keys = [(suffix, row.group, row.layer, row.k, row.draw) for row in rows]
    table = [(*key, *_columns(row.metric, estimate, i)) for i, (key, row) in enumerate(zip(keys, rows, strict=True))]
    return {
        "probes": pl.DataFrame(table, schema=PROBES_TABLE, orient="row"),
        "probe_neurons": _neuron_table(
            suffix, {PREDICTION: prediction, SUPPRESSION: suppression}, alone, test_documents
        ),
    }


def _deciders(
    examples: pl.DataFrame, split: Split
) -> tuple[Float64[np.ndarray, " test"], Float64[np.ndarray, " test"], Float64[np.ndarray, " test"]]:
    """Whether each test example is told right by the model's top-1, by its probability, and by the larger class."""
    scores = examples["log_probability"].to_numpy()
    threshold = best_threshold(scores[split.training], split.labels[split.training])
    majority = np.full(len(scores), bool(split.labels[split.training].mean() > 0.5))
    top1, by_probability, always = (
        split.right(told).astype(np.float64) for told in (examples["top1"].to_numpy(), scores > threshold, majority)
    )
    return top1, by_probability, always


def _together(
    features: Float32[np.ndarray, "examples chosen"], alone: SingleProbes, pools: Pools, split: Split
) -> dict[str, Bool[np.ndarray, "sizes test"]]:
    """Per group, whether probes on its best 1, 2, … neurons are right."""
    most = max(len(pools.prediction), len(pools.suppression))
    return {
        group: probes_together(features[:, places], alone.part(places), split, min(most, len(places)))
        for group, places in pools.members().items()
    }


def _chosen_rows(
    group: str,
    right: Bool[np.ndarray, "sizes test"],
    random: Float64[np.ndarray, "sizes test"],
    top1: Float64[np.ndarray, " test"],
    threshold: Float64[np.ndarray, " test"],
) -> list[_Row]:
    accuracy = right.astype(np.float64)
    rows = []
    for place, values in enumerate(accuracy):
        compared = [(OVER_RANDOM, random[place]), (OVER_MODEL, top1), (OVER_THRESHOLD, threshold)]
        compared = compared if place == 0 else [(OVER_SINGLE, accuracy[0]), *compared]
        rows.append(_Row(group, None, place + 1, None, ACCURACY, values))
        rows += [_Row(group, None, place + 1, None, metric, values - other) for metric, other in compared]
    return rows


def _random_rows(group: str, right: Bool[np.ndarray, "draws sizes test"]) -> list[_Row]:
    accuracy = right.astype(np.float64)
    rows = []
    for place in range(right.shape[1]):
        rows.append(_Row(group, None, place + 1, None, ACCURACY, accuracy[:, place].mean(0)))
        rows += [_Row(group, None, place + 1, draw, ACCURACY, values) for draw, values in enumerate(accuracy[:, place])]
    return rows


def _neuron_table(
    suffix: str, groups: dict[str, ClassNeurons], alone: SingleProbes, documents: Int64[np.ndarray, " test"]
) -> pl.DataFrame:
    """PROBE_NEURONS_TABLE; `alone` has the neurons of the groups one group after the other."""
    estimate = _estimate(alone.right.astype(np.float64), documents)
    rows, first = [], 0
    for group, neurons in groups.items():
        order = alone.part(np.arange(first, first + len(neurons))).order
        for rank, i in enumerate(order.tolist(), start=1):
            numbers = (neurons.difference[i], neurons.kurtosis[i], neurons.skew[i])
            about = (suffix, group, rank, int(neurons.layer[i]), int(neurons.neuron[i]), *map(float, numbers))
            trained = float(alone.training_accuracy[first + i])
            rows.append((*about, neurons.selected_by, trained, *_columns(ACCURACY, estimate, first + i)))
        first += len(neurons)
    return pl.DataFrame(rows, schema=PROBE_NEURONS_TABLE, orient="row")


def _estimate(values: Float64[np.ndarray, "rows test"], documents: Int64[np.ndarray, " test"]) -> Estimate:
    """Means over test examples; the examples of a document lie together."""
    starts = np.flatnonzero(np.diff(documents, prepend=documents[0] - 1))
    assert len(starts) == len(np.unique(documents)), "a document's examples lie together"
    sums = np.add.reduceat(values, starts, axis=1)
    moments = ClusterMoments(len(values))
    for column, count in enumerate(np.diff(starts, append=len(documents))):
        moments.add(int(count), np.ascontiguousarray(sums[:, column]))
    return moments.estimate()


def _columns(metric: Metric, estimate: Estimate, row: int) -> tuple[object, ...]:
    """The columns of ESTIMATE; bounds are kept within what the metric can be, and null where there is no interval."""
    low, high = (
        None if np.isnan(bound) else float(np.clip(bound, metric.lowest, metric.highest))
        for bound in (estimate.low[row], estimate.high[row])
    )
    return metric.name, metric.unit, float(estimate.mean[row]), low, high, estimate.tokens, estimate.documents

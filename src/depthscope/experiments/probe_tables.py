"""The tables of the probes experiment: probes fitted on its examples, next to baselines and control tasks.

Everything is fitted on the training examples and scored on the test examples. Comparisons are paired: the difference of two
classifiers is taken example by example, so that its interval over documents has no part that both share.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Float64, Int, Int64

from depthscope.experiments.class_neurons import ClassNeurons
from depthscope.experiments.document_sums import estimate_columns
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.metric import Metric
from depthscope.schema.probes import (
    ACCURACY,
    BIGRAM,
    BOTH,
    CHOSEN_GROUPS,
    CONTROL_ACCURACY,
    LAYER,
    MAJORITY,
    MODEL_THRESHOLD,
    MODEL_TOP1,
    OVER_BIGRAM,
    OVER_MODEL,
    OVER_RANDOM,
    OVER_SINGLE,
    OVER_THRESHOLD,
    OVER_UNIGRAM,
    PREDICTION,
    PROBE_NEURONS_TABLE,
    PROBES_TABLE,
    RANDOM,
    SELECTIVITY,
    SUPPRESSION,
    UNIGRAM,
)
from depthscope.statistics.estimate import estimate_of
from depthscope.statistics.probe_baselines import control_labels, ngram_labels
from depthscope.statistics.probing import (
    SingleProbes,
    Split,
    best_threshold,
    probes_together,
    single_probes,
    wide_probe,
)

Right = Float64[np.ndarray, " test"]
"""Of each test example 1 if it is classified correctly, else 0; or the mean of that over draws."""


@dataclass(frozen=True, slots=True)
class Pools:
    """Which of the neurons that were read each group may use, as columns of the activations."""

    prediction: Int64[np.ndarray, " prediction"]
    suppression: Int64[np.ndarray, " suppression"]
    random: Sequence[Int64[np.ndarray, " chosen"]]
    """Per draw, a substitute from the same layer for each prediction neuron and then each suppression neuron."""
    layer: int
    """The layer with most of the selected neurons."""
    whole: Int64[np.ndarray, " width"]
    """All neurons of that layer."""

    @property
    def chosen(self) -> Int64[np.ndarray, " chosen"]:
        """All selected neurons, prediction first."""
        return np.concatenate([self.prediction, self.suppression])

    def members(self) -> dict[str, Int64[np.ndarray, " some"]]:
        """Which of the selected neurons (prediction, then suppression) each group has; the same places for every draw."""
        first, count = len(self.prediction), len(self.prediction) + len(self.suppression)
        return {PREDICTION: np.arange(first), SUPPRESSION: np.arange(first, count), BOTH: np.arange(count)}

    def sizes(self) -> dict[str, list[int]]:
        """How many neurons of each group are used together: 1, 2, … up to the larger of the two groups."""
        most = max(len(self.prediction), len(self.suppression))
        return {group: list(range(1, min(most, len(places)) + 1)) for group, places in self.members().items()}


@dataclass(frozen=True, slots=True)
class _Row:
    """The keys of a row of the table, and the values per test example whose mean it is."""

    group: str
    layer: int | None
    k: int
    draw: int | None
    metric: Metric
    values: Float64[np.ndarray, " test"]


def probe_tables(
    suffix: str,
    examples: pl.DataFrame,
    last: Int[np.ndarray, "examples 2"],
    pools: Pools,
    groups: Mapping[str, ClassNeurons],
    *,
    controls: int,
    seed: int,
) -> dict[str, pl.DataFrame]:
    """PROBES_TABLE and PROBE_NEURONS_TABLE from all examples, rows of `probe_shard` in document order.

    `last` has the last two tokens of each example's context, `groups` the selected neurons. There are `controls` control tasks.
    """
    split = Split(*(examples[name].to_numpy() for name in ("training", "label", "document")))
    activations = examples["activations"].to_numpy()
    references = _references(examples, last, split)
    tasks = _control_tasks(last[:, -1], split, controls, seed)
    chosen, sizes = activations[:, pools.chosen], pools.sizes()
    alone = single_probes(chosen, split)
    together = _together(chosen, alone, pools, split, sizes)
    drawn = []
    for places in pools.random:
        features = activations[:, places]
        drawn.append(_together(features, single_probes(features, split), pools, split, sizes))
    control = _control_accuracy(chosen, pools, tasks)
    rows: list[_Row] = []
    for group in CHOSEN_GROUPS:
        random = np.stack([draw[group] for draw in drawn])
        rows += _chosen_rows(group, together[group], random.mean(0), references, control[group])
        rows += _random_rows(RANDOM[group], random)
    rows += _layer_rows(activations[:, pools.whole], pools.layer, split, references, tasks, seed)
    rows += [_Row(group, None, 0, None, ACCURACY, values) for group, values in references.items()]
    model = references[MODEL_THRESHOLD]
    rows += [_Row(MODEL_THRESHOLD, None, 0, None, *one) for one in _over(model, references, NGRAMS)]
    test_documents = split.documents[~split.training]
    return {
        "probes": _table(suffix, rows, test_documents),
        "probe_neurons": _neuron_table(suffix, groups, alone, test_documents),
    }


def _table(suffix: str, rows: Sequence[_Row], documents: Int64[np.ndarray, " test"]) -> pl.DataFrame:
    """PROBES_TABLE. Test examples take the place of tokens; those of one document are similar: intervals are over documents."""
    names = [(suffix, row.group, row.layer, row.k, row.draw) for row in rows]
    keys = pl.DataFrame(names, schema=_keys(PROBES_TABLE), orient="row")
    estimate = estimate_of(np.stack([row.values for row in rows]), documents)
    return keys.hstack(estimate_columns(estimate, [row.metric for row in rows]))


NGRAMS = {OVER_UNIGRAM: UNIGRAM, OVER_BIGRAM: BIGRAM}
REFERENCES = {OVER_MODEL: MODEL_TOP1, OVER_THRESHOLD: MODEL_THRESHOLD, **NGRAMS}
"""Each difference, and the classifier that is subtracted."""


def _references(examples: pl.DataFrame, last: Int[np.ndarray, "examples 2"], split: Split) -> dict[str, Right]:
    """Classifiers that read no activation: the model's top-1, its probability, the larger class, and n-grams."""
    scores = examples["log_probability"].to_numpy()
    threshold = best_threshold(scores[split.training], split.labels[split.training])
    predicted = {
        MODEL_TOP1: examples["top1"].to_numpy(),
        MODEL_THRESHOLD: scores > threshold,
        MAJORITY: np.full(len(scores), bool(split.labels[split.training].mean() > 0.5)),
        UNIGRAM: ngram_labels(last[:, -1:], split.labels, split.training),
        BIGRAM: ngram_labels(last, split.labels, split.training),
    }
    return {group: split.right(one).astype(np.float64) for group, one in predicted.items()}


def _over(
    accuracy: Right, references: Mapping[str, Right], over: Mapping[Metric, str]
) -> Iterator[tuple[Metric, Right]]:
    """Differences from classifiers, example by example."""
    for metric, group in over.items():
        yield metric, accuracy - references[group]


def _control_tasks(tokens: Int[np.ndarray, " examples"], split: Split, count: int, seed: int) -> list[Split]:
    """The same examples with random labels for each last token; without tasks that have one class only in training."""
    share = float(split.labels.mean())
    drawn = (control_labels(tokens, share, np.random.default_rng([seed, draw])) for draw in range(count))
    tasks = [Split(split.training, labels, split.documents) for labels in drawn]
    return [task for task in tasks if len(np.unique(task.labels[task.training])) == 2]


def _control_accuracy(
    features: Float32[np.ndarray, "examples chosen"], pools: Pools, tasks: Sequence[Split]
) -> dict[str, dict[int, Right]]:
    """Of each group, accuracy on control tasks of the best k neurons: k is 1, 2, 4, … and the most.

    Neurons are ranked on the control task too: it is the whole procedure that may recognise tokens.
    """
    sizes = {group: [k for k in every if k & (k - 1) == 0 or k == every[-1]] for group, every in pools.sizes().items()}
    done = [_together(features, single_probes(features, task), pools, task, sizes) for task in tasks]
    return {
        group: {k: np.mean([one[group][place] for one in done], axis=0) for place, k in enumerate(some) if done}
        for group, some in sizes.items()
    }


def _together(
    features: Float32[np.ndarray, "examples chosen"],
    alone: SingleProbes,
    pools: Pools,
    split: Split,
    sizes: Mapping[str, Sequence[int]],
) -> dict[str, Bool[np.ndarray, "sizes test"]]:
    """For each group, whether probes on its best k neurons are correct, for each of its sizes k."""
    return {
        group: probes_together(features[:, places], alone.part(places), split, sizes[group])
        for group, places in pools.members().items()
    }


def _chosen_rows(
    group: str,
    right: Bool[np.ndarray, "sizes test"],
    random: Float64[np.ndarray, "sizes test"],
    references: Mapping[str, Right],
    control: Mapping[int, Right],
) -> list[_Row]:
    accuracy = right.astype(np.float64)
    rows = []
    for place, values in enumerate(accuracy):
        k = place + 1
        compared = [(OVER_RANDOM, values - random[place]), *_over(values, references, REFERENCES)]
        compared = compared if place == 0 else [(OVER_SINGLE, values - accuracy[0]), *compared]
        if k in control:
            compared += [(CONTROL_ACCURACY, control[k]), (SELECTIVITY, values - control[k])]
        rows += [_Row(group, None, k, None, *one) for one in [(ACCURACY, values), *compared]]
    return rows


def _random_rows(group: str, right: Bool[np.ndarray, "draws sizes test"]) -> list[_Row]:
    accuracy = right.astype(np.float64)
    rows = []
    for place in range(right.shape[1]):
        rows.append(_Row(group, None, place + 1, None, ACCURACY, accuracy[:, place].mean(0)))
        rows += [_Row(group, None, place + 1, draw, ACCURACY, values) for draw, values in enumerate(accuracy[:, place])]
    return rows


def _layer_rows(
    features: Float32[np.ndarray, "examples width"],
    layer: int,
    split: Split,
    references: Mapping[str, Right],
    tasks: Sequence[Split],
    seed: int,
) -> list[_Row]:
    """A probe on all neurons of a layer."""

    def fitted(task: Split) -> Right:
        return task.right(wide_probe(features, task, seed).predict(features)).astype(np.float64)

    accuracy = fitted(split)
    values = [(ACCURACY, accuracy), *_over(accuracy, references, REFERENCES)]
    if tasks:
        control = np.mean([fitted(task) for task in tasks], axis=0)
        values += [(CONTROL_ACCURACY, control), (SELECTIVITY, accuracy - control)]
    return [_Row(LAYER, layer, features.shape[1], None, *one) for one in values]


def _neuron_table(
    suffix: str, groups: Mapping[str, ClassNeurons], alone: SingleProbes, documents: Int64[np.ndarray, " test"]
) -> pl.DataFrame:
    """PROBE_NEURONS_TABLE; `alone` has the neurons of the groups in sequence."""
    names, places, first = [], [], 0
    for group, neurons in groups.items():
        order = alone.part(np.arange(first, first + len(neurons))).order
        for rank, i in enumerate(order.tolist(), start=1):
            numbers = (neurons.difference[i], neurons.kurtosis[i], neurons.skew[i], alone.training_accuracy[first + i])
            *about, trained = map(float, numbers)
            neuron = (int(neurons.layer[i]), int(neurons.neuron[i]))
            names.append((suffix, group, rank, *neuron, *about, neurons.selected_by, trained))
            places.append(first + i)
        first += len(neurons)
    keys = pl.DataFrame(names, schema=_keys(PROBE_NEURONS_TABLE), orient="row")
    estimate = estimate_of(alone.right.astype(np.float64), documents).columns(np.array(places))
    return keys.hstack(estimate_columns(estimate, [ACCURACY] * len(names)))


def _keys(table: dict[str, Any]) -> dict[str, Any]:
    """The key columns of a table."""
    return {name: kind for name, kind in table.items() if name not in ESTIMATE}

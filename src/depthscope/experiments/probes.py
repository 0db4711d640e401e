"""Probes for a suffix (E11; section 6.2, figures 10 and 16 of the paper): do prediction neurons work as an ensemble?

Half of the contexts have a next token that ends in the suffix. A logistic regression predicts which, from the activations of
neurons at the context's last token: each of 32 prediction and 32 suppression neurons alone, and the best k of them together.
They are compared with the unmodified model's prediction and with two controls that the paper lacks: as many random neurons of
the same layers, processed identically, and all neurons of one layer.

Intervals are over test documents, for the fitted probes: another training text would give others. The model's top-1 is suited
to natural text, where few tokens have the suffix, but the classes here are balanced; so the model is also tested with its
probability of the suffix and a threshold, fitted on the training examples like the probes.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from depthscope.data.corpus import Corpus
from depthscope.data.suffix_contexts import LENGTH, PER_CLASS, suffix_contexts
from depthscope.errors import DataError, NumericError, UnsupportedError
from depthscope.experiments.class_neurons import CANDIDATES, ClassNeurons, class_neurons
from depthscope.experiments.document_sums import estimate_columns
from depthscope.experiments.experiment import Subject
from depthscope.models.activations import ActivationReader, neuron_count
from depthscope.models.model import Model
from depthscope.models.unembedding import Unembedding
from depthscope.schema.estimates import ESTIMATE
from depthscope.schema.metric import Metric
from depthscope.schema.neurons import PEAKED
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
    probe_shard,
)
from depthscope.shapes import Hidden
from depthscope.statistics import probing
from depthscope.statistics.estimate import estimate_of
from depthscope.statistics.probing import (
    SingleProbes,
    Split,
    best_threshold,
    probes_together,
    single_probes,
    wide_probe,
)

NAME = "probes"
NEURONS = 32
DRAWS = 5
PER_UNIT = 256
SLICE = 8192


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

    def members(self) -> dict[str, Int64[np.ndarray, " some"]]:
        """Which of the selected neurons (prediction, then suppression) each group has; the same places for every draw."""
        first, count = len(self.prediction), len(self.prediction) + len(self.suppression)
        return {PREDICTION: np.arange(first), SUPPRESSION: np.arange(first, count), BOTH: np.arange(count)}


class Probes:
    """The experiment, with own units: a unit is 256 contexts, its shard the data for fitting the probes (`probe_shard`).

    At most `per_class` contexts of each class, `neurons` prediction and as many suppression neurons, `draws` of random ones.
    Raises UnsupportedError if MLP neurons cannot be read one by one or a layer is too narrow for the control, and
    DataError if text and suffix do not give a balanced set.
    """

    name = NAME

    def __init__(
        self,
        model: Model,
        corpus: Corpus,
        *,
        suffix: str = "ing",
        seed: int = 0,
        per_class: int = PER_CLASS,
        neurons: int = NEURONS,
        draws: int = DRAWS,
    ) -> None:
        if min(neurons, draws, per_class) < 1:
            raise DataError(
                f"expected at least 1 neuron, draw and context per class, got {neurons}, {draws} and {per_class}"
            )
        # Reject a model whose neurons cannot be read before reading any text.
        ActivationReader(model, torch.tensor([[block, 0] for block in range(model.depth)]))
        self.model, self.suffix = model, suffix
        self.contexts = suffix_contexts(corpus, model, suffix, per_class=per_class, seed=seed)
        self.prediction, self.suppression = class_neurons(model, self.contexts.ending, neurons)
        self.pools, places = _pools(model, self.prediction, self.suppression, draws, seed)
        self.reader = ActivationReader(model, torch.from_numpy(places))
        self.seed = seed
        self.units = -(-len(self.contexts) // PER_UNIT)
        self.settings: Mapping[str, Any] = {
            "suffix": suffix,
            "seed": seed,
            "context": LENGTH,
            "per_class": per_class,
            "contexts": len(self.contexts),
            "contexts_hash": self.contexts.token_hash(),
            "neurons": neurons,
            "kurtosis": PEAKED,
            "candidates": CANDIDATES,
            "draws": draws,
            "strength": probing.STRENGTH,
            "layer_strengths": list(probing.STRENGTHS),
        }

    def work(self, unit: int) -> pl.DataFrame:
        """The shard of contexts `256 unit` … ."""
        rows = slice(unit * PER_UNIT, (unit + 1) * PER_UNIT)
        read = self.reader.read(self.contexts.batch(rows.start, rows.stop), [-1])
        with torch.inference_mode():
            hidden = self.model.unembedding.hidden(read.residual)
            ending = torch.from_numpy(self.contexts.ending).to(hidden.device)
            top1, log_probability = class_prediction(self.model.unembedding, hidden, ending)
        if bool(torch.isnan(log_probability).any()):
            raise NumericError(f"{self.model.name} gives NaN or infinite logits on the contexts of unit {unit}")
        activations = read.values[:, 0].cpu().numpy()
        columns = {
            "document": self.contexts.document[rows],
            "training": self.contexts.training[rows],
            "label": self.contexts.label[rows],
            "top1": top1.cpu().numpy(),
            "log_probability": log_probability.cpu().numpy(),
            "activations": activations,
        }
        return pl.DataFrame(columns, schema=probe_shard(activations.shape[1]))

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """PROBES_TABLE and PROBE_NEURONS_TABLE. All examples are in memory; their number is bounded by `per_class`."""
        examples = pl.concat(shards)
        return probe_tables(self.suffix, examples, self.pools, self.prediction, self.suppression, self.seed)


def make(subject: Subject) -> Probes:
    """Probes for the requested suffix, on contexts of the text."""
    return Probes(subject.model, subject.corpus, suffix=subject.options["suffix"])


def class_prediction(
    head: Unembedding, hidden: Hidden, tokens: Bool[Tensor, " vocab"]
) -> tuple[Bool[Tensor, " tokens"], Float64[Tensor, " tokens"]]:
    """Whether the most likely token is one of the class, and the log of the class's probability, in nats.

    Processes one slice of the vocabulary at a time; among equally likely tokens the first counts, as in argmax.
    """
    count = hidden.shape[0]
    largest = torch.full((count,), -torch.inf, device=hidden.device)
    top1 = torch.zeros(count, dtype=torch.bool, device=hidden.device)
    totals = torch.full((2, count), -torch.inf, dtype=torch.float64, device=hidden.device)
    for start in range(0, head.vocabulary, SLICE):
        logits = head.slice(hidden, start, min(start + SLICE, head.vocabulary)).float()
        inside = tokens[start : start + SLICE]
        value, place = logits.max(1)
        top1 = torch.where(value > largest, inside[place], top1)
        largest = torch.maximum(largest, value)
        exact = logits.double()
        of_class = exact.masked_fill(~inside, -torch.inf).logsumexp(1)
        totals = torch.logaddexp(totals, torch.stack([of_class, exact.logsumexp(1)]))
    return top1, totals[0] - totals[1]


def _pools(
    model: Model, prediction: ClassNeurons, suppression: ClassNeurons, draws: int, seed: int
) -> tuple[Pools, Int64[np.ndarray, "neurons 2"]]:
    """Which neurons each group's probes may use, as indices into the list of all neurons that are read, and that list."""
    layers = np.concatenate([prediction.layer, suppression.layer])
    chosen = np.stack([layers, np.concatenate([prediction.neuron, suppression.neuron])], 1)
    generator = np.random.default_rng(seed)
    drawn = [_random_like(model, chosen, generator) for _ in range(draws)]
    fullest = int(np.bincount(layers).argmax())
    whole = np.array([(fullest, neuron) for neuron in range(neuron_count(model, fullest))])
    wanted = [chosen, *drawn, whole]
    places, found = np.unique(np.concatenate(wanted), axis=0, return_inverse=True)
    parts = np.split(found.ravel(), np.cumsum([len(part) for part in wanted])[:-1])
    return Pools(parts[0][: len(prediction)], parts[0][len(prediction) :], parts[1:-1], fullest, parts[-1]), places


def _random_like(
    model: Model, chosen: Int64[np.ndarray, "neurons 2"], generator: np.random.Generator
) -> Int64[np.ndarray, "neurons 2"]:
    """For each selected neuron a random other neuron of its layer, without repetition and none of the selected ones."""
    drawn = chosen.copy()
    for layer in np.unique(chosen[:, 0]):
        here = chosen[:, 0] == layer
        others = np.setdiff1d(np.arange(neuron_count(model, int(layer))), chosen[here, 1])
        if len(others) < here.sum():
            raise UnsupportedError(
                f"{model.name}: {here.sum()} neurons of layer {layer} are selected, and only {len(others)} are left for as "
                "many random ones: the MLP is too narrow for the probes' control"
            )
        drawn[here, 1] = generator.choice(others, here.sum(), replace=False)
    return drawn


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
    suffix: str, examples: pl.DataFrame, pools: Pools, prediction: ClassNeurons, suppression: ClassNeurons, seed: int
) -> dict[str, pl.DataFrame]:
    """PROBES_TABLE and PROBE_NEURONS_TABLE from all examples, rows of `probe_shard` in document order."""
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
    return {
        "probes": _table(suffix, rows, test_documents),
        "probe_neurons": _neuron_table(
            suffix, {PREDICTION: prediction, SUPPRESSION: suppression}, alone, test_documents
        ),
    }


def _table(suffix: str, rows: Sequence[_Row], documents: Int64[np.ndarray, " test"]) -> pl.DataFrame:
    """PROBES_TABLE. Test examples take the place of tokens; those of one document are similar: intervals are over documents."""
    names = [(suffix, row.group, row.layer, row.k, row.draw) for row in rows]
    keys = pl.DataFrame(names, schema=_keys(PROBES_TABLE), orient="row")
    estimate = estimate_of(np.stack([row.values for row in rows]), documents)
    return keys.hstack(estimate_columns(estimate, [row.metric for row in rows]))


def _deciders(
    examples: pl.DataFrame, split: Split
) -> tuple[Float64[np.ndarray, " test"], Float64[np.ndarray, " test"], Float64[np.ndarray, " test"]]:
    """Whether the model's top-1, its probability, and the larger class each classify each test example correctly."""
    scores = examples["log_probability"].to_numpy()
    threshold = best_threshold(scores[split.training], split.labels[split.training])
    majority = np.full(len(scores), bool(split.labels[split.training].mean() > 0.5))
    top1, by_probability, always = (
        split.right(one).astype(np.float64) for one in (examples["top1"].to_numpy(), scores > threshold, majority)
    )
    return top1, by_probability, always


def _together(
    features: Float32[np.ndarray, "examples chosen"], alone: SingleProbes, pools: Pools, split: Split
) -> dict[str, Bool[np.ndarray, "sizes test"]]:
    """For each group, whether probes on its best 1, 2, … neurons are correct."""
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

"""Probes for a suffix (E11; section 6.2, figures 10 and 16 of the paper): do prediction neurons work as an ensemble?

Half of the contexts have a next token that ends in the suffix. A logistic regression predicts which, from the activations of
neurons at the context's last token: each of 32 prediction and 32 suppression neurons alone, and the best k of them together.
They are compared with the unmodified model's prediction and with what the paper lacks: as many random neurons of the same
layers, processed identically, all neurons of one layer, n-grams (the labels that the context's last tokens had in training),
and control tasks (random labels for last tokens, as hard to memorise and with nothing else to learn).

Intervals are over test documents, for the fitted probes: another training text would give others. The model's top-1 is suited
to natural text, where few tokens have the suffix, but the classes here are balanced; so the model is also tested with its
probability of the suffix and a threshold, fitted on the training examples like the probes.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from depthscope.data.corpus import Corpus
from depthscope.data.suffix_contexts import LENGTH, PER_CLASS, suffix_contexts
from depthscope.errors import DataError, NumericError, UnsupportedError
from depthscope.experiments.class_neurons import CANDIDATES, ClassNeurons, class_neurons
from depthscope.experiments.experiment import Subject
from depthscope.experiments.probe_tables import Pools, probe_tables
from depthscope.models.activations import ActivationReader, neuron_count
from depthscope.models.finite import REMEDY
from depthscope.models.model import Model
from depthscope.models.unembedding import Unembedding
from depthscope.schema.neurons import PEAKED
from depthscope.schema.probes import PREDICTION, SUPPRESSION, probe_shard
from depthscope.shapes import Hidden
from depthscope.statistics import probing

NAME = "probes"
NEURONS = 32
DRAWS = 5
CONTROLS = 3
"""Control tasks: random labels for last tokens."""
PER_UNIT = 256
SLICE = 8192


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
            "control_tasks": CONTROLS,
            "strength": probing.STRENGTH,
            "layer_strengths": list(probing.STRENGTHS),
        }

    def work(self, unit: int) -> pl.DataFrame:
        """The shard of contexts `256 unit` … ."""
        rows = slice(unit * PER_UNIT, (unit + 1) * PER_UNIT)
        documents = self.contexts.document[rows]

        def named(row: int) -> str:
            return f"a context of document {documents[row]}"

        read = self.reader.read(self.contexts.batch(rows.start, rows.stop), [-1], named)
        with torch.inference_mode():
            hidden = self.model.unembedding.hidden(read.residual)
            ending = torch.from_numpy(self.contexts.ending).to(hidden.device)
            top1, log_probability = class_prediction(self.model.unembedding, hidden, ending)
        if bool(torch.isnan(log_probability).any()):
            row = int(torch.isnan(log_probability).nonzero()[0])
            raise NumericError(
                f"{self.model.name} has NaN or infinity in the logits, although the residual stream is finite, in "
                f"{named(row)}. {REMEDY}"
            )
        activations = read.values[:, 0].cpu().numpy()
        columns = {
            "document": documents,
            "training": self.contexts.training[rows],
            "label": self.contexts.label[rows],
            "top1": top1.cpu().numpy(),
            "log_probability": log_probability.cpu().numpy(),
            "activations": activations,
        }
        return pl.DataFrame(columns, schema=probe_shard(activations.shape[1]))

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """PROBES_TABLE and PROBE_NEURONS_TABLE. All examples are in memory; their number is bounded by `per_class`."""
        groups = {PREDICTION: self.prediction, SUPPRESSION: self.suppression}
        examples, last = pl.concat(shards), self.contexts.ids[:, -2:]
        return probe_tables(self.suffix, examples, last, self.pools, groups, controls=CONTROLS, seed=self.seed)


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

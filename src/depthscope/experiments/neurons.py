"""Neurons (E8 of the paper): prediction, suppression, entropy and partition neurons, told by their output weights alone.

No text is run: each neuron's w_out is compared with every token's unembedding vector. Kinds are those of schema/neurons.py.
Prediction and suppression neurons follow the paper (and Gurnee et al. 2024, arXiv:2401.12181) to the letter. For entropy
neurons (Gurnee et al. 2024; Stolfo et al. 2024, arXiv:2406.16254: a long weight that hardly moves the logits) and partition
neurons (Gurnee et al. 2024: cosines of high variance) those papers choose by eye. We say how far a neuron is from the
model's others by a robust z-score of a logarithm (median and median absolute deviation), which no unit of weights changes:

- entropy: z of log ‖w‖ above 2, z of log (var(W_U w) / ‖w‖²) below −2. Either is so for one in 44 of normally distributed
  numbers, both for about one in 1,900 if they are independent;
- partition: z of log var(cosines) above 3.5 (the cut of Iglewicz and Hoaglin 1993 for outliers).

Of experts every neuron of every expert counts, of those that all tokens go through too; run.json says how they are numbered.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float
from torch import Tensor

from depthscope.data.token_classes import Vocabulary, token_classes, vocabulary_of
from depthscope.errors import DataError, UnsupportedError
from depthscope.experiments.neuron_tokens import (
    ClassSeparation,
    NeuronReport,
    extreme_tokens,
    neuron_tokens_table,
    strongest_of_each_kind,
)
from depthscope.measure.moments import CONSTANT, VocabularyDirections, robust_z
from depthscope.models.model import Model, ModelFacts
from depthscope.models.weights import mlp_output_weights, require_mlp_output_weights, unembedding
from depthscope.schema.neurons import (
    CLASS_DIFFERENCE,
    CLASS_SHARE,
    DEAD,
    EFFECT_VARIANCE,
    EFFECT_Z,
    ENTROPY,
    FROM_A_BLOCK,
    KINDS,
    KURTOSIS,
    MEAN,
    METRICS,
    NEURON_COUNTS_TABLE,
    NEURON_SHARD,
    NEURONS_TABLE,
    NORM,
    NORM_Z,
    OTHER,
    PARTITION,
    PREDICTION,
    SKEW,
    SUPPRESSION,
    VARIANCE,
    VARIANCE_Z,
)

NAME = "neurons"
LONGEST_NAME = 40
"""Characters of a neuron's LAYER.NEURON at most."""
CLASSES_REPORTED = 8
"""Classes of tokens named in the report on a single neuron."""


def parse_neuron(text: str) -> tuple[int, int]:
    """(layer, neuron) from "10.345". Raises DataError for anything else."""
    layer, dot, neuron = text.partition(".")
    if not (dot and layer.isdecimal() and neuron.isdecimal()) or len(text) > LONGEST_NAME:
        shown = text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}…"
        raise DataError(f"cannot read neuron {shown!r}: expected LAYER.NEURON, both counted from 0, such as 10.345")
    return int(layer), int(neuron)


@dataclass(frozen=True, slots=True, kw_only=True)
class Thresholds:
    """Where kinds of neurons begin. Raises DataError for values under which the definitions make no sense."""

    kurtosis: float = 10.0
    """Above: prediction or suppression, by the sign of the skew."""
    entropy_norm_z: float = 2.0
    """An entropy neuron's norm_z is above."""
    entropy_effect_z: float = -2.0
    """An entropy neuron's effect_z is below."""
    partition_variance_z: float = 3.5
    """A partition neuron's variance_z is above."""

    def __post_init__(self) -> None:
        if self.kurtosis < 1 or self.entropy_norm_z < 0 or self.entropy_effect_z > 0 or self.partition_variance_z < 0:
            raise DataError(
                f"thresholds {asdict(self)}: expected kurtosis of at least 1, entropy_norm_z and partition_variance_z of at "
                "least 0, entropy_effect_z of at most 0"
            )


class Neurons:
    """The experiment, an own-units one: a unit is a block, its shard the block's neurons (NEURON_SHARD).

    `processed` says whether the weights are folded and centred first (appendix D of the paper) or taken as they are;
    `strongest` how many neurons of a kind the table of tokens shows, `tokens` how many promoted and suppressed tokens of
    each. Raises UnsupportedError where the model's MLPs have no output weights with a row per neuron.
    """

    name = NAME

    def __init__(
        self,
        model: Model,
        *,
        processed: bool = True,
        thresholds: Thresholds | None = None,
        strongest: int = 10,
        tokens: int = 10,
    ) -> None:
        require_mlp_output_weights(model)
        if strongest < 1 or tokens < 1:
            raise DataError(
                f"expected at least 1 of the strongest neurons and 1 token of each, got {strongest} and {tokens}"
            )
        self.model = model
        self.processed = processed
        self.thresholds = thresholds or Thresholds()
        self.strongest, self.tokens = strongest, tokens
        self.settings: Mapping[str, Any] = {
            "processed": processed,
            **asdict(self.thresholds),
            "strongest": strongest,
            "tokens": tokens,
        }
        self.units = model.depth

    def work(self, unit: int) -> pl.DataFrame:
        """The neurons of block `unit`."""
        w_out, vocabulary = self._w_out(unit), self._vocabulary
        moments = vocabulary.directions.moments(w_out)
        names, shares, differences = vocabulary.classes.best(w_out, moments)
        measured = {m.name: _known(getattr(moments, m.name)) for m in FROM_A_BLOCK if hasattr(moments, m.name)}
        return pl.DataFrame(
            {
                "layer": np.full(len(w_out), unit),
                "neuron": np.arange(len(w_out)),
                "token_class": names,
                **measured,
                CLASS_SHARE.name: shares,
                CLASS_DIFFERENCE.name: differences,
            },
            schema=NEURON_SHARD,
        )

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """`neurons`, `neuron_counts` and `neuron_tokens` from the shards of all blocks, in order.

        Holds a row per neuron of the model: a kind may depend on all of them.
        """
        rows = pl.concat(shards)
        neurons = with_kinds(rows, self.thresholds).cast(pl.Schema(NEURONS_TABLE)).select(*NEURONS_TABLE)
        return {
            "neurons": neurons,
            "neuron_counts": neuron_counts(neurons),
            "neuron_tokens": self._tokens_table(neurons),
        }

    def neuron(self, layer: int, neuron: int) -> NeuronReport:
        """All that is said of one neuron, without measuring the others' skew and kurtosis.

        Raises UnsupportedError where the model has no such neuron.
        """
        if not 0 <= layer < self.model.depth:
            raise UnsupportedError(f"{self.model.name} has no layer {layer}: expected 0 … {self.model.depth - 1}")
        w_out, vocabulary = self._w_out(layer), self._vocabulary
        if not 0 <= neuron < len(w_out):
            raise UnsupportedError(
                f"{self.model.name} has no neuron {neuron} in layer {layer}: expected 0 … {len(w_out) - 1}"
            )
        moments = vocabulary.directions.moments(w_out[neuron : neuron + 1])
        others = self._spreads
        own = (pl.col("layer") == layer) & (pl.col("neuron") == neuron)
        shape = [
            pl.when(own).then(pl.lit(_known(getattr(moments, m.name))[0], dtype=pl.Float64)).alias(m.name)
            for m in (SKEW, KURTOSIS)
        ]
        row = with_kinds(others.with_columns(shape), self.thresholds).filter(own).row(0, named=True)
        classes = vocabulary.classes.ranked(w_out[neuron : neuron + 1], moments, CLASSES_REPORTED)
        row |= {CLASS_SHARE.name: classes[0].share, CLASS_DIFFERENCE.name: classes[0].difference} if classes else {}
        promoted, suppressed = next(
            extreme_tokens(w_out[neuron : neuron + 1], vocabulary.directions, vocabulary.texts, self.tokens)
        )
        numbers = {name: row.get(name) for name in METRICS}
        return NeuronReport(layer, neuron, row["kind"], numbers, promoted, suppressed, classes)

    def _w_out(self, block: int) -> Float[Tensor, "neurons d_model"]:
        return mlp_output_weights(self.model, block, self.processed)

    @cached_property
    def _vocabulary(self) -> "_PreparedVocabulary":
        weight, _ = unembedding(self.model, self.processed)
        texts = vocabulary_of(self.model)
        classes = ClassSeparation(weight, token_classes(texts))
        return _PreparedVocabulary(VocabularyDirections(weight), texts, classes)

    @cached_property
    def _spreads(self) -> pl.DataFrame:
        """What needs no pass over the vocabulary, of all the model's neurons."""
        frames = []
        for block in range(self.model.depth):
            spread = self._vocabulary.directions.spread(self._w_out(block))
            columns = {m.name: getattr(spread, m.name).numpy() for m in (NORM, MEAN, VARIANCE, EFFECT_VARIANCE)}
            neurons = len(spread.norm)
            frames.append(pl.DataFrame({"layer": np.full(neurons, block), "neuron": np.arange(neurons), **columns}))
        return pl.concat(frames)

    def _tokens_table(self, neurons: pl.DataFrame) -> pl.DataFrame:
        chosen = strongest_of_each_kind(neurons, self.strongest)
        w_out = torch.empty(len(chosen), self.model.head.weight.shape[1], device=self.model.device)
        for layer in chosen["layer"].unique(maintain_order=True):
            places = (chosen["layer"] == layer).arg_true().to_list()
            w_out[places] = self._w_out(layer)[chosen["neuron"].gather(places).to_list()]
        vocabulary = self._vocabulary
        return neuron_tokens_table(chosen, w_out, vocabulary.directions, vocabulary.texts, self.tokens)


@dataclass(frozen=True, slots=True)
class _PreparedVocabulary:
    directions: VocabularyDirections
    texts: Vocabulary
    classes: ClassSeparation


def _known(values: Tensor) -> list[float | None]:
    """Numbers of a column, None for those that do not exist."""
    return [None if value != value else value for value in values.tolist()]


def with_kinds(neurons: pl.DataFrame, thresholds: Thresholds) -> pl.DataFrame:
    """Rows of NEURON_SHARD for all of a model's neurons, with the robust z-scores and the kind of each."""
    column = {m.name: neurons[m.name].to_numpy() for m in (NORM, VARIANCE, SKEW, KURTOSIS, EFFECT_VARIANCE)}
    alive = column["variance"] > CONSTANT
    relative_effect = column["effect_variance"] / np.where(alive, column["norm"], 1.0) ** 2
    scores = {
        VARIANCE_Z.name: robust_z(_log(column["variance"], alive)),
        NORM_Z.name: robust_z(_log(column["norm"], alive)),
        EFFECT_Z.name: robust_z(_log(relative_effect, alive)),
    }
    sharp = column["kurtosis"] > thresholds.kurtosis
    long = scores[NORM_Z.name] > thresholds.entropy_norm_z
    meets = {
        DEAD.name: ~alive,
        PREDICTION.name: sharp & (column["skew"] > 0),
        SUPPRESSION.name: sharp & (column["skew"] < 0),
        ENTROPY.name: long & (scores[EFFECT_Z.name] < thresholds.entropy_effect_z),
        PARTITION.name: scores[VARIANCE_Z.name] > thresholds.partition_variance_z,
    }
    kind = np.select(list(meets.values()), list(meets), default=OTHER.name)
    return neurons.with_columns(
        kind=pl.Series(kind.tolist(), dtype=pl.String),
        **{name: pl.Series(score).fill_nan(None) for name, score in scores.items()},
    )


def _log(values: np.ndarray, alive: np.ndarray) -> np.ndarray:
    positive = alive & (values > 0)
    return np.where(positive, np.log(np.where(positive, values, 1.0)), np.nan)


def counted(facts: ModelFacts, counts: pl.DataFrame) -> dict[str, Any]:
    """What a row of the tables is, for run.json: a neuron of the MLP, or of each of its experts."""
    if facts.experts is None or facts.mlp_width is None:
        return {"rows": "one per neuron of the MLP"}
    rows = int(counts.filter(pl.col("layer") == facts.layers - 1)["neurons"][0])
    return {
        "rows": "one per neuron of every expert",
        "experts": facts.experts,
        "neurons_of_an_expert": facts.mlp_width,
        "neurons_of_shared_experts": rows - facts.experts * facts.mlp_width,
        "numbering": "one routed expert after the other, then the shared ones",
    }


def neuron_counts(neurons: pl.DataFrame) -> pl.DataFrame:
    """NEURON_COUNTS_TABLE from the neurons table."""
    rows = []
    for (layer,), frame in neurons.group_by("layer", maintain_order=True):
        for kind in KINDS:
            count = int((frame["kind"] == kind).sum())
            rows.append((layer, kind, count, count / len(frame), len(frame), frame["kurtosis"].max()))
    return pl.DataFrame(rows, schema=NEURON_COUNTS_TABLE, orient="row")

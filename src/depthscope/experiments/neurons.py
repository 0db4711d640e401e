"""Neurons (E8 of the paper): prediction, suppression, entropy and partition neurons, classified by their output weights alone.

No text is needed: each neuron's w_out is compared with every token's unembedding vector. Kinds are those of schema/neurons.py,
and neuron_kinds.py assigns them from these numbers. The strongest neurons of each kind are shown with the tokens and classes
of tokens that they promote and suppress.

In a mixture of experts every neuron of every expert counts, shared experts included; run.json describes their numbering.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from depthscope.data.token_classes import TokenClasses, Vocabulary, token_classes, vocabulary_of
from depthscope.errors import DataError, UnsupportedError
from depthscope.experiments.experiment import Subject
from depthscope.experiments.neuron_kinds import Thresholds, neuron_counts, with_kinds
from depthscope.models.model import Model, ModelFacts
from depthscope.models.weights import mlp_output_weights, require_mlp_output_weights, unembedding
from depthscope.schema.manifest import NeuronRows
from depthscope.schema.neurons import (
    CLASS_DIFFERENCE,
    CLASS_SHARE,
    EFFECT_VARIANCE,
    FROM_A_BLOCK,
    KINDS,
    KURTOSIS,
    MEAN,
    METRICS,
    NEURON_SHARD,
    NEURON_TOKENS_TABLE,
    NEURONS_TABLE,
    NORM,
    SKEW,
    VARIANCE,
)
from depthscope.statistics.moments import Spread, VocabularyDirections, group_separation, group_sums

NAME = "neurons"
LONGEST_NAME = 40
"""The most characters in a neuron's LAYER.NEURON."""
AT_ONCE = 16
"""Neurons whose cosines with the whole vocabulary are in memory at once."""
CLASSES_REPORTED = 8
"""Classes of tokens in the report on a single neuron."""


def parse_neuron(text: str) -> tuple[int, int]:
    """(layer, neuron) from "10.345". Raises DataError for anything else."""
    layer, dot, neuron = text.partition(".")
    if not (dot and layer.isdecimal() and neuron.isdecimal()) or len(text) > LONGEST_NAME:
        shown = text if len(text) <= LONGEST_NAME else f"{text[:LONGEST_NAME]}…"
        raise DataError(f"cannot read neuron {shown!r}: expected LAYER.NEURON, both numbered from 0, such as 10.345")
    return int(layer), int(neuron)


@dataclass(frozen=True, slots=True)
class TokenCosine:
    """A token and the cosine of its unembedding vector with a neuron's w_out."""

    token: int
    text: str
    cosine: float


@dataclass(frozen=True, slots=True)
class ClassEffect:
    """How a neuron's logit effect separates a class of tokens from the rest."""

    name: str
    tokens: int
    """Size of the class."""
    share: float
    """Share of the effect's variance between class and rest, η²."""
    difference: float
    """Mean effect on the class minus that on the rest, in standard deviations of the effect over the vocabulary."""


@dataclass(frozen=True, slots=True)
class NeuronReport:
    """The full report on one neuron. `numbers` are the metrics of schema/neurons.py; None if one does not exist."""

    layer: int
    neuron: int
    kind: str
    numbers: dict[str, float | None]
    promoted: list[TokenCosine]
    suppressed: list[TokenCosine]
    classes: list[ClassEffect]
    """The classes that explain most of the variance, in descending order."""


class Neurons:
    """The experiment, with own units: a unit is a block, its shard the block's neurons (NEURON_SHARD).

    `processed`: whether the weights are folded and centred first (appendix D of the paper) or used unchanged;
    `strongest`: how many neurons of a kind the table of tokens shows, `tokens`: how many promoted and suppressed tokens for
    each. Raises UnsupportedError if the model's MLPs do not have output weights with one row per neuron.
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

        Keeps one row per neuron of the model in memory, because a kind may depend on all of them.
        """
        rows = pl.concat(shards)
        neurons = with_kinds(rows, self.thresholds).cast(pl.Schema(NEURONS_TABLE)).select(*NEURONS_TABLE)
        return {
            "neurons": neurons,
            "neuron_counts": neuron_counts(neurons),
            "neuron_tokens": self._tokens_table(neurons),
        }

    def facts(self, tables: Mapping[str, pl.DataFrame]) -> dict[str, NeuronRows]:
        """What a row of the tables is, for run.json."""
        return {"neurons": counted(self.model.facts, tables["neuron_counts"])}

    def neuron(self, layer: int, neuron: int) -> NeuronReport:
        """The report on one neuron, without computing the skew and kurtosis of the others.

        Raises UnsupportedError if the model has no such neuron.
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
        """The metrics of all the model's neurons that need no pass over the vocabulary."""
        frames = []
        for block in range(self.model.depth):
            spread = self._vocabulary.directions.spread(self._w_out(block))
            columns = {m.name: getattr(spread, m.name).numpy() for m in (NORM, MEAN, VARIANCE, EFFECT_VARIANCE)}
            neurons = len(spread.norm)
            frames.append(pl.DataFrame({"layer": np.full(neurons, block), "neuron": np.arange(neurons), **columns}))
        return pl.concat(frames)

    def _tokens_table(self, neurons: pl.DataFrame) -> pl.DataFrame:
        chosen = strongest_of_each_kind(neurons, self.strongest)
        w_out = torch.empty(len(chosen), self.model.unembedding.weight.shape[1], device=self.model.device)
        for layer in chosen["layer"].unique(maintain_order=True):
            places = (chosen["layer"] == layer).arg_true().to_list()
            w_out[places] = self._w_out(layer)[chosen["neuron"].gather(places).to_list()]
        vocabulary = self._vocabulary
        return neuron_tokens_table(chosen, w_out, vocabulary.directions, vocabulary.texts, self.tokens)


def make(subject: Subject) -> Neurons:
    """All neurons of a model."""
    return Neurons(subject.model)


class ClassSeparation:
    """Classes of tokens for an unembedding: prepared once, then one matrix product for any set of neurons."""

    def __init__(self, unembedding: Float[Tensor, "vocab d_model"], classes: TokenClasses) -> None:
        self.classes = classes
        self._sums = group_sums(unembedding, torch.from_numpy(classes.member))
        self._sizes = torch.from_numpy(classes.sizes).double()
        self._entries = len(unembedding)

    def separation(
        self, w_out: Float[Tensor, "neurons d_model"], spread: Spread
    ) -> tuple[Float64[Tensor, "neurons classes"], Float64[Tensor, "neurons classes"]]:
        """(η², difference in standard deviations) of every neuron and class; NaN for dead neurons."""
        return group_separation(w_out, self._sums, self._sizes, spread, self._entries)

    def best(
        self, w_out: Float[Tensor, "neurons d_model"], spread: Spread
    ) -> tuple[list[str | None], list[float | None], list[float | None]]:
        """For each neuron the class with the largest η², that η² and the difference; None if there is none."""
        shares, differences = self.separation(w_out, spread)
        if not self.classes.names:
            return [None] * len(w_out), [None] * len(w_out), [None] * len(w_out)
        share, place = shares.nan_to_num(-1).max(1)
        alive = (share >= 0).tolist()
        chosen = differences.gather(1, place[:, None])[:, 0].tolist()
        names = [self.classes.names[i] if a else None for i, a in zip(place.tolist(), alive, strict=True)]
        return (
            names,
            [s if a else None for s, a in zip(share.tolist(), alive, strict=True)],
            [d if a else None for d, a in zip(chosen, alive, strict=True)],
        )

    def ranked(self, w_out: Float[Tensor, "1 d_model"], spread: Spread, count: int) -> list[ClassEffect]:
        """The `count` classes that explain the most of one neuron's effect."""
        shares, differences = self.separation(w_out, spread)
        effects = [
            ClassEffect(name, int(size), share, difference)
            for name, size, share, difference in zip(
                self.classes.names, self.classes.sizes, shares[0].tolist(), differences[0].tolist(), strict=True
            )
            if share == share  # NaN for dead neurons
        ]
        return sorted(effects, key=lambda effect: -effect.share)[:count]


@dataclass(frozen=True, slots=True)
class _PreparedVocabulary:
    directions: VocabularyDirections
    texts: Vocabulary
    classes: ClassSeparation


def _known(values: Tensor) -> list[float | None]:
    """The values of a column, None for those that do not exist."""
    return [None if value != value else value for value in values.tolist()]


def counted(facts: ModelFacts, counts: pl.DataFrame) -> NeuronRows:
    """What a row of the tables represents, for run.json: a neuron of the MLP, or of each of its experts."""
    if facts.experts is None or facts.mlp_width is None:
        return NeuronRows(rows="one per neuron of the MLP")
    rows = int(counts.filter(pl.col("layer") == facts.layers - 1)["neurons"][0])
    return NeuronRows(
        rows="one per neuron of every expert",
        experts=facts.experts,
        neurons_of_an_expert=facts.mlp_width,
        neurons_of_shared_experts=rows - facts.experts * facts.mlp_width,
        numbering="one routed expert after the other, then the shared ones",
    )


def extreme_tokens(
    w_out: Float[Tensor, "neurons d_model"], directions: VocabularyDirections, vocabulary: Vocabulary, count: int
) -> Iterator[tuple[list[TokenCosine], list[TokenCosine]]]:
    """For each neuron its `count` most promoted and most suppressed tokens, the most extreme first."""
    count = min(count, directions.size)
    for start in range(0, len(w_out), AT_ONCE):
        for cosines in directions.cosines(w_out[start : start + AT_ONCE]).cpu():
            promoted, suppressed = (cosines.topk(count, largest=largest) for largest in (True, False))
            yield (_named(*promoted, vocabulary), _named(*suppressed, vocabulary))


def _named(cosines: Tensor, tokens: Tensor, vocabulary: Vocabulary) -> list[TokenCosine]:
    pairs = zip(tokens.tolist(), cosines.tolist(), strict=True)
    return [TokenCosine(token, vocabulary.shown(token), cosine) for token, cosine in pairs]


def strongest_of_each_kind(neurons: pl.DataFrame, count: int) -> pl.DataFrame:
    """The `count` strongest neurons of each kind, in the order of KINDS, strongest first, with a column `strength`."""
    chosen = [
        neurons.filter(pl.col("kind") == kind.name)
        .with_columns(strength=pl.col(kind.strength))
        .sort("strength", "layer", "neuron", descending=[True, False, False])
        .head(count)
        for kind in KINDS.values()
        if kind.strength is not None
    ]
    return pl.concat(chosen)


def neuron_tokens_table(
    chosen: pl.DataFrame,
    w_out: Float[Tensor, "neurons d_model"],
    directions: VocabularyDirections,
    vocabulary: Vocabulary,
    count: int,
) -> pl.DataFrame:
    """NEURON_TOKENS_TABLE for selected rows of the neurons table (with `strength`); `w_out` has a row for each."""
    rows = []
    for row, sides in zip(
        chosen.iter_rows(named=True), extreme_tokens(w_out, directions, vocabulary, count), strict=True
    ):
        lists = [[getattr(t, part) for t in side] for side in sides for part in ("text", "token", "cosine")]
        about = [row[name] for name in ("layer", "neuron", "kind", "strength")]
        rows.append([*about, *lists, row["token_class"], row[CLASS_SHARE.name], row[CLASS_DIFFERENCE.name]])
    return pl.DataFrame(rows, schema=NEURON_TOKENS_TABLE, orient="row")

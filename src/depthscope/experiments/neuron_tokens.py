"""What neurons promote and suppress: the tokens whose unembedding vectors lie most along and most against w_out."""

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from depthscope.data.token_classes import TokenClasses, Vocabulary
from depthscope.measure.moments import Spread, VocabularyDirections, group_separation, group_sums
from depthscope.schema.neurons import CLASS_DIFFERENCE, CLASS_SHARE, KINDS, NEURON_TOKENS_TABLE

AT_ONCE = 16
"""Neurons whose cosines with all of the vocabulary are alive at a time."""


@dataclass(frozen=True, slots=True)
class TokenCosine:
    """A token and the cosine of its unembedding vector with a neuron's w_out."""

    token: int
    text: str
    cosine: float


@dataclass(frozen=True, slots=True)
class ClassEffect:
    """How a neuron's logit effect tells a class of tokens from the rest."""

    name: str
    tokens: int
    """Size of the class."""
    share: float
    """Share of the effect's variance between class and rest, η²."""
    difference: float
    """Mean effect on the class less that on the rest, in standard deviations of the effect over the vocabulary."""


@dataclass(frozen=True, slots=True)
class NeuronReport:
    """All that is said of one neuron. `numbers` are the metrics of schema/neurons.py; None where one does not exist."""

    layer: int
    neuron: int
    kind: str
    numbers: dict[str, float | None]
    promoted: list[TokenCosine]
    suppressed: list[TokenCosine]
    classes: list[ClassEffect]
    """The classes that explain most of the variance, most first."""


class ClassSeparation:
    """Classes of tokens against an unembedding: prepared once, then one matrix product for any neurons."""

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
        """For each neuron the class with the largest η², that η² and the difference; None where there is none."""
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
        """The `count` classes that explain most of one neuron's effect."""
        shares, differences = self.separation(w_out, spread)
        effects = [
            ClassEffect(name, int(size), share, difference)
            for name, size, share, difference in zip(
                self.classes.names, self.classes.sizes, shares[0].tolist(), differences[0].tolist(), strict=True
            )
            if share == share  # NaN for dead neurons
        ]
        return sorted(effects, key=lambda effect: -effect.share)[:count]


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
    """NEURON_TOKENS_TABLE for chosen rows of the neurons table (with `strength`); `w_out` has a row for each."""
    rows = []
    for row, sides in zip(
        chosen.iter_rows(named=True), extreme_tokens(w_out, directions, vocabulary, count), strict=True
    ):
        lists = [[getattr(t, part) for t in side] for side in sides for part in ("text", "token", "cosine")]
        about = [row[name] for name in ("layer", "neuron", "kind", "strength")]
        rows.append([*about, *lists, row["token_class"], row[CLASS_SHARE.name], row[CLASS_DIFFERENCE.name]])
    return pl.DataFrame(rows, schema=NEURON_TOKENS_TABLE, orient="row")

"""Which neurons may be entropy neurons, by their output weights alone, and random neurons of the same layers to compare with.

Stolfo et al. 2024 call a neuron of the last layer an entropy neuron if its output weight is long and the variance of its effect
on the logits small, and choose by eye. Here neurons are ranked by norm_z − effect_z, the robust z-scores that define the kind
`entropy` of neuron_kinds.py: a neuron of that kind has a score above 4, and where a model has none, the ranking still gives
those that are most like it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from depthscope.errors import DataError
from depthscope.experiments.neuron_kinds import Thresholds, with_kinds
from depthscope.models.model import Model
from depthscope.models.weights import mlp_output_weights, require_mlp_output_weights, unembedding
from depthscope.routes import NEURON
from depthscope.schema.entropy_neurons import CANDIDATE, CONTROL
from depthscope.schema.neurons import EFFECT_VARIANCE, KURTOSIS, MEAN, NORM, SKEW, VARIANCE
from depthscope.statistics.moments import VocabularyDirections

SEED = 0
"""Of the control's neurons."""


@dataclass(frozen=True, slots=True)
class ChosenNeuron:
    """A neuron that is ablated. `rank`: its place in its group, from 1; controls are in the order of layer and number."""

    layer: int
    neuron: int
    group: str
    rank: int
    kind: str
    norm_z: float | None
    effect_z: float | None


def chosen_neurons(model: Model, top: int, layers: int) -> list[ChosenNeuron]:
    """The `top` candidates among the last `layers` layers, then as many other neurons of the same layers.

    At most half of the layers' neurons are candidates. Raises UnsupportedError for a model without MLP neurons that can be
    ablated in one of these layers, DataError where all their weights are zero.
    """
    require_mlp_output_weights(model)
    last = range(max(0, model.depth - layers), model.depth)
    for block in last:
        model.inside.projection(NEURON, block)  # says why, where neurons cannot be ablated one by one
    directions = VocabularyDirections(unembedding(model)[0])
    neurons = _scored(model, directions)
    there = neurons.filter(pl.col("layer").is_in([*last]), pl.col("norm_z").is_not_null())
    there = there.filter(pl.col("effect_z").is_not_null())
    top = min(top, len(there) // 2)
    if not top:
        raise DataError(f"{model.name}: the neurons of the last {len(last)} layers have no output weights but zeros")
    score = pl.col("norm_z") - pl.col("effect_z")
    ranked = there.with_columns(score=score).sort("score", "layer", "neuron", descending=[True, False, False])
    picked, rest = ranked.head(top), ranked.tail(-top)
    controls = _controls(picked, rest)
    return _described(model, directions, neurons, [(CANDIDATE, picked), (CONTROL, controls)])


def _scored(model: Model, directions: VocabularyDirections) -> pl.DataFrame:
    """All neurons with their z-scores; skew and kurtosis are not known yet."""
    frames = []
    for block in range(model.depth):
        spread = directions.spread(mlp_output_weights(model, block))
        columns = {m.name: getattr(spread, m.name).numpy() for m in (NORM, MEAN, VARIANCE, EFFECT_VARIANCE)}
        frames.append(pl.DataFrame({"layer": block, "neuron": np.arange(len(spread.norm)), **columns}))
    unknown = [pl.lit(None, dtype=pl.Float64).alias(m.name) for m in (SKEW, KURTOSIS)]
    return with_kinds(pl.concat(frames).with_columns(unknown), Thresholds())


def _controls(picked: pl.DataFrame, rest: pl.DataFrame) -> pl.DataFrame:
    """From each layer as many of the rest, drawn at random, as were picked there, or as many as there are."""
    drawn, generator = [], np.random.default_rng(SEED)
    for (layer,), frame in picked.sort("layer").group_by("layer", maintain_order=True):
        others = rest.filter(pl.col("layer") == layer).sort("neuron")
        count = min(len(frame), len(others))
        drawn.append(others[np.sort(generator.choice(len(others), count, replace=False)).tolist()])
    return pl.concat(drawn)


def _described(
    model: Model,
    directions: VocabularyDirections,
    neurons: pl.DataFrame,
    groups: Sequence[tuple[str, pl.DataFrame]],
) -> list[ChosenNeuron]:
    """The chosen neurons with their kinds, for which skew and kurtosis are computed for them alone."""
    chosen = pl.concat([frame.select("layer", "neuron") for _, frame in groups])
    shapes = []
    for (layer,), frame in chosen.group_by("layer", maintain_order=True):
        moments = directions.moments(mlp_output_weights(model, int(str(layer)))[frame["neuron"].to_list()])
        shapes.append(frame.with_columns(skew=moments.skew.numpy(), kurtosis=moments.kurtosis.numpy()))
    known = neurons.drop("kind", SKEW.name, KURTOSIS.name).join(
        pl.concat(shapes), on=["layer", "neuron"], how="left", maintain_order="left"
    )
    kinds = with_kinds(known, Thresholds())
    return [
        ChosenNeuron(row["layer"], row["neuron"], group, rank, row["kind"], row["norm_z"], row["effect_z"])
        for group, frame in groups
        for rank, row in enumerate(
            frame.select("layer", "neuron")
            .join(kinds, on=["layer", "neuron"], how="left", maintain_order="left")
            .iter_rows(named=True),
            1,
        )
    ]

"""Neurons: a layer's highest-kurtosis neurons, what a neuron promotes, and its activations on a prompt."""

from collections.abc import Sequence
from functools import cached_property

import polars as pl
import torch

from depthscope.experiments.neurons import NeuronReport, Neurons
from depthscope.explore import markup
from depthscope.models.activations import ActivationReader
from depthscope.models.model import Model
from depthscope.schema.neurons import OTHER, PREDICTION, SUPPRESSION
from depthscope.shapes import TokenIds

ALL_AT_ONCE = 1e11
"""Most multiplications for measuring all layers at once, about a second. Larger models are measured layer by layer."""
LISTED = 8
KIND = {OTHER.name: "no particular kind"}


class NeuronLayers:
    """The neurons of a model by layer, each layer measured once."""

    def __init__(self, model: Model, neurons: Neurons) -> None:
        self.model, self.neurons = model, neurons
        self._shards: dict[int, pl.DataFrame] = {}

    def layer(self, layer: int) -> pl.DataFrame:
        """The neurons of a layer (NEURON_SHARD)."""
        if layer not in self._shards:
            self._shards[layer] = self.neurons.work(layer)
        return self._shards[layer]

    @cached_property
    def small(self) -> bool:
        """Whether all layers can be measured interactively."""
        weight = self.model.unembedding.weight
        return len(self.layer(0)) * self.model.depth * weight.numel() <= ALL_AT_ONCE

    def counts(self) -> list[tuple[int, int, int, float]]:
        """(layer, prediction neurons, suppression neurons, largest kurtosis) of the layers measured so far."""
        layers = range(self.model.depth) if self.small else sorted(self._shards)
        rows = []
        for layer in layers:
            sides = self.sides(layer)
            largest = self.layer(layer)["kurtosis"].drop_nans().max()
            rows.append((layer, *(self._sharp(side) for side in sides), float(largest or 0)))  # type: ignore[arg-type]
        return rows

    def sides(self, layer: int) -> tuple[pl.DataFrame, pl.DataFrame]:
        """A layer's neurons with positive and with negative skew, highest kurtosis first."""
        found = self.layer(layer).filter(pl.col("kurtosis").is_not_null()).sort("kurtosis", descending=True)
        return found.filter(pl.col("skew") > 0), found.filter(pl.col("skew") < 0)

    def _sharp(self, side: pl.DataFrame) -> int:
        return side.filter(pl.col("kurtosis") > self.neurons.thresholds.kurtosis).height


def layers_table(layers: NeuronLayers) -> str:
    """The number of prediction and suppression neurons in each layer, as HTML with clickable layers."""
    rows = [
        [
            markup.choice(f"{layer}", str(layer), f"show the neurons of layer {layer}"),
            f"<td>{predicting}</td>",
            f"<td>{suppressing}</td>",
            f"<td class='cell' style='{markup.shade(largest / 50)}'>{largest:.1f}</td>",
        ]
        for layer, predicting, suppressing, largest in layers.counts()
    ]
    least = layers.neurons.thresholds.kurtosis
    caption = (
        f"Neurons whose effect on the vocabulary has a kurtosis over {least:g}: prediction (skew above 0) and suppression "
        "(below 0). Choose a layer."
    )
    kinds = [PREDICTION.name, SUPPRESSION.name]
    return markup.table(["layer", *kinds, "largest kurtosis"], rows, caption, "counts")


def sharpest(layers: NeuronLayers) -> str:
    """LAYER.NEURON of the prediction neuron with the highest kurtosis; in a large model, of the last layer only."""
    looked_at = range(layers.model.depth) if layers.small else [layers.model.depth - 1]
    best = [
        (side["kurtosis"][0], layer, side["neuron"][0])
        for layer in looked_at
        if (side := layers.sides(layer)[0]).height
    ]
    _, layer, neuron = max(best, default=(0.0, layers.model.depth - 1, 0))
    return f"{layer}.{neuron}"


def sharpest_table(layers: NeuronLayers, layer: int) -> str:
    """A layer's neurons with the highest kurtosis, clickable, as HTML."""
    least = layers.neurons.thresholds.kurtosis
    parts = []
    for kind, side in zip((PREDICTION, SUPPRESSION), layers.sides(layer), strict=True):
        sharp = side.filter(pl.col("kurtosis") > least).height
        rows = [
            [
                markup.choice(f"{layer}.{one['neuron']}", f"{layer}.{one['neuron']}", "show this neuron"),
                f"<td>{one['kurtosis']:.2f}</td>",
                f"<td>{one['skew']:+.2f}</td>",
                f"<td>{markup.escaped(one['token_class'] or '')}</td>",
            ]
            for one in side.head(LISTED).iter_rows(named=True)
        ]
        said = f"{sharp} in layer {layer}" if sharp else f"none in layer {layer}; the closest are shown"
        parts.append(
            markup.table(["neuron", "kurtosis", "skew", "separates"], rows, f"{kind.title} neurons: {said}", "sharpest")
        )
    return markup.columns(parts)


def neuron_card(report: NeuronReport) -> str:
    """What a neuron promotes and suppresses, as HTML."""
    numbers = {name: value for name, value in report.numbers.items() if value is not None}
    said = ", ".join(f"{name} {numbers[name]:.3g}" for name in ("kurtosis", "skew", "norm") if name in numbers)
    sides = []
    both = (*report.promoted, *report.suppressed)
    most = max((abs(one.cosine) for one in both), default=0.0) or 1.0  # one scale, so that bars are comparable
    for title, found in (("Promotes", report.promoted), ("Suppresses", report.suppressed)):
        items = [(one.text, one.cosine) for one in found]
        under = "<p class='under'>cosine of its output with the token's unembedding</p>"
        sides.append(f"<h4>{title}</h4>{under}{markup.bars(items, share=False, most=most)}")
    title = f"<h3>Neuron {report.layer}.{report.neuron}: {markup.escaped(KIND.get(report.kind, report.kind))}</h3>"
    return f"{title}<p class='under'>{markup.escaped(said)}</p>{markup.columns(sides)}"


def activations(model: Model, ids: TokenIds, layer: int, neuron: int) -> list[float]:
    """A neuron's activation at every token of a prompt. Raises UnsupportedError if it cannot be read."""
    reader = ActivationReader(model, torch.tensor([[layer, neuron]]))
    return reader.read(ids, range(ids.shape[1])).values[0, :, 0].tolist()


def activations_text(tokens: Sequence[str], values: Sequence[float]) -> str:
    """The prompt with tokens coloured by activation, blue above 0 and orange below, as HTML."""
    most = max((abs(value) for value in values), default=0.0) or 1.0
    shown = "".join(
        f"<span class='lit {'below' if value < 0 else ''}' style='{markup.shade(abs(value) / most)}' "
        f"title='{value:+.4g}'>{markup.token(one)}</span>"
        for one, value in zip(tokens, values, strict=True)
    )
    low, high = min(values), max(values)
    return (
        f"<p class='under'>Activation on the prompt: {low:+.3g} to {high:+.3g}; blue above 0, orange below. "
        f"Hover over a token for its value.</p><p class='tokens' dir='ltr'>{shown}</p>"
    )

"""The per-layer numbers from which stages are found, with their bootstrap replicates, from a run's shards and tables.

Row 0 of every array is from the original documents, and each further row from a bootstrap replicate; replicates of different
experiments resample the same documents. Neurons are counted, not sampled, so they have a single row. For intervals there are
also the values without each group of documents in turn.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import polars as pl
from jaxtyping import Float64

from depthscope.edit_registry import sweeps
from depthscope.run.store import RunDirectory
from depthscope.schema import attention, lens, norms, sweep
from depthscope.schema.stages import FLOOR, SIGNALS
from depthscope.stages.readable import lens_to_read
from depthscope.statistics.bootstrap import PoissonBootstrap

Layers = Float64[np.ndarray, "rows layers"]
Rows = Mapping[str, Float64[np.ndarray, "_ _"]]
"""Signals by name: the original and its replicates (one row where nothing is sampled) × layers (one less for swaps)."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """A quantity estimated from documents: from all and for each replicate, and without each group of documents."""

    means: Float64[np.ndarray, "rows columns"]
    """Row 0 from the original documents, then one per replicate."""
    without: Float64[np.ndarray, "groups columns"]
    """NaN for groups without documents."""
    group_tokens: Float64[np.ndarray, " groups"]


@dataclass(slots=True)
class ResampledLayers:
    """What a run measured, per layer: `values["drop.kl"]` and so on, shaped [1 + replicates, layers]."""

    depth: int
    documents: int
    token_entropy: float
    """Loss, in nats, of predicting the text's next tokens by their frequencies in it."""
    values: dict[str, Layers] = field(default_factory=dict)
    without: dict[str, Layers] = field(default_factory=dict)
    """The same quantities without each jackknife group, [groups, layers]; none for neurons."""
    group_tokens: Float64[np.ndarray, " groups"] | None = None
    """How many tokens each jackknife group has."""

    def add(self, name: str, sampled: Sampled, columns: list[int] | slice = slice(None)) -> None:
        """Add a quantity, or some columns of it."""
        self.values[name], self.without[name] = sampled.means[:, columns], sampled.without[:, columns]
        self.group_tokens = sampled.group_tokens

    def get(self, *names: str) -> list[Layers] | None:
        """These values, or None if any of them was not measured."""
        return [self.values[name] for name in names] if all(name in self.values for name in names) else None


def read_measured(run: RunDirectory, shards: Callable[[str], Iterable[pl.DataFrame]], depth: int) -> ResampledLayers:
    """All measurements of the run that stages are found from. `shards(name)` reads an experiment's sums over documents."""
    text = run.manifest.text
    assert text.documents is not None
    assert text.token_entropy is not None
    measured = ResampledLayers(depth, text.documents, text.token_entropy)
    for name, add in SOURCES.items():
        if name in run.manifest.finished:
            add(measured, shards(name))
    if "neuron_counts" in run.tables():
        _neurons(measured, run.table("neuron_counts"))
    return measured


def _sweep(measured: ResampledLayers, shards: Iterable[pl.DataFrame]) -> None:
    names, sampled = _resampled(shards, ["edit", "layer"], [sweep.KL.name, sweep.AGREEMENT.name])
    for edit, how in sweeps().items():
        columns = [i for i, (kind, _) in enumerate(names) if kind == edit]
        if len(columns) == len(how.layers(measured.depth)):  # a layer that cannot be edited leaves a gap
            for metric, values in sampled.items():
                measured.add(f"{edit}.{metric}", values, columns)


def _lens(measured: ResampledLayers, shards: Iterable[pl.DataFrame]) -> None:
    """`lens.kl` and so on and, where fitted lenses were measured, `tuned.kl`, `jacobian.kl` and so on."""
    found = iter(shards)
    first = next(found)
    names = [lens.KL.name, lens.ENTROPY.name, lens.LOSS.name]
    columns = {name: f"lens.{name}" for name in names}
    columns |= {f"{fitted}_{name}": f"{fitted}.{name}" for fitted in lens.FITTED for name in names}
    columns = {column: value for column, value in columns.items() if column in first.columns}
    _, sampled = _resampled(_with_first(first, found), ["layer"], list(columns))
    for column, values in sampled.items():
        measured.add(columns[column], values)


def _norms(measured: ResampledLayers, shards: Iterable[pl.DataFrame]) -> None:
    _, sampled = _resampled(shards, ["layer"], [norms.NORM_RATIO.name, norms.MLP_NORM.name])
    for metric, values in sampled.items():
        measured.add(f"norms.{metric}", values)


def _attention(measured: ResampledLayers, shards: Iterable[pl.DataFrame]) -> None:
    """The share on five previous tokens; under lad2024 five times the mean entry of five sub-diagonals, nearly the same."""
    shares = ((attention.PREVIOUS[5].name, 1.0), (attention.BANDS[5].name, 5.0))

    def per_layer(shard: pl.DataFrame) -> pl.DataFrame:
        column, factor = next((name, factor) for name, factor in shares if name in shard.columns)
        share = (pl.col(column).mean() * factor).alias("local")
        return shard.group_by("document", "layer", maintain_order=True).agg(pl.col("tokens").first(), share)

    found = iter(shards)
    first = next(found)
    if any(name in first.columns for name, _ in shares):
        names, sampled = _resampled((per_layer(shard) for shard in _with_first(first, found)), ["layer"], ["local"])
        if len(names) == measured.depth:
            measured.add("attention.local", sampled["local"])


def _with_first(first: pl.DataFrame, others: Iterable[pl.DataFrame]) -> Iterable[pl.DataFrame]:
    yield first
    yield from others


def _neurons(measured: ResampledLayers, counts: pl.DataFrame) -> None:
    for kind in ("prediction", "suppression"):
        shares = counts.filter(pl.col("kind") == kind).sort("layer")["share"].to_numpy()
        if len(shares) == measured.depth:
            measured.values[f"neurons.{kind}"] = shares[None].astype(np.float64)


SOURCES = {"sweep": _sweep, "lens": _lens, "norms": _norms, "attention": _attention}


def _resampled(
    shards: Iterable[pl.DataFrame], keys: Sequence[str], metrics: Sequence[str]
) -> tuple[list[tuple], dict[str, Sampled]]:
    """Keys of the rows, and for each metric its means per row, from shards of sums over documents."""
    names: list[tuple] = []
    bootstrap: PoissonBootstrap | None = None
    parts = (
        (int(str(document)), part)
        for shard in shards
        for (document,), part in shard.group_by("document", maintain_order=True)
    )
    for document, pieces in groupby(parts, key=lambda part: part[0]):
        tokens, sums = np.zeros(0, dtype=np.int64), np.zeros(0)
        for _, part in pieces:
            names = names or part.select(keys).rows()
            own = part.select(metrics).to_numpy().T.ravel()
            counts = np.tile(part["tokens"].to_numpy(), len(metrics))
            tokens, sums = (counts + tokens, own + sums) if len(sums) else (counts, own)
        bootstrap = bootstrap or PoissonBootstrap(len(sums))
        bootstrap.add(document, tokens, sums)
    assert bootstrap is not None, "a run has at least one window"
    means, without = (
        np.moveaxis(rows.reshape(-1, len(metrics), len(names)), 1, 0).copy()
        for rows in (bootstrap.means(), bootstrap.without_groups())
    )
    tokens = bootstrap.group_tokens
    return names, {metric: Sampled(means[i], without[i], tokens) for i, metric in enumerate(metrics)}


def signals(measured: ResampledLayers) -> dict[str, Layers]:
    """The signals of schema.stages.SIGNALS that can be computed from what was measured.

    Signals of a lens are of the one that can be read (`readable`), and of the depths from x_1 on: x_0 is the embedding, which a
    lens reads only because of tied weights. Their value at layer 0 is that at layer 1.
    """
    rows: dict[str, Layers] = {}
    for edit, signal in (("drop", "drop"), ("swap", "swap"), ("drop_attn", "drop_attention"), ("drop_mlp", "drop_mlp")):
        if (kl := measured.get(f"{edit}.kl")) and kl[0].shape[1]:  # one layer cannot be swapped
            rows[signal] = _log10(kl[0])
    if local := measured.get("attention.local"):
        rows["local_attention"] = local[0]
    if ratio := measured.get("norms.norm_ratio", "norms.mlp_norm"):
        rows["norm_ratio"], rows["mlp_norm"] = (np.log2(values) for values in ratio)
    lens_read = lens_to_read(measured.values)
    if lens_read and (read := measured.get(f"{lens_read}.kl", f"{lens_read}.entropy")):
        rows["progress"] = _from_first_layer(-np.diff(read[0], axis=1))
        rows["entropy_move"] = _from_first_layer(np.abs(np.diff(read[1], axis=1)))
    if neurons := measured.get("neurons.prediction", "neurons.suppression"):
        rows["prediction"], rows["suppression"] = np.sqrt(neurons[0]), neurons[1] - neurons[0]
    return {name: rows[name] for name in SIGNALS if name in rows and np.isfinite(rows[name][0]).all()}


def _from_first_layer(moves: Layers) -> Layers:
    return np.concatenate([moves[:, 1:2], moves[:, 1:]], 1)


def _log10(kl: Layers) -> Layers:
    return np.log10(np.maximum(kl, FLOOR))

"""The per-layer numbers from which stages are found, with their bootstrap replicates, from a run's shards and tables.

Row 0 of every array is from the original documents, and each further row from a bootstrap replicate; replicates of different
experiments resample the same documents. Neurons are counted, not sampled, so they have a single row.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import polars as pl
from jaxtyping import Float64

from depthscope.edit_registry import sweeps
from depthscope.run.store import RunDirectory
from depthscope.schema import attention, lens, norms, sweep
from depthscope.schema.stages import FLOOR
from depthscope.statistics.bootstrap import PoissonBootstrap

Layers = Float64[np.ndarray, "rows layers"]


@dataclass(slots=True)
class ResampledLayers:
    """What a run measured, per layer: `values["drop.kl"]` and so on, shaped [1 + replicates, layers]."""

    depth: int
    documents: int
    token_entropy: float
    """Loss, in nats, of predicting the text's next tokens by their frequencies in it."""
    values: dict[str, Layers] = field(default_factory=dict)

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
    names, means = _resampled(shards, ["edit", "layer"], [sweep.KL.name, sweep.AGREEMENT.name])
    for edit, how in sweeps().items():
        columns = [i for i, (kind, _) in enumerate(names) if kind == edit]
        if len(columns) == len(how.layers(measured.depth)):  # a layer that cannot be edited leaves a gap
            for metric, values in means.items():
                measured.values[f"{edit}.{metric}"] = values[:, columns]


def _lens(measured: ResampledLayers, shards: Iterable[pl.DataFrame]) -> None:
    _, means = _resampled(shards, ["layer"], [lens.KL.name, lens.ENTROPY.name, lens.LOSS.name])
    measured.values |= {f"lens.{metric}": values for metric, values in means.items()}


def _norms(measured: ResampledLayers, shards: Iterable[pl.DataFrame]) -> None:
    _, means = _resampled(shards, ["layer"], [norms.NORM_RATIO.name, norms.MLP_NORM.name])
    measured.values |= {f"norms.{metric}": values for metric, values in means.items()}


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
        names, means = _resampled((per_layer(shard) for shard in _with_first(first, found)), ["layer"], ["local"])
        if len(names) == measured.depth:
            measured.values["attention.local"] = means["local"]


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
) -> tuple[list[tuple], dict[str, Layers]]:
    """Keys of the rows, and for each metric means [1 + replicates, rows] from shards of sums over documents."""
    names: list[tuple] = []
    bootstrap: PoissonBootstrap | None = None
    parts = (
        (int(str(document)), part)
        for shard in shards
        for (document,), part in shard.group_by("document", maintain_order=True)
    )
    for document, pieces in groupby(parts, key=lambda part: part[0]):
        tokens, sums = 0, np.zeros(0)
        for _, part in pieces:
            names = names or part.select(keys).rows()
            own = part.select(metrics).to_numpy().T.ravel()
            tokens, sums = tokens + int(part["tokens"][0]), own + (sums if len(sums) else 0.0)
        bootstrap = bootstrap or PoissonBootstrap(len(sums))
        bootstrap.add(document, tokens, sums)
    assert bootstrap is not None, "a run has at least one window"
    means = bootstrap.means().reshape(-1, len(metrics), len(names))
    return names, {metric: np.ascontiguousarray(means[:, i]) for i, metric in enumerate(metrics)}


def signals(measured: ResampledLayers) -> dict[str, Layers]:
    """The signals of schema.stages.SIGNALS that can be computed from what was measured."""
    rows: dict[str, Layers] = {}
    if drop := measured.get("drop.kl"):
        rows["drop"] = _log10(drop[0])
    if (swap := measured.get("swap.kl")) and measured.depth > 1:
        rows["swap"] = _log10(np.concatenate([swap[0], swap[0][:, -1:]], 1))
    if local := measured.get("attention.local"):
        rows["local_attention"] = local[0]
    if ratio := measured.get("norms.norm_ratio", "norms.mlp_norm"):
        rows["norm_ratio"], rows["mlp_norm"] = (np.log2(values) for values in ratio)
    if parts := measured.get("drop_mlp.kl", "drop_attn.kl"):
        rows["importance"] = _log10(parts[0]) - _log10(parts[1])
    if read := measured.get("lens.kl", "lens.entropy"):
        rows["progress"] = -np.diff(read[0], axis=1)
        rows["entropy_move"] = np.abs(np.diff(read[1], axis=1))
    if neurons := measured.get("neurons.prediction", "neurons.suppression"):
        rows["prediction"], rows["suppression"] = neurons[0], neurons[1] - neurons[0]
    return {name: values for name, values in rows.items() if np.isfinite(values[0]).all()}


def _log10(kl: Layers) -> Layers:
    return np.log10(np.maximum(kl, FLOOR))

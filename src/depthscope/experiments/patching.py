"""Residual patching between a text and the same text with one word exchanged (Meng et al. 2022; Zhang and Nanda 2023).

The corrupted run reads the exchanged word. At one depth l the clean run's x_l is put in at one group of positions, and the
blocks from l on run again: what is recovered of the clean run's prediction at the last position was, at that depth, carried by
those positions. Depths share what lies before the patch: a patched run from depth l costs L − l blocks, and every block serves
all patched runs once it is reached, so that a streamed model's blocks are read once for all of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from depthscope.data.windows import Windows
from depthscope.data.word_exchanges import MOST_FREQUENT, PAIRS_PER_DOCUMENT, SPAN, WordPairs, word_pairs
from depthscope.engine.baseline import Baseline
from depthscope.engine.divergence import compare, reference
from depthscope.engine.sizes import sizes_for
from depthscope.experiments.document_sums import Rows, estimate_columns
from depthscope.experiments.experiment import Subject
from depthscope.models.finite import Named, window_of_batch
from depthscope.models.model import Model
from depthscope.models.state import State, copied, mapped, together
from depthscope.routes import Step
from depthscope.schema.metric import Metric
from depthscope.schema.patching import (
    BETWEEN,
    GROUPS,
    HALF_DEPTH,
    KL,
    LARGEST,
    LAST,
    NOTHING,
    PATCHING_DEPTHS_TABLE,
    PATCHING_TABLE,
    RECOVERED,
    SHARD_METRICS,
    WORD,
)
from depthscope.shapes import Hidden, Residual, TokenIds
from depthscope.statistics.crossings import crossing_estimate
from depthscope.statistics.estimate import Estimate
from depthscope.statistics.ratios import ratio_estimate
from depthscope.statistics.simultaneous import together as at_once

NAME, DEPTHS = "patching", "patching_depths"
PER_UNIT = 16
"""Pairs of a work unit, whose patched runs from all depths are in memory at once."""
HALF = 0.5


class Patching:
    """The experiment, with own units: a unit is 16 pairs. Raises DataError where the text has too few words to exchange."""

    name = NAME

    def __init__(self, model: Model, windows: Windows, distance: int, seed: int = 0) -> None:
        self.model, self.pairs = model, word_pairs(windows, model, distance, seed)
        self.units = -(-len(self.pairs) // PER_UNIT)
        keys = {"group": pl.String, "layer": pl.Int32}
        names = [(NOTHING, 0), *((group, depth) for group in GROUPS for depth in range(model.depth + 1))]
        self.rows = Rows(keys, names, SHARD_METRICS)
        self.settings: Mapping[str, Any] = {
            "patch_distance": distance,
            "seed": seed,
            "span": SPAN,
            "pairs": len(self.pairs),
            "pairs_per_document": PAIRS_PER_DOCUMENT,
            "most_frequent": MOST_FREQUENT,
            "length": self.pairs.clean.shape[1],
            "pairs_hash": self.pairs.token_hash(),
        }

    def work(self, unit: int) -> pl.DataFrame:
        """The shard of pairs `16 unit` … ."""
        rows = slice(unit * PER_UNIT, (unit + 1) * PER_UNIT)
        documents = self.pairs.document[rows]
        groups = list(places(self.pairs).values())
        corrupted, patched = patched_divergences(
            self.model, *self.pairs.batch(rows), groups, lambda row: f"a pair of document {documents[row]}"
        )
        kl = np.concatenate([corrupted[None], patched.reshape(-1, len(documents))])
        return self.rows.shard(kl[None], 1, documents)

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """PATCHING_TABLE and PATCHING_DEPTHS_TABLE. One row of sums per document is in memory; pairs are bounded."""
        documents = list(self.rows.documents(shards))
        kl = np.stack([one.sums[0] for one in documents])
        pairs = np.array([float(one.tokens[0]) for one in documents])
        count, own = int(pairs.sum()), kl[:, 0]
        raw = ratio_estimate(kl, pairs, count)
        recovered = own[:, None] - kl[:, 1:]
        share = ratio_estimate(recovered, own, count)
        keys = pl.DataFrame(self.rows.names, schema=self.rows.keys, orient="row")
        parts = (
            keys[1:].hstack(estimate_columns(share, [RECOVERED] * (len(keys) - 1))),
            keys.hstack(estimate_columns(raw, [KL] * len(keys))),
        )
        by_group = recovered.reshape(len(own), len(GROUPS), -1)
        curves = {group: by_group[:, number] for number, group in enumerate(GROUPS)}
        return {NAME: pl.concat(parts).cast(pl.Schema(PATCHING_TABLE)), DEPTHS: _depths(curves, own, count)}


def make(subject: Subject) -> Patching:
    """Patching on pairs of prompts from the text, at the requested distance."""
    return Patching(subject.model, subject.windows, subject.options["patch_distance"])


def places(pairs: WordPairs) -> dict[str, list[int]]:
    """The positions of each group of GROUPS in every prompt."""
    last = pairs.clean.shape[1] - 1
    return {WORD: [pairs.word], BETWEEN: list(range(pairs.word + 1, last)), LAST: [last]}


def patched_divergences(
    model: Model,
    clean: TokenIds,
    corrupted: TokenIds,
    groups: Sequence[Sequence[int]],
    named: Named = window_of_batch,
) -> tuple[Float64[np.ndarray, " pairs"], Float64[np.ndarray, "groups depths pairs"]]:
    """KL(clean‖corrupted) and KL(clean‖patched) at the last position, nats; the patch is of a group's positions at a depth.

    Call it under `model.measuring()`. Raises NumericError where a run of the model has NaN or infinity.
    """
    # The tokens after a prompt are not needed: nothing is measured against them.
    own, other = (Baseline(model, ids, ids, named=named) for ids in (clean, corrupted))
    streams: list[Residual] = []
    states: list[State] = []
    model.stack.expect(range(model.depth))
    for depth in range(model.depth + 1):
        for positions in map(list, groups):
            patched = other.residuals[depth].clone()
            patched[:, positions] = own.residuals[depth][:, positions]
            streams.append(patched)
            states.append(copied(other.states[depth]))
        if depth < model.depth:
            streams, states = _visited(model, depth, other, streams, states)
    hidden = torch.cat([_last(model, residual) for residual in (other.residuals[-1], *streams)])
    targets = clean[:, -1].to(hidden.device)
    found = compare(model.unembedding, reference(model.unembedding, _last(model, own.residuals[-1])), hidden, targets)
    kl = found.kl.double().cpu().numpy().reshape(1 + len(streams), -1)
    return kl[0], kl[1:].reshape(model.depth + 1, len(groups), -1).transpose(1, 0, 2)


def _visited(
    model: Model, block: int, corrupted: Baseline, streams: Sequence[Residual], states: Sequence[State]
) -> tuple[list[Residual], list[State]]:
    """All patched streams and their states after a block, several of them in one call where they are small."""
    batch, tokens = len(corrupted.ids), corrupted.ids.numel()
    copies = max(1, sizes_for(model.device, model.unembedding.weight.shape[1]).together // tokens)
    after: list[Residual] = []
    left: list[State] = []
    for start in range(0, len(streams), copies):
        part = streams[start : start + copies]
        arguments = model.stack.arguments(corrupted.ids, len(part)) if len(part) > 1 else corrupted.entry.arguments
        state = together(states[start : start + copies])
        after += model.visit(Step(block), torch.cat(list(part)), arguments, state).split(batch)
        left += [_rows(state, slice(row, row + batch)) for row in range(0, len(part) * batch, batch)]
    return after, left


def _rows(state: State, rows: slice) -> State:
    return mapped(state, lambda kept: kept[rows])


def _last(model: Model, residual: Float[Tensor, "batch seq d_model"]) -> Hidden:
    return model.unembedding.hidden(residual[:, -1:])


def _depths(
    curves: Mapping[str, Float64[np.ndarray, "documents depths"]], own: Float64[np.ndarray, " documents"], pairs: int
) -> pl.DataFrame:
    """PATCHING_DEPTHS_TABLE from what patches recover per document; without rows where the exchange has no effect at all."""
    rows: list[pl.DataFrame] = []

    def add(group: str, layer: int, metric: Metric, estimate: Estimate) -> None:
        keys = pl.DataFrame([(group, layer)], schema={"group": pl.String, "layer": pl.Int32}, orient="row")
        rows.append(keys.hstack(estimate_columns(estimate, [metric])))

    if own.sum() > 0:
        for group, rising in ((WORD, False), (LAST, True)):
            found = crossing_estimate(curves[group], own, HALF, rising, pairs)
            if np.isfinite(found.mean[0]):
                add(group, int(np.ceil(found.mean[0])), HALF_DEPTH, found)
        between = at_once(curves[BETWEEN], own, positive=False)
        best = int(between.mean.argmax())
        mean, low, high = (np.array([one[best]]) for one in (between.mean, between.low, between.high))
        add(BETWEEN, best, LARGEST, Estimate(mean, low, high, pairs, len(own)))
    return pl.concat([pl.DataFrame(schema=PATCHING_DEPTHS_TABLE), *rows])

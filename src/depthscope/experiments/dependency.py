"""Layer dependency (Csordás, Manning, Potts 2025): skip a block, and see how much of what later blocks write changes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from depthscope.data.windows import Windows
from depthscope.edits import drop
from depthscope.engine.baseline import Baseline, Keep
from depthscope.engine.write_changes import Change, WriteChanges, softmax_distances
from depthscope.errors import DataError, RouteError, UnsupportedError
from depthscope.experiments.document_sums import Rows, estimate_columns
from depthscope.experiments.experiment import Subject
from depthscope.models.model import Model
from depthscope.routes import Route
from depthscope.schema.dependency import (
    ALL,
    CHAINED,
    CHANGE,
    DEPENDENCY_DEPTH_TABLE,
    DEPENDENCY_EFFECTS_TABLE,
    DEPENDENCY_SHARD,
    DEPENDENCY_TABLE,
    DEPTH_SCORE,
    FUTURE,
    LATER,
    LOCAL_FUTURE,
    OUTPUT,
    OUTPUT_DEPTH_SCORE,
    SECOND_HALF,
    VARIANTS,
)
from depthscope.schema.metric import Metric
from depthscope.statistics.estimate import ClusterMoments, Estimate, runs
from depthscope.statistics.ratios import RatioMoments

NAME = "dependency"
KEYS = {"variant": pl.String, "layer": pl.Int32, "other": pl.Int32}
FUTURES = (FUTURE, LOCAL_FUTURE)


class Dependency:
    """Changes of writes and of the output under skips. A reading of the shared pass.

    `variants` are some of VARIANTS; the future ones split every window at `splits` positions. With `keep_first`, nothing is
    skipped, and nothing measured, at the first position. `length` is that of the windows. Raises UnsupportedError for a model
    without two blocks or whose blocks cannot be skipped, and DataError for windows too short to split.
    """

    name = NAME
    keep = Keep.NOTHING

    def __init__(
        self,
        model: Model,
        length: int,
        variants: Sequence[str] = (ALL,),
        splits: int = 4,
        keep_first: bool = False,
    ) -> None:
        self.settings = {"variant": list(variants), "splits": splits, "keep_first": keep_first}
        self.depth, self.variants = model.depth, [name for name in VARIANTS if name in variants]
        self.places = {name: _places(length, splits if name in FUTURES else None, keep_first) for name in self.variants}
        self.skipped, self.not_done = _skippable(model)
        self.blocks = {name: self.skipped if name in CHAINED else [*range(model.depth)] for name in self.variants}
        self.readouts = sum(
            len(self.blocks[name]) * len(self.places[name]) for name in self.variants if name in CHAINED
        )
        names = [
            (variant, block, layer)
            for variant in self.variants
            for block in self.blocks[variant]
            for layer in range(block + 1, self.depth + (variant in CHAINED))
        ]
        self.rows = Rows(KEYS, names, [CHANGE])
        self._row = {name: row for row, name in enumerate(names)}

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a unit: rows of DEPENDENCY_SHARD."""
        sums, largest = (np.zeros((len(self.rows.names), len(windows))) for _ in range(2))
        counts = np.zeros_like(sums, dtype=np.int64)
        changes = WriteChanges(baseline)
        for variant in self.variants:
            for skipped, measured in self.places[variant]:
                for block, layer, values in self._changes(variant, changes, skipped.to(baseline.ids.device)):
                    found, row = values[:, measured].double().cpu().numpy(), self._row[variant, block, layer]
                    sums[row] += found.sum(1)
                    largest[row] = np.maximum(largest[row], found.max(1))
                    counts[row] += found.shape[1]
        return self._shard(sums, largest, counts, windows.document)

    def _changes(self, variant: str, changes: WriteChanges, at: Bool[Tensor, " seq"]) -> Iterator[Change]:
        if variant not in CHAINED:
            yield from changes.direct(self.blocks[variant], at)
            return
        ends = yield from changes.chained(self.blocks[variant], at)
        baseline, head = changes.baseline, changes.model.unembedding
        distances = softmax_distances(head, baseline.hidden, [head.hidden(stream) for stream in ends.values()])
        for block, values in zip(ends, distances, strict=True):
            yield block, self.depth, values.view(baseline.ids.shape)

    def _shard(
        self,
        sums: Float64[np.ndarray, "rows windows"],
        largest: Float64[np.ndarray, "rows windows"],
        counts: Int64[np.ndarray, "rows windows"],
        documents: Int64[np.ndarray, " windows"],
    ) -> pl.DataFrame:
        starts, _ = runs(documents)
        highest = np.maximum.reduceat(largest, starts, axis=1).T.ravel()
        shard = self.rows.shard(sums[None], counts, documents).with_columns(largest=pl.Series(highest))
        return shard.cast(pl.Schema(DEPENDENCY_SHARD))

    def joined(self, shards: Sequence[pl.DataFrame]) -> pl.DataFrame:
        """The shard of a unit that was read in parts."""
        added = pl.sum("tokens", CHANGE.name)
        return (
            pl.concat(shards)
            .group_by("document", *KEYS, maintain_order=True)
            .agg(added, pl.max("largest"))
            .select(*DEPENDENCY_SHARD)
        )

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """DEPENDENCY_TABLE, DEPENDENCY_EFFECTS_TABLE and DEPENDENCY_DEPTH_TABLE, in one pass."""
        largest = np.zeros(len(self.rows.names))

        def seen() -> Iterator[pl.DataFrame]:
            for shard in shards:
                np.maximum(largest, shard["largest"].to_numpy().reshape(-1, len(largest)).max(0), out=largest)
                yield shard

        effects = self._effects()
        scores, above, below = self._scores(effects)
        moments, of_effects, of_scores = self.rows.moments(), ClusterMoments(len(effects)), RatioMoments(len(scores))
        for document in self.rows.documents(seen()):
            moments.add(document.tokens, document.sums)
            sums = np.array([document.sums[0, effect.rows].mean() for effect in effects])
            of_effects.add(np.array([document.tokens[effect.rows[0]] for effect in effects]), sums)
            of_scores.add(int(document.tokens.sum()), above @ sums, below @ sums)
        changes = self.rows.filled(moments.estimate()).with_columns(largest=pl.Series(largest))
        return {
            NAME: changes.filter(pl.col("other") < self.depth).cast(pl.Schema(DEPENDENCY_TABLE)),
            f"{NAME}_effects": _effects_table(effects, of_effects.estimate(), largest),
            f"{NAME}_depth": _scores_table(
                scores, of_scores.estimate(), [one.variant for one in effects], of_effects.estimate()
            ),
        }

    def _effects(self) -> list["_Effect"]:
        found = []
        for variant in self.variants:
            for block in self.blocks[variant]:
                later = [self._row[variant, block, layer] for layer in range(block + 1, self.depth)]
                found += [_Effect(variant, block, LATER, later)] if later else []
            if variant in CHAINED:
                ends = [(block, self._row[variant, block, self.depth]) for block in self.blocks[variant]]
                found += [_Effect(variant, block, OUTPUT, [row]) for block, row in ends]
        return found

    def _scores(
        self, effects: Sequence["_Effect"]
    ) -> tuple[list[tuple[str, Metric]], Float64[np.ndarray, "scores effects"], Float64[np.ndarray, "scores effects"]]:
        """The scores, and the weights of effects in their numerators and denominators."""
        layers = np.array([effect.skipped for effect in effects], dtype=np.float64)
        half = layers >= self.depth / 2
        names, above, below = [], [], []
        for variant in self.variants:
            later, output = (
                np.array([(one.variant, one.metric) == (variant, metric) for one in effects])
                for metric in (LATER, OUTPUT)
            )
            for metric, over, under in (
                (DEPTH_SCORE, layers * later, later),
                (OUTPUT_DEPTH_SCORE, layers * output, output),
                (SECOND_HALF, _share(later & half), _share(later & ~half)),
            ):
                if np.any(under) and np.any(over):
                    names.append((variant, metric))
                    above.append(over)
                    below.append(under)
        return names, np.array(above, dtype=np.float64), np.array(below, dtype=np.float64)


@dataclass(frozen=True, slots=True)
class _Effect:
    """A row of the effects: the mean of rows of changes, or the change of the output."""

    variant: str
    skipped: int
    metric: Metric
    rows: list[int]


def _effects_table(
    effects: Sequence[_Effect], estimate: Estimate, largest: Float64[np.ndarray, " rows"]
) -> pl.DataFrame:
    columns = estimate_columns(estimate, [one.metric for one in effects])
    keys = {"variant": [one.variant for one in effects], "layer": [one.skipped for one in effects]}
    highest = pl.Series([largest[one.rows].max() for one in effects], dtype=pl.Float64)
    return pl.DataFrame(keys).hstack(columns).with_columns(largest=highest).cast(pl.Schema(DEPENDENCY_EFFECTS_TABLE))


def _scores_table(
    scores: Sequence[tuple[str, Metric]], found: Estimate, of_effects: Sequence[str], effects: Estimate
) -> pl.DataFrame:
    """`of_effects`: the variants of the effects, whose tokens and documents are those of the scores."""
    places = [of_effects.index(variant) for variant, _ in scores]
    counted = {"tokens": np.asarray(effects.tokens)[places], "documents": np.asarray(effects.documents)[places]}
    columns = estimate_columns(replace(found, **counted), [metric for _, metric in scores])
    keys = pl.DataFrame({"variant": [variant for variant, _ in scores]}, schema={"variant": pl.String})
    return keys.hstack(columns).cast(pl.Schema(DEPENDENCY_DEPTH_TABLE))


def make(subject: Subject) -> Dependency:
    """The requested variants on a model."""
    options = subject.options
    length = subject.windows.length
    return Dependency(subject.model, length, options["variant"], options["splits"], options["keep_first"])


def _skippable(model: Model) -> tuple[list[int], dict[str, str]]:
    """The blocks that can be skipped, and why the first of the others cannot."""
    if model.depth < 2:
        raise UnsupportedError(f"{model.name} ({model.family}) has one block: there are no later ones to depend on it")
    found, refused = [], {}
    for block in range(model.depth):
        try:
            model.check_route(drop(block)(Route.own(model.depth)))
        except RouteError as error:
            refused[block] = str(error)
        else:
            found.append(block)
    why = {f"skipping {len(refused)} of {model.depth} layers": error for error in [*refused.values()][:1]}
    return found, why


def _places(
    length: int, splits: int | None, keep_first: bool
) -> list[tuple[Bool[Tensor, " seq"], Bool[Tensor, " seq"]]]:
    """Where blocks are skipped and where changes are measured: one pair of masks, or one for every split."""
    position = torch.arange(length)
    may = position >= (1 if keep_first else 0)
    if splits is None:
        return [(may, may)]
    first = 2 if keep_first else 1
    places = [round(length * (split + 1) / (splits + 1)) for split in range(splits)]
    if places[0] < first or len(set(places)) < splits:
        raise DataError(
            f"windows of {length} tokens cannot be split at {splits} positions: expected a longer --window or fewer --splits"
        )
    return [(may & (position < place), position >= place) for place in places]


def _share(member: Bool[np.ndarray, " effects"]) -> Float64[np.ndarray, " effects"]:
    return member / max(member.sum(), 1)

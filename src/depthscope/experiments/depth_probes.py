"""Probes by depth: what a linear classifier reads from the residual stream x_0 … x_L, and what it owes to knowing the token.

A probe that is right may only recognise the token, and know its class by heart. A control task (Hewitt and Liang 2019) gives
each token a random class in the same proportions: accuracy on it is what the probe owes to recognising tokens, and the accuracy
above that is its selectivity. Each property also has its majority class and the class that the token alone suggests.

Intervals are over test documents, for the fitted probes: another training text would give others.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from jaxtyping import Bool, Float32, Float64, Int64

from depthscope.data.token_properties import NONE
from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline, Keep
from depthscope.errors import DataError
from depthscope.experiments.depth_probe_examples import EXAMPLES, SPAN, TEST_SHARE, draw_examples, label
from depthscope.experiments.document_sums import estimate_columns
from depthscope.experiments.experiment import Subject
from depthscope.models.model import Model
from depthscope.schema.depth_probes import (
    BEST_OF,
    DEPTH_PROBES_BEST_TABLE,
    DEPTH_PROBES_CLASSES_TABLE,
    DEPTH_PROBES_TABLE,
    FREQUENT,
    METRICS,
    PROPERTIES,
    depth_probes_shard,
)
from depthscope.statistics.class_probes import MOST_ITERATIONS, STRENGTH, ClassSplit, highest_interval
from depthscope.statistics.estimate import Estimate, estimate_of, runs
from depthscope.statistics.probe_baselines import classes_by_token, control_classes
from depthscope.statistics.simultaneous import together

NAME, BEST, CLASSES = "depth_probes", "depth_probes_best", "depth_probes_classes"
PLACES = ("layer", "layer_low", "layer_high")
CONTROLS = 2
"""Control tasks per property."""
Streams = Float32[np.ndarray, "depths examples width"]
Values = Float64[np.ndarray, "metrics depths test"]


class DepthProbes:
    """Probes of every property at every depth. A reading of the shared pass; `windows` are all windows of the text.

    Raises DataError if there is too little text for any property.
    """

    name = NAME
    keep = Keep.NOTHING
    readouts = 0

    def __init__(
        self, model: Model, windows: Windows, suffixes: Sequence[str], *, seed: int = 0, most: int = EXAMPLES
    ) -> None:
        width = model.unembedding.weight.shape[1]
        self.depths = model.depth + 1
        self.examples = draw_examples(windows, self.depths * width, seed, most)
        suffixes = list(dict.fromkeys(suffixes))
        self.labelled, refused = label(model, self.examples, suffixes, seed)
        if not self.labelled:
            raise DataError(f"probes by depth cannot be fitted: {next(iter(refused.values()))}")
        self.not_done = {f"the probe of {PROPERTIES[name].title.lower()}": why for name, why in refused.items()}
        self.seed = seed
        self.places = {
            place: i for i, place in enumerate(_places(windows.part(0, int(self.examples.window.max()) + 1)))
        }
        self.settings: Mapping[str, Any] = {
            "suffixes": suffixes,
            "examples": len(self.examples),
            "span": SPAN,
            "frequent": FREQUENT,
            "test_share": TEST_SHARE,
            "strength": STRENGTH,
            "iterations": MOST_ITERATIONS,
            "control_tasks": CONTROLS,
            "seed": seed,
        }

    def read(self, baseline: Baseline, windows: Windows) -> pl.DataFrame:
        """The shard of a unit: the residual streams of its examples at every depth."""
        examples, rows, positions = [], [], []
        for row, place in enumerate(_places(windows)):
            window = self.places.get(place)
            first, stop = (0, 0) if window is None else np.searchsorted(self.examples.window, [window, window + 1])
            examples += range(first, stop)
            rows += [row] * (stop - first)
            positions += self.examples.position[first:stop].tolist()
        taken = [residual[rows, positions].float().cpu().numpy() for residual in baseline.residuals]
        width = baseline.residuals[0].shape[-1]
        columns = {
            "example": np.tile(np.array(examples, dtype=np.int64), self.depths),
            "layer": np.repeat(np.arange(self.depths, dtype=np.int32), len(examples)),
            "residual": np.concatenate(taken).reshape(-1, width),
        }
        return pl.DataFrame(columns, schema=depth_probes_shard(width))

    def tables(self, shards: Iterable[pl.DataFrame]) -> dict[str, pl.DataFrame]:
        """All three tables. The examples' residual streams are in memory; their number is bounded."""
        streams, there = self._gathered(shards)
        parts: list[tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]] = []
        for name, labelled in self.labelled.items():
            used = there & (labelled.labels != NONE)
            split = ClassSplit(labelled.labels[used], self.examples.training[used])
            if split.training.all() or not split.training.any():
                continue  # of a text that was read in part, until a goal was reached
            documents = self.examples.document[used][~split.training]
            values = self._probed(streams[:, used], split, self.examples.token[used])
            keyed = _curves(values, documents), _best(values, documents), _classes(labelled.names, split)
            parts.append(tuple(one.select(pl.lit(name).alias("property"), pl.all()) for one in keyed))  # type: ignore[arg-type]
        schemas = (DEPTH_PROBES_TABLE, DEPTH_PROBES_BEST_TABLE, DEPTH_PROBES_CLASSES_TABLE)
        empty = tuple(pl.DataFrame(schema=schema) for schema in schemas)
        whole = [pl.concat(tables) for tables in zip(empty, *parts, strict=True)]
        return dict(zip((NAME, BEST, CLASSES), whole, strict=True))

    def _gathered(self, shards: Iterable[pl.DataFrame]) -> tuple[Streams, Bool[np.ndarray, " examples"]]:
        """All examples' residual streams, and of which examples the text was read."""
        streams = np.zeros((self.depths, len(self.examples), 0), dtype=np.float32)
        there = np.zeros(len(self.examples), dtype=bool)
        for shard in shards:
            if shard.is_empty():
                continue
            examples, residuals = shard["example"].to_numpy(), shard["residual"].to_numpy()
            if not streams.size:
                streams = np.zeros((*streams.shape[:2], residuals.shape[1]), dtype=np.float32)
            streams[shard["layer"].to_numpy(), examples] = residuals
            there[examples] = True
        return streams, there

    def _probed(self, streams: Streams, split: ClassSplit, tokens: Int64[np.ndarray, " examples"]) -> Values:
        """METRICS of each test example by depth: 1 where a prediction is correct, means over control tasks, differences."""
        generator = np.random.default_rng(self.seed)
        tasks = [
            ClassSplit(control_classes(tokens, split.shares(), generator), split.training) for _ in range(CONTROLS)
        ]
        right = np.stack([split.probe_right(features) for features in streams]).astype(np.float64)
        control = np.stack([np.mean([task.probe_right(features) for task in tasks], 0) for features in streams])
        frequent = np.bincount(split.labels[split.training]).argmax()
        majority = split.right(np.full_like(split.labels, frequent))
        by_token = split.right(classes_by_token(tokens, split.labels, split.training))
        return np.stack([right, control, right - control, right - majority, right - by_token])


def _curves(values: Values, documents: Int64[np.ndarray, " test"]) -> pl.DataFrame:
    """DEPTH_PROBES_TABLE of a property, without its name."""
    estimate, depths = estimate_of(values, documents), values.shape[1]
    columns = estimate_columns(
        estimate.columns(np.arange(len(METRICS) * depths)), [metric for metric in METRICS for _ in range(depths)]
    )
    layers = pl.Series("layer", np.tile(np.arange(depths), len(METRICS)), dtype=pl.Int32)
    return pl.DataFrame([layers]).hstack(columns)


def _best(values: Values, documents: Int64[np.ndarray, " test"]) -> pl.DataFrame:
    """DEPTH_PROBES_BEST_TABLE of a property, without its name."""
    starts, counts = runs(documents)
    tokens, rows = counts.astype(np.float64), []
    for metric in BEST_OF:
        sums = np.add.reduceat(values[METRICS.index(metric)], starts, axis=1).T
        found = together(sums, tokens, positive=False)
        best = int(found.mean.argmax())
        place = highest_interval(sums, tokens) or (None, None)
        mean, low, high = (np.array([one[best]]) for one in (found.mean, found.low, found.high))
        estimate = Estimate(mean, low, high, len(documents), len(counts))
        keys = pl.DataFrame([(best, *place)], schema=dict.fromkeys(PLACES, pl.Int32), orient="row")
        rows.append(keys.hstack(estimate_columns(estimate, [metric])))
    return pl.concat(rows)


def _classes(names: Sequence[str], split: ClassSplit) -> pl.DataFrame:
    """DEPTH_PROBES_CLASSES_TABLE of a property, without its name."""
    training, test = (
        np.bincount(split.labels[part], minlength=len(names)) for part in (split.training, ~split.training)
    )
    return pl.DataFrame({"label": list(names), "training": training, "test": test})


def make(subject: Subject) -> DepthProbes:
    """Probes by depth on a sample of the text, with the requested suffixes."""
    return DepthProbes(subject.model, subject.windows, subject.options["suffixes"])


def _places(windows: Windows) -> list[tuple[int, int]]:
    """Document and place in it of each window's first token, which identify the window."""
    document, position = windows.places
    return list(zip(document[:, 0].tolist(), position[:, 0].tolist(), strict=True))

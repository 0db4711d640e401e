"""Estimates read from a run's tables, arithmetic on their intervals, and the verdict on a claim.

The tables have no covariances between layers, which share documents. So every combination uses interval arithmetic: sums and
differences add half-widths, ratios divide opposite bounds. That is right whatever the correlation, and wider than needed. Where
a claim is about all layers of a set, intervals hold for all of them together (Bonferroni).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from scipy import stats

from depthscope.errors import RunError
from depthscope.report.measured import Series, Value, read_sweep, read_table, series
from depthscope.run.store import RunDirectory
from depthscope.schema import attention, lens, norms
from depthscope.schema.metric import Metric

HOLDS, FAILS, OPEN, ABSENT = "holds", "does not hold", "inconclusive", "not measured"
VERDICTS = (HOLDS, FAILS, OPEN, ABSENT)
LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a run says about a claim."""

    verdict: str
    effect: Value | None = None
    """The number the claim is about; bounds None where it is exact (weights) or has no interval."""
    words: str = ""
    tokens: int | None = None
    documents: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """A quantity by layer with how much text is behind it."""

    values: Series
    tokens: int
    documents: int
    depth: int
    """Layers of the model."""

    @property
    def middle(self) -> list[int]:
        """Measured layers without the model's first and last."""
        return [layer for layer in self.values if 0 < layer < self.depth - 1]

    def part(self, start: float, stop: float) -> list[int]:
        """Measured layers whose relative depth l / (L − 1) lies in [start, stop)."""
        last = max(self.depth - 1, 1)
        return [layer for layer in self.values if start <= layer / last < stop]

    def mean(self, layers: Iterable[int]) -> Value:
        """Mean over layers. Raises RunError if there are none: the model has too few layers for the claim."""
        chosen = [self.values[layer] for layer in layers]
        if not chosen:
            raise RunError("the model has too few layers")
        low, mean, high = (sum(_ends(one)[i] for one in chosen) / len(chosen) for i in range(3))
        return Value(mean, low, high)

    def together(self, layers: Iterable[int]) -> Series:
        """The values of some layers with intervals that hold for all of them at once."""
        chosen = [*layers]
        if not chosen:
            raise RunError("the model has too few layers")
        wider = _wider(len(chosen), self.documents)
        return {layer: _widened(self.values[layer], wider) for layer in chosen}

    def found(self, verdict: str, effect: Value | None, words: str = "") -> Finding:
        """A finding from this curve."""
        return Finding(verdict=verdict, effect=effect, words=words, tokens=self.tokens, documents=self.documents)


def swept(run: RunDirectory, edit: str, metric: Metric) -> Curve:
    """A sweep's curve. Raises RunError if the run lacks it."""
    measured = read_sweep(run)
    values = measured.series(edit, metric)
    if not values:
        raise RunError(f"the sweep has no {edit}")
    return Curve(values=values, tokens=measured.tokens, documents=measured.documents, depth=measured.depth)


def read(run: RunDirectory, table: str, metric: Metric, **where: str) -> Curve:
    """The curve of a table of estimates by layer. Raises RunError if the run lacks it."""
    columns = {"lens": lens.LENS_TABLE, "norms": norms.NORMS_TABLE, "attention": attention.ATTENTION_TABLE}
    frame = read_table(run, table, columns.get(table, ("layer", "metric", "mean", "ci_low", "ci_high")))
    values = series(frame, metric, **where)
    if not values:
        raise RunError(f"the table {table} has no {metric.name}")
    rows = frame.filter(metric=metric.name)
    return Curve(
        values=values,
        tokens=int(rows["tokens"].max()),  # type: ignore[arg-type]
        documents=int(rows["documents"].max()),  # type: ignore[arg-type]
        depth=run.manifest.model.layers or max(values) + 1,
    )


def above(effect: Value, threshold: float = 0.0) -> str:
    """Whether a claim `effect > threshold` holds, by the effect's interval."""
    low, _, high = _ends(effect)
    return HOLDS if low > threshold else FAILS if high < threshold else OPEN


def minus(a: Value, b: Value) -> Value:
    """a − b with its interval."""
    (a_low, a_mean, a_high), (b_low, b_mean, b_high) = _ends(a), _ends(b)
    return Value(a_mean - b_mean, a_low - b_high, a_high - b_low)


def over(a: Value, b: Value) -> Value:
    """a / b with its interval, both positive. Raises RunError if b's interval reaches 0."""
    (a_low, a_mean, a_high), (b_low, b_mean, b_high) = _ends(a), _ends(b)
    if b_low <= 0:
        raise RunError("the interval of a ratio’s denominator reaches 0")
    return Value(a_mean / b_mean, max(a_low, 0.0) / b_high, a_high / b_low)


def largest(values: Series) -> Value:
    """The maximum over layers, for intervals that hold for all layers together."""
    low, mean, high = (max(_ends(one)[i] for one in values.values()) for i in range(3))
    return Value(mean, low, high)


def _ends(value: Value) -> tuple[float, float, float]:
    """low, mean, high; without an interval, which one document does not give, nothing is settled."""
    if value.low is None or value.high is None:
        return float("-inf"), value.mean, float("inf")
    return value.low, value.mean, value.high


def _widened(value: Value, wider: float) -> Value:
    low, mean, high = _ends(value)
    return Value(mean, mean - wider * (mean - low), mean + wider * (high - mean))


def _wider(count: int, documents: int) -> float:
    """By how much `count` 95 % intervals must widen to hold together."""
    if documents < 2:
        return 1.0
    alone, every = (stats.t.ppf(1 - (1 - LEVEL) / 2 / n, documents - 1) for n in (1, count))
    return float(every / alone)

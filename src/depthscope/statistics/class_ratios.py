"""The mean of a quantity over some tokens relative to its mean over all tokens, with intervals over documents.

A class has n_d of the m_d tokens of document d, over which a quantity above 0 (KL) sums to A_d, and over all tokens to B_d.
With A, n, B, m the sums over documents, the ratio of means is

    r = (A / n) / (B / m),

and its relative deviation, linearised as in statistics/estimate.py, is Σ_d u_d with

    u_d = A_d / A − n_d / n − B_d / B + m_d / m.

Each document has all four, so class and whole are compared on the same documents. The variance of log r is
s² = D / (D − 1) · Σ_d u_d² for D documents, and the interval of r is r · exp(± t · s), with Student's t for D' − 1 degrees of
freedom, D' being the documents that have tokens of the class. A class in one document has no interval.

Intervals of many ratios at once, from which one is picked, are those of statistics/simultaneous.py on the logarithm: the
studentised bootstrap over documents of the highest and the lowest deviation over all layers and classes. More than GROUPS
documents are joined into that many groups, for both kinds of intervals, so memory does not grow with the text.
tests/test_class_ratios.py simulates the coverage of both.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64
from scipy import stats

from depthscope.statistics.estimate import LEVEL
from depthscope.statistics.simultaneous import FEWEST, GROUPS, REPLICATES

FEWEST_TOKENS = 50
"""A class with fewer has no simultaneous intervals: in many replicates it would consist of very few of its tokens, and such
ratios would widen the intervals of all others."""
LEAST_SPREAD = 1e-6
"""Of log r: below it there is only rounding, as where a class has all tokens."""

Ratio = Float64[np.ndarray, "rows classes"]


@dataclass(frozen=True, slots=True)
class Ratios:
    """Ratios by row and class with 95 % intervals; NaN where there is none."""

    mean: Ratio
    low: Ratio
    high: Ratio


@dataclass(frozen=True, slots=True)
class _Draws:
    """Logarithms of ratios and their standard errors, of one class, for several weightings of the groups."""

    log: Float64[np.ndarray, "draws rows"]
    error: Float64[np.ndarray, "draws rows"]


class ClassGroups:
    """Sums of a quantity over documents by row and class, kept by group of documents: one document at a time, constant size."""

    def __init__(self, rows: int, classes: int) -> None:
        self.documents = 0
        self._part = np.zeros((GROUPS, rows, classes))
        self._part_tokens = np.zeros((GROUPS, classes))
        self._whole = np.zeros((GROUPS, rows))
        self._whole_tokens = np.zeros(GROUPS)

    def add(
        self,
        part: Float64[np.ndarray, "rows classes"],
        part_tokens: Int64[np.ndarray, " classes"],
        whole: Float64[np.ndarray, " rows"],
        whole_tokens: int,
    ) -> None:
        """Add one whole document: sums over the tokens of each class and over all, and the numbers of these tokens."""
        group = self.documents % GROUPS
        self._part[group] += part
        self._part_tokens[group] += part_tokens
        self._whole[group] += whole
        self._whole_tokens[group] += whole_tokens
        self.documents += 1

    def ratios(self, level: float = LEVEL) -> Ratios:
        """All ratios, each with its own interval."""
        groups = self._groups
        draws = list(self._classes(np.ones((1, groups)), np.arange(self._whole.shape[1])))
        log, error = (np.concatenate(column).T for column in zip(*((one.log, one.error) for one in draws), strict=True))
        units = np.count_nonzero(self._part_tokens, axis=0)
        with np.errstate(invalid="ignore", over="ignore"):
            half = np.where(units > 1, stats.t.ppf((1 + level) / 2, np.maximum(units - 1, 1)), np.nan) * error
            return Ratios(np.exp(log), np.exp(log - half), np.exp(log + half))

    def together(
        self,
        rows: Int64[np.ndarray, " some"],
        replicates: int = REPLICATES,
        seed: int = 0,
        level: float = LEVEL,
    ) -> Ratios:
        """The ratios of these rows and all classes, with intervals that cover all of them at once with probability `level`.

        A class in fewer than FEWEST documents, or with fewer than FEWEST_TOKENS tokens, has no intervals and takes no part; a
        ratio without spread is its own interval.
        """
        groups = self._groups
        own = list(self._classes(np.ones((1, groups)), rows))
        log, error = np.stack([one.log[0] for one in own], 1), np.stack([one.error[0] for one in own], 1)
        many = (np.count_nonzero(self._part_tokens, axis=0) >= FEWEST) & (self._part_tokens.sum(0) >= FEWEST_TOKENS)
        known = np.isfinite(log) & np.isfinite(error) & many
        used = known & (error > LEAST_SPREAD)
        mean = np.exp(log)
        low, high = np.where(known, mean, np.nan), np.where(known, mean, np.nan)
        if not used.any():
            return Ratios(mean, low, high)
        lowest, highest = self._extremes(rows, log, used, replicates, seed)
        tail = (1 - level) / 2
        below, above = np.quantile(highest, 1 - tail), np.quantile(lowest, tail)
        with np.errstate(over="ignore"):
            low[used], high[used] = np.exp(log - below * error)[used], np.exp(log - above * error)[used]
        return Ratios(mean, low, high)

    @property
    def _groups(self) -> int:
        return min(self.documents, GROUPS)

    def _extremes(
        self,
        rows: Int64[np.ndarray, " some"],
        log: Ratio,
        used: Bool[np.ndarray, "rows classes"],
        replicates: int,
        seed: int,
    ) -> tuple[Float64[np.ndarray, " replicates"], Float64[np.ndarray, " replicates"]]:
        """The lowest and the highest studentised deviation over the used ratios, in each replicate."""
        groups = self._groups
        drawn = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), replicates)
        lowest, highest = np.full(replicates, np.inf), np.full(replicates, -np.inf)
        for place, one in enumerate(self._classes(drawn.astype(np.float64), rows)):
            with np.errstate(divide="ignore", invalid="ignore"):
                t = (one.log - log[:, place]) / one.error
            there = np.isfinite(t) & used[:, place]
            lowest = np.minimum(lowest, np.where(there, t, np.inf).min(1))
            highest = np.maximum(highest, np.where(there, t, -np.inf).max(1))
        return lowest, highest

    def _classes(
        self, weights: Float64[np.ndarray, "draws groups"], rows: Int64[np.ndarray, " some"]
    ) -> Iterator[_Draws]:
        """Ratios and standard errors of each class, with each group counted `weights` times."""
        groups = self._groups
        whole, m = self._whole[:groups, rows], self._whole_tokens[:groups]
        b, all_tokens = weights @ whole, (weights @ m)[:, None]
        bb, bm, mm = weights @ whole**2, weights @ (whole * m[:, None]), (weights @ m**2)[:, None]
        factor = groups / (groups - 1) if groups > 1 else np.nan
        for place in range(self._part.shape[2]):
            part, n = self._part[:groups, rows, place], self._part_tokens[:groups, place]
            a, tokens = weights @ part, (weights @ n)[:, None]
            aa, an, ab, am = (weights @ (part * other) for other in (part, n[:, None], whole, m[:, None]))
            bn, nn, nm = weights @ (whole * n[:, None]), (weights @ n**2)[:, None], (weights @ (n * m))[:, None]
            with np.errstate(divide="ignore", invalid="ignore"):
                log = np.log(a) - np.log(tokens) - np.log(b) + np.log(all_tokens)
                squares = aa / a**2 + nn / tokens**2 + bb / b**2 + mm / all_tokens**2
                products = am / (a * all_tokens) + bn / (b * tokens) - an / (a * tokens) - ab / (a * b)
                products += -nm / (tokens * all_tokens) - bm / (b * all_tokens)
                # Rounding can take a sum of squares below zero.
                yield _Draws(log, np.sqrt(np.maximum(squares + 2 * products, 0) * factor))

"""The tables of a search for blocks to remove: what was tried, and what each criterion's set costs."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np
import polars as pl
from jaxtyping import Float64

from depthscope.experiments.document_sums import estimate_columns
from depthscope.experiments.prune_search import KL_PLACE, Known, Path, Scores
from depthscope.experiments.removals import NOTHING, Removed, name_of
from depthscope.schema.measures import KL, LOSS
from depthscope.schema.prune import (
    AGREEMENT,
    HELD_OUT,
    KL_DIFFERENCE,
    LOSS_CHANGE,
    LOSS_DIFFERENCE,
    MEASURED,
    PERPLEXITY,
    PRUNE_METHODS_TABLE,
    PRUNE_STEPS_TABLE,
    RANDOM,
    SEARCH,
    UNMODIFIED,
)
from depthscope.statistics.draws import mean_over_draws
from depthscope.statistics.estimate import Estimate

LOSS_PLACE = MEASURED.index(LOSS)
COMPARED = (KL, AGREEMENT, LOSS, LOSS_CHANGE, KL_DIFFERENCE, LOSS_DIFFERENCE)


@dataclass(slots=True)
class Found:
    """The sets that the criteria chose."""

    paths: dict[str, Path] = field(default_factory=dict)
    """By criterion, for every number of items removed."""
    draws: list[Path] = field(default_factory=list)
    """The same for each random draw."""
    not_found: dict[str, str] = field(default_factory=dict)
    """Criteria without a set of the requested size, and why."""
    chosen: str = ""
    """The criterion whose set has the lowest KL on the search's documents."""

    def chosen_set(self, remove: int, scores: Scores) -> Removed:
        """The set that is removed; of random draws the one with the lowest KL on the search's documents."""
        if self.chosen in self.paths:
            return self.paths[self.chosen][remove]
        return scores.ranked(SEARCH, [path[remove] for path in self.draws])[0]


def steps_table(known: Known) -> pl.DataFrame:
    """PRUNE_STEPS_TABLE: sets in the order tried, each with its KL and, paired by document, its KL above the step's best."""
    parts = [pl.DataFrame(schema=PRUNE_STEPS_TABLE)]
    for (method, step, unit, text), group in groupby(
        known.tried, key=lambda one: (one.method, one.step, one.unit, one.text)
    ):
        tried, scores = list(group), known.scores
        best = scores.ranked(text, [one.removed for one in tried])[0]
        kl = np.stack([scores.sums[text, one.removed][KL_PLACE] for one in tried])
        above = scores.estimate(text, kl - scores.sums[text, best][KL_PLACE])
        keys = {
            "method": [method] * len(tried),
            "step": [step] * len(tried),
            "text": [text.partition(" ")[0]] * len(tried),
            "blocks": [name_of(one.removed) for one in tried],
            "chosen": [one.chosen for one in tried],
            "measured": [scores.unit[text, one.removed] == unit for one in tried],
            "above_best": above.mean,
            "above_best_low": above.low,
            "above_best_high": above.high,
        }
        frame = pl.DataFrame(keys).hstack(estimate_columns(scores.estimate(text, kl), [KL] * len(tried)))
        nullable = [pl.col(name).fill_nan(None) for name in ("above_best_low", "above_best_high")]
        parts.append(frame.with_columns(nullable).cast(PRUNE_STEPS_TABLE).select(*PRUNE_STEPS_TABLE))  # type: ignore[arg-type]
    return pl.concat(parts)


def methods_table(scores: Scores, found: Found, remove: int) -> pl.DataFrame:
    """PRUNE_METHODS_TABLE: the criteria's sets for every number of items removed, the unmodified model first."""
    chosen = found.chosen_set(remove, scores)
    parts = [pl.DataFrame(schema=PRUNE_METHODS_TABLE)]
    for text in (text for text in (SEARCH, HELD_OUT) if scores.knows(text, NOTHING)):
        own = _columns(scores, text, NOTHING, chosen)
        estimate = scores.estimate(text, own)
        parts.append(_rows(UNMODIFIED, None, NOTHING, text, estimate, differences=False))
        for method, draw, removed in _sets(found):
            if text == HELD_OUT or len(removed) == remove:
                sums = scores.estimate(text, _columns(scores, text, removed, chosen))
                parts.append(_rows(method, draw, removed, text, sums, differences=len(removed) == remove))
        for size in range(1 if text == HELD_OUT else remove, remove + 1):
            drawn = [path[size] for path in found.draws if size in path]
            if drawn:
                each = np.stack([_columns(scores, text, one, chosen) for one in drawn])
                mean = mean_over_draws(scores.tokens[text], each)
                parts.append(_mean_rows(size, text, mean, differences=size == remove))
    return pl.concat(parts)


def _sets(found: Found) -> Iterator[tuple[str, int | None, Removed]]:
    for method, path in found.paths.items():
        for size in sorted(path):
            yield method, None, path[size]
    for draw, path in enumerate(found.draws):
        for size in sorted(path):
            yield RANDOM, draw, path[size]


def _columns(scores: Scores, text: str, removed: Removed, chosen: Removed) -> Float64[np.ndarray, "columns documents"]:
    """Sums over documents of COMPARED."""
    own, best, before = (scores.sums[text, one] for one in (removed, chosen, NOTHING))
    changes = [own[LOSS_PLACE] - before[LOSS_PLACE], own[KL_PLACE] - best[KL_PLACE], own[LOSS_PLACE] - best[LOSS_PLACE]]
    return np.concatenate([own, np.stack(changes)])


def _rows(
    method: str, draw: int | None, removed: Removed, text: str, found: Estimate, *, differences: bool
) -> pl.DataFrame:
    keys = {"method": method, "draw": draw, "removed": len(removed), "blocks": name_of(removed), "text": text}
    return _framed(keys, found, differences, perplexity=True)


def _mean_rows(size: int, text: str, found: Estimate, *, differences: bool) -> pl.DataFrame:
    keys = {"method": RANDOM, "draw": None, "removed": size, "blocks": None, "text": text}
    # The mean over draws of the perplexity is not exp(mean loss).
    return _framed(keys, found, differences, perplexity=False)


def _framed(keys: dict[str, object], found: Estimate, differences: bool, perplexity: bool) -> pl.DataFrame:
    metrics = [one for one in COMPARED if differences or one not in (KL_DIFFERENCE, LOSS_DIFFERENCE)]
    rows = estimate_columns(found.columns(np.arange(len(metrics))), metrics)
    if perplexity:
        loss = found.columns(np.array([COMPARED.index(LOSS)]))
        with np.errstate(over="ignore"):  # infinite values become null
            of_loss = replace(loss, mean=np.exp(loss.mean), low=np.exp(loss.low), high=np.exp(loss.high))
        place = COMPARED.index(LOSS_CHANGE) + 1
        rows = pl.concat([rows[:place], estimate_columns(of_loss, [PERPLEXITY]), rows[place:]])
    types = {name: kind for name, kind in PRUNE_METHODS_TABLE.items() if name in keys}
    named = [pl.lit(value, dtype=types[name]).alias(name) for name, value in keys.items()]
    return rows.with_columns(named).select(*PRUNE_METHODS_TABLE)

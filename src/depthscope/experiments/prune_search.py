"""Searches for blocks to remove, each as a generator: it yields what has to be measured next, and goes on once that is known.

A search measures nothing. It yields a Request, which names a text and sets of blocks; whoever drives it measures those sets
that are not known yet, stores the result, and resumes the search, which then reads it from Scores. A search that was killed is
thus driven through the stored results again, and takes the same decisions. How many requests a search makes depends only on
its settings, so that its work units can be counted before it begins.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from random import Random

import numpy as np
from jaxtyping import Float64, Int64

from depthscope.experiments.removals import NOTHING, Removals, Removed, name_of
from depthscope.routes import Step
from depthscope.schema.measures import KL
from depthscope.schema.prune import BEAM, EVOLUTION, FEW, GREEDY, MEASURED, SEARCH, SINGLE
from depthscope.statistics.estimate import ClusterMoments, Estimate

KL_PLACE = MEASURED.index(KL)


@dataclass(frozen=True, slots=True)
class Request:
    """What a search needs to know: the measures of these sets on a text, or with `readings` what influence and angular
    distance are computed from."""

    text: str
    sets: tuple[Removed, ...] = ()
    readings: bool = False


Requests = Generator[Request, None, "Path"]
Path = dict[int, Removed]
"""The set that a criterion removes, by how many items it has; only those that were found."""


@dataclass(slots=True)
class Scores:
    """Sums over documents of what was measured, by text and set."""

    tokens: dict[str, Int64[np.ndarray, " documents"]] = field(default_factory=dict)
    sums: dict[tuple[str, Removed], Float64[np.ndarray, "metrics documents"]] = field(default_factory=dict)
    unit: dict[tuple[str, Removed], int] = field(default_factory=dict)
    """The work unit in which a set was measured."""

    def knows(self, text: str, removed: Removed) -> bool:
        """Whether a set has been measured on a text."""
        return (text, removed) in self.sums

    def kl(self, text: str, removed: Removed) -> float:
        """Mean KL in nats."""
        return float(self.sums[text, removed][KL_PLACE].sum() / self.tokens[text].sum())

    def ranked(self, text: str, sets: Sequence[Removed]) -> list[Removed]:
        """Sets by mean KL, lowest first; among equal ones in the order of their names."""
        return sorted(sets, key=lambda one: (self.kl(text, one), name_of(one)))

    def estimate(self, text: str, sums: Float64[np.ndarray, "*columns documents"]) -> Estimate:
        """Means over tokens with intervals over documents, of sums over the documents of a text."""
        moments = ClusterMoments(sums.shape[:-1])
        for place, count in enumerate(self.tokens[text].tolist()):
            moments.add(count, sums[..., place])
        return moments.estimate()


@dataclass(frozen=True, slots=True)
class Tried:
    """A set that a search tried at a step. `unit` is the work unit of that step."""

    method: str
    step: int
    unit: int
    text: str
    removed: Removed
    chosen: bool


@dataclass(slots=True)
class Known:
    """What searches share: the sets that can be removed, the scores so far, and a record of what was tried."""

    removals: Removals
    scores: Scores
    remove: int
    tried: list[Tried] = field(default_factory=list)
    unit: int = 0
    """The work unit whose result is read."""

    def note(self, method: str, step: int, text: str, sets: Sequence[Removed], chosen: Sequence[Removed]) -> None:
        """Record the sets of a step, and which of them it goes on with."""
        self.tried += [Tried(method, step, self.unit, text, one, one in chosen) for one in dict.fromkeys(sets)]


def beam(known: Known, width: int, method: str = BEAM) -> Requests:
    """Sets of 1, 2, … items, of each size the `width` with the lowest KL: all possible ways to add an item are measured.

    With width 1 it is the greedy search; wide enough to keep every set it is an exhaustive one.
    """
    path: Path = {}
    kept = [NOTHING]
    for size in range(1, known.remove + 1):
        candidates = list(dict.fromkeys(larger for one in kept for larger in known.removals.with_one_more(one)))
        yield Request(SEARCH, tuple(candidates))
        kept = known.scores.ranked(SEARCH, candidates)[:width]
        known.note(method, size, SEARCH, candidates, kept)
        if kept:
            path[size] = kept[0]
    return path


def greedy(known: Known) -> Requests:
    """The item whose removal costs the lowest KL, then all remaining ones measured again without it, and so on."""
    return (yield from beam(known, 1, GREEDY))


def single(known: Known) -> Requests:
    """The items in the order of the KL of removing each alone."""
    candidates = known.removals.with_one_more(NOTHING)
    yield Request(SEARCH, tuple(candidates))
    ranked: list[Step] = [item for one in known.scores.ranked(SEARCH, candidates) for item in one]
    path = known.removals.first_possible(ranked, known.remove)
    last = path[max(path)] if path else NOTHING
    known.note(SINGLE, 1, SEARCH, candidates, [one for one in candidates if one <= last])
    return path


def evolution(known: Known, generations: int, offspring: int, survivors: int, seed: int) -> Requests:
    """One parent of the final size, mutated: offspring are scored on few documents, the best of them on all of the search's.

    As in EvoPress (Sieberling et al. 2024), mutations keep the number of removed items, offspring that survive compete with
    their parent on the larger text, and the parent stays unless one is better, so its KL there never rises. The parent of
    the first generation is the best of `offspring` random sets, chosen in the same two steps. The few documents are drawn
    again in each generation.
    """
    random = Random(f"evolution {seed}")
    removals, scores = known.removals, known.scores
    parent: Removed | None = None
    for generation in range(generations + 1):
        children = _children(removals, random, parent, known.remove, offspring)
        few = f"{FEW} {generation}"
        yield Request(few, tuple(children))
        kept = scores.ranked(few, children)[:survivors]
        known.note(EVOLUTION, generation, few, children, kept)
        yield Request(SEARCH, tuple(kept))
        rivals = kept if parent is None else [parent, *kept]
        parent = scores.ranked(SEARCH, rivals)[0] if rivals else None
        known.note(EVOLUTION, generation, SEARCH, rivals, [] if parent is None else [parent])
    return {} if parent is None else {known.remove: parent}


def _children(removals: Removals, random: Random, parent: Removed | None, remove: int, offspring: int) -> list[Removed]:
    """Different random sets, or different mutations of the parent."""
    found: dict[Removed, None] = {}
    for _ in range(4 * offspring):  # a small model has fewer different sets than offspring
        if parent is None:
            items = removals.drawn(random, remove)
            one = None if items is None else frozenset(items)
        else:
            one = removals.switched(random, parent)
        if one is None:
            break
        if one != parent:
            found[one] = None
        if len(found) == offspring:
            break
    return list(found)

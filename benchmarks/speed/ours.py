"""Ours: a sweep through the public engine, timed whole."""

import random
from collections.abc import Mapping, Sequence

from torch import Tensor

from benchmarks.speed.rounds import Seconds, seconds
from benchmarks.speed.routes import pairs, sweep_routes
from depthscope.engine.measure_routes import Pieces, RouteMeter
from depthscope.engine.reductions import compiled
from depthscope.models.model import Model

PIECES = Pieces(reductions=compiled()[0])
"""As in a study that is long enough for its sums to be compiled; compiling is not timed."""


class Ours:
    """`RouteMeter.measure` of every edit of each sweep, as a study calls it."""

    name = "depthscope"

    def __init__(self, model: Model, ids: Tensor, targets: Tensor, sweeps: Mapping[str, Sequence[str]]) -> None:
        self.model, self.ids, self.targets, self.sweeps = model, ids, targets, sweeps
        self.meters = {
            sweep: RouteMeter(model, sweep_routes(kinds, model.depth), PIECES) for sweep, kinds in sweeps.items()
        }

    def warm(self) -> None:
        """The last edit of each kind, on the text itself: every shape that will come, little of the work."""
        routes = [sweep_routes([kind], self.model.depth)[-1] for kind in _kinds(self.sweeps)]
        RouteMeter(self.model, routes, PIECES).measure(self.ids, self.targets)

    def repetition(self, number: int) -> Seconds:
        """Every sweep once."""
        return {
            sweep: seconds(lambda meter=meter: meter.measure(self.ids, self.targets))
            for sweep, meter in self.meters.items()
        }

    def mean_kl(self, chosen: Sequence[tuple[str, int]]) -> dict[tuple[str, int], float]:
        """Mean KL of some (kind, layer) pairs, to be compared with what others find."""
        routes = [sweep_routes([kind], self.model.depth)[layer] for kind, layer in chosen]
        measured = RouteMeter(self.model, routes, PIECES).measure(self.ids, self.targets)
        return {pair: float(measured.kl[place + 1].mean()) for place, pair in enumerate(chosen)}


def drawn_pairs(kinds: Sequence[str], depth: int, seed: int) -> list[tuple[str, int]]:
    """One (kind, layer) pair of each kind, layers drawn with the seed."""
    generator = random.Random(seed)
    return [generator.choice(pairs([kind], depth)) for kind in kinds]


def _kinds(sweeps: Mapping[str, Sequence[str]]) -> list[str]:
    return list(dict.fromkeys(kind for kinds in sweeps.values() for kind in kinds))

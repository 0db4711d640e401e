"""The edits of a sweep as (kind, layer) pairs and routes, without the packages that tables need."""

from collections.abc import Sequence

from depthscope.edits import drop, drop_attn, drop_mlp, swap
from depthscope.routes import Route

KINDS = {"swap": swap, "drop": drop, "drop_attn": drop_attn, "drop_mlp": drop_mlp}
SWEEPS: dict[str, tuple[str, ...]] = {"all four": tuple(KINDS), "drop": ("drop",)}
"""The sweeps that are timed, by the name they have in the table."""


def layers(kind: str, depth: int) -> int:
    """How many layers a kind of edit can be applied at: the last has no neighbour to swap with."""
    return depth - 1 if kind == "swap" else depth


def pairs(kinds: Sequence[str], depth: int) -> list[tuple[str, int]]:
    """Every (kind, layer) of a sweep, in the order of the sweep's table."""
    return [(kind, layer) for kind in kinds for layer in range(layers(kind, depth))]


def sweep_routes(kinds: Sequence[str], depth: int) -> list[Route]:
    """The route of every pair."""
    return [KINDS[kind](layer)(Route.own(depth)) for kind, layer in pairs(kinds, depth)]

"""The finder on simulated signals: shares of null sets with a step or a name, power, and coverage of the intervals."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from jaxtyping import Float64

from benchmarks.stages.nulls import NULLS
from benchmarks.stages.planted import Plan, planted
from depthscope.schema.stages import SIGNALS, STAGES, SUPPORTED
from depthscope.stages.compare import Compared, compare

DEPTHS = (12, 24, 30, 48, 80)
DRAWN = 199
"""Null sets per simulated model: fewer than a study uses, for time."""
GLANCE, CLEAR = 39, 0.2
"""Sets whose p-values, from so few null sets, are all above this are not looked at further: 0.05 is far below."""
HOLDS = dict.fromkeys(STAGES, SUPPORTED)
"""As if every defining signature were supported: what a name needs is the comparison of the signals alone."""
PLANS = {
    "2 sd": Plan(2.0),
    "3 sd": Plan(3.0),
    "4 sd": Plan(4.0),
    "4 sd in 60 % of the signals": Plan(4.0, share=0.6),
    "4 sd, ramps of L/4": Plan(4.0, width=0.25),
}
RESAMPLES = 60


def _compared(values: Float64[np.ndarray, "layers signals"], resamples: int = 0, drawn: int = DRAWN) -> Compared:
    rows = {name: values[None, :, column] for column, name in enumerate(SIGNALS)}
    return compare(rows, len(values), 40, HOLDS, drawn, resamples)


def _null(task: tuple[str, int, int]) -> tuple[bool, bool]:
    """Whether a set without stages has a step beyond smooth change, and whether anything is named."""
    name, depth, seed = task
    values = NULLS[name](depth, len(SIGNALS), np.random.default_rng([seed, depth]))
    first = _compared(values, drawn=GLANCE)
    if first.structure.p > CLEAR and all((one.p_readings or 1) > CLEAR for one in first.transitions):
        return False, False
    found = _compared(values)
    return found.structure.beyond_smooth, any(one.named for one in found.transitions)


def _planted(task: tuple[str, int, int]) -> list[tuple[bool, bool, bool, bool]]:
    """(beyond smooth, named, within a layer, interval covers) of each transition of a planted set."""
    name, depth, seed = task
    values, layers = planted(depth, PLANS[name], np.random.default_rng([seed, depth]))
    found = _compared(values, RESAMPLES)
    return [
        (
            found.structure.beyond_smooth,
            one.named,
            one.layer is not None and abs(one.layer - layer) <= 1,
            one.low is not None and one.high is not None and one.low <= layer <= one.high,
        )
        for one, layer in zip(found.transitions, layers, strict=True)
    ]


def nulls(count: int, depths: Iterable[int] = DEPTHS, workers: int = 2) -> dict[str, dict[int, tuple[float, float]]]:
    """For every null and depth, the shares with a step beyond smooth change and with a named transition."""
    return _shares(_null, NULLS, depths, count, workers)


def power(
    count: int, depths: Iterable[int] = DEPTHS, workers: int = 2
) -> dict[str, dict[int, dict[str, float | None]]]:
    """For every plan and depth: shares with a step, of transitions named, and of named ones placed and covered."""
    table: dict[str, dict[int, dict[str, float | None]]] = {}
    with ProcessPoolExecutor(workers) as pool:
        for name in PLANS:
            for depth in depths:
                results = np.array(
                    list(pool.map(_planted, [(name, depth, seed) for seed in range(count)], chunksize=4))
                )
                named = results[..., 1]
                table.setdefault(name, {})[depth] = {
                    "step": float(results[..., 0].mean()),
                    "named": float(named.mean()),
                    "within a layer": float(results[..., 2].mean()),
                    "covered": float(results[..., 3].mean()),
                    "covered, named": float(results[..., 3][named].mean()) if named.any() else None,
                    "count, named": int(named.sum()),
                }
                print(name, depth, table[name][depth], flush=True)
    return table


def _shares(work, names: Mapping, depths: Iterable[int], count: int, workers: int):
    table: dict[str, dict[int, tuple[float, float]]] = {}
    with ProcessPoolExecutor(workers) as pool:
        for name in names:
            for depth in depths:
                results = np.array(list(pool.map(work, [(name, depth, seed) for seed in range(count)], chunksize=4)))
                table.setdefault(name, {})[depth] = tuple(results.mean(0).tolist())
                print(name, depth, table[name][depth], flush=True)
    return table

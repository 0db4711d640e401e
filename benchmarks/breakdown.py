"""Where the time of a sweep goes, by what torch is asked for: a profile of one repetition.

    python benchmarks/breakdown.py [--shape gpt2-small] [--dtypes float32 bfloat16] [--sweep "all four"]
    OMP_NUM_THREADS=1 python benchmarks/breakdown.py --shape bookshelf-gpt2 --dtypes float32 --sweep surgery

The second line is of the explorer's surgery on one window, by seconds of one core.

Prints, per dtype, the share of each group of operations and the five costliest operations outside matrix products.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.speed.ours import PIECES
from benchmarks.speed.parts import one_surgery
from benchmarks.speed.routes import SWEEPS, sweep_routes
from benchmarks.speed.shapes import SHAPES, Shape, loaded, windows
from benchmarks.speed.table import machine
from depthscope.engine.measure_routes import RouteMeter
from depthscope.models.model import Model

GROUPS = {
    "products with weights": ("mkldnn::_linear_pointwise", "aten::mm", "aten::addmm"),
    "attention": ("aten::_scaled_dot_product", "aten::bmm", "aten::baddbmm"),
    "activations, norms and additions": (
        "aten::gelu", "aten::silu", "aten::tanh", "aten::sigmoid", "aten::addcmul", "aten::mul", "aten::add",
        "aten::native_layer_norm", "aten::rsqrt", "aten::pow", "aten::mean",
    ),
    "sums over the vocabulary": (
        "## Call CompiledFxGraph", "Torch-Compiled Region", "aten::_softmax", "aten::amax", "aten::argmax", "aten::exp",
    ),
}  # fmt: skip
REST = "everything else"
SURGERY = "surgery"


def breakdown(shape: str, dtype: str, sweep: str) -> tuple[Counter[str], Counter[str]]:
    """Seconds by group, and by operation outside matrix products, of one repetition."""
    model = loaded(SHAPES[shape], dtype)
    once = _surgery(model, SHAPES[shape]) if sweep == SURGERY else _sweep(model, SHAPES[shape], sweep)
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        once()
    groups: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for event in seen.key_averages():
        group = next((name for name, starts in GROUPS.items() if event.key.startswith(starts)), REST)
        groups[group] += event.self_cpu_time_total / 1e6
        if group != "products with weights":
            others[event.key] += event.self_cpu_time_total / 1e6
    return groups, others


def _sweep(model: Model, shape: Shape, sweep: str) -> Callable[[], object]:
    """One repetition, after what only the first one pays for."""
    text = windows(shape)
    meter = RouteMeter(model, sweep_routes(SWEEPS[sweep], model.depth), PIECES)
    RouteMeter(model, sweep_routes(SWEEPS["drop"], model.depth)[-2:], PIECES).measure(*text)
    return lambda: meter.measure(*text)


def _surgery(model: Model, shape: Shape) -> Callable[[], object]:
    """As the explorer does it, after a first time."""
    once = one_surgery(model, shape)
    once()
    return once


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Where the time of a sweep goes.")
    parser.add_argument("--shape", default="gpt2-small", choices=SHAPES)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--sweep", default="all four", choices=[*SWEEPS, SURGERY])
    options = parser.parse_args()
    print(f"{options.shape}, {options.sweep}; {machine()}; {date.today()}")
    for dtype in options.dtypes:
        groups, others = breakdown(options.shape, dtype, options.sweep)
        total = sum(groups.values())
        shares = ", ".join(f"{name} {100 * spent / total:.0f} %" for name, spent in groups.most_common())
        costly = ", ".join(f"{name[:40]} {100 * spent / total:.1f} %" for name, spent in others.most_common(5))
        print(f"{dtype}: {total:.1f} s. {shares}\n  of it: {costly}", flush=True)


if __name__ == "__main__":
    main()

"""Peak memory of a sweep beyond the weights, libraries included, in this process: `python -m benchmarks.speed.memory`.

    python -m benchmarks.speed.memory gpt2-small float32 2048

Prints two numbers of GB (10⁹ bytes), both less the bytes of the weights: what is resident when the model is loaded, which is
mostly libraries, and the largest resident set from then on. Text goes in by 1,024 tokens, as in a study.
"""

import resource
import sys
from pathlib import Path

from benchmarks.speed.routes import KINDS, sweep_routes
from benchmarks.speed.shapes import SHAPES, loaded, windows
from depthscope.engine.measure_routes import RouteMeter

UNIT = 1024


def resident(field: str = "VmRSS") -> float:
    """Bytes resident now, or with `VmHWM` at most since the peak was last forgotten; where the system does not say, at most
    since the process began."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith(field))
        return float(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def forget_peak() -> None:
    """Let the peak begin at what is resident now; where the system has no such thing, making the model counts too."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def main(name: str, dtype: str, tokens: int) -> None:
    """Sweep and print."""
    shape = SHAPES[name]
    model = loaded(shape, dtype)
    weights = sum(parameter.nbytes for parameter in model.hf.parameters())
    meter = RouteMeter(model, sweep_routes(tuple(KINDS), model.depth))
    at_once = max(1, UNIT // shape.length)
    print((resident() - weights) / 1e9)
    forget_peak()
    texts = (part.split(at_once) for part in windows(shape, tokens // shape.length))
    for ids, targets in zip(*texts, strict=True):
        meter.measure(ids, targets)
    print((resident("VmHWM") - weights) / 1e9)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

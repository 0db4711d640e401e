"""Readings of windows of the text: from one baseline run, and in halves where that does not fit into memory."""

from collections.abc import Sequence
from functools import reduce as folded
from operator import or_

import polars as pl

from depthscope.data.windows import Windows
from depthscope.engine.baseline import Baseline
from depthscope.engine.reductions import Reductions
from depthscope.engine.sizes import sizes_for
from depthscope.experiments.experiment import Joining, Reading
from depthscope.models.memory import require_memory, short_of_memory
from depthscope.models.model import Model
from depthscope.models.offload.streaming import device_memory


def read_windows(
    model: Model, readings: Sequence[Reading], windows: Windows, form: Reductions | None = None
) -> dict[str, pl.DataFrame]:
    """The shard of each reading, from one baseline run on the windows; windows that do not fit into memory in halves.

    Raises MemoryShortError where a single window does not fit.
    """
    try:
        with model.measuring():
            keep = folded(or_, (reading.keep for reading in readings))
            baseline = Baseline(model, *windows.batch(), keep=keep, reductions=form, named=windows.called)
            return {reading.name: reading.read(baseline, windows) for reading in readings}
    except (RuntimeError, MemoryError) as error:
        if not short_of_memory(error) or len(windows) == 1:
            raise
    # After the except clause, whose error holds what was computed so far.
    middle = len(windows) // 2
    parts = (windows.part(0, middle), windows.part(middle, len(windows)))
    halves = [read_windows(model, readings, part, form) for part in parts]
    return {reading.name: _joined(reading, [half[reading.name] for half in halves]) for reading in readings}


def _joined(reading: Reading, shards: Sequence[pl.DataFrame]) -> pl.DataFrame:
    return reading.joined(shards) if isinstance(reading, Joining) else pl.concat(shards)


def require_memory_for(model: Model, length: int, reduce: str) -> None:
    """Raise MemoryShortError, with what to `reduce`, where not even one window of `length` tokens can be read: its residual
    streams, and the logits that are in memory at once."""
    weight, sizes = model.unembedding.weight, sizes_for(model.device, model.unembedding.weight.shape[1])
    streams = (model.depth + 1) * length * weight.shape[1]
    logits = min(length, sizes.rows) * min(sizes.slice_width, model.unembedding.vocabulary)
    available = None if model.device.type == "cpu" else device_memory(model.device)
    what = f"one window of {length} tokens through {model.depth} blocks"
    require_memory((streams + logits) * weight.dtype.itemsize, what, reduce, available)

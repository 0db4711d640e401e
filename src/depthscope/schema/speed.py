"""What a cut brings in speed and memory: two checkpoints timed in turns. Imports no torch.

Rates are tokens per second of all sequences of the batch together. Round r of both checkpoints was measured next to each
other in time, so its ratio is not affected by what else the machine did more slowly than a round takes.
"""

from dataclasses import dataclass
from statistics import median
from typing import Any

PREFILL, DECODE = "prefill", "decode"
PHASES = {PREFILL: "Prefill", DECODE: "Decoding"}
"""The two phases of generation: reading the prompt in one pass, and one pass for each further token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One checkpoint: rates of each round, bytes of its weights in memory, and the peak of memory while it generated."""

    name: str
    prefill: tuple[float, ...]
    decode: tuple[float, ...]
    weights: int
    peak: int | None
    """Bytes; None where the system does not say."""

    def rates(self, phase: str) -> tuple[float, ...]:
        """Tokens per second of each round."""
        return self.prefill if phase == PREFILL else self.decode

    def rate(self, phase: str) -> float:
        """The median over rounds."""
        return median(self.rates(phase))


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Two checkpoints timed in turns, in one run."""

    before: Timed
    after: Timed
    prompt: int
    """Tokens of the prompt."""
    new: int
    """Tokens that were generated."""
    batch: int
    threads: int
    dtype: str
    device: str
    machine: str

    @property
    def rounds(self) -> int:
        """How often each was timed."""
        return len(self.before.prefill)

    def ratio(self, phase: str) -> tuple[float, float, float]:
        """Rate after / before: the median over rounds, the lowest and the highest."""
        ratios = [
            after / before for before, after in zip(self.before.rates(phase), self.after.rates(phase), strict=True)
        ]
        return median(ratios), min(ratios), max(ratios)

    @property
    def method(self) -> str:
        """How it was measured, in a sentence."""
        return (
            f"transformers' generate, greedy, batch {self.batch}, {self.prompt} prompt tokens and {self.new} new ones with the "
            f"key/value cache, {self.dtype} on {self.device} ({self.machine}), {self.threads} "
            f"thread{'s' if self.threads > 1 else ''}. Each checkpoint in a process of its own; after one round that does not "
            f"count, {self.rounds} rounds in turns. Rates are medians, ratios medians of the rounds' ratios with the lowest "
            "and the highest"
        )

    def rows(self) -> list[dict[str, Any]]:
        """One row for each phase, with medians and ratio."""
        rows = []
        for phase in PHASES:
            ratio, low, high = self.ratio(phase)
            rates = {"before": self.before.rate(phase), "after": self.after.rate(phase)}
            rows.append({"phase": phase, "unit": "tokens/s", **rates, "ratio": ratio, "lowest": low, "highest": high})
        return rows

"""What a training run is asked to do. A run resumes only under the settings it began with."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from training.architectures import PRESETS


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """One training run.

    Exactly one of `minutes` (of training time, pauses not counted) and `tokens` ends it and sets the pace of the
    learning rate. `source_sha256` identifies the weights continued from (None: fresh ones), `map_sha256` the token map.
    `overrides` are fields of the preset's config, for tests and experiments with other sizes.
    """

    preset: str
    map_sha256: str
    source: str | None = None
    source_sha256: str | None = None
    seen_before: int = 0
    minutes: float | None = None
    tokens: int | None = None
    batch: int = 16
    window: int = 256
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    flat: float = 0.3
    final: float = 0.02
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0
    device: str = "cpu"
    dtype: str = "bfloat16"
    attention: str = "eager"
    compile: bool = True
    overrides: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"unknown preset {self.preset!r}: choose one of {', '.join(sorted(PRESETS))}")
        if (self.minutes is None) == (self.tokens is None):
            raise ValueError("give exactly one of minutes and tokens: it ends the run and paces the learning rate")
        if self.dtype not in ("bfloat16", "float32"):
            raise ValueError(f"dtype is bfloat16 (autocast) or float32, not {self.dtype!r}")
        if not 0 <= self.flat < 1:
            raise ValueError(f"flat is the part of the run at full learning rate, 0 <= flat < 1, not {self.flat}")
        if min(self.batch, self.window, self.warmup_steps, self.minutes or 1, self.tokens or 1) <= 0:
            raise ValueError("batch, window, warmup_steps, minutes and tokens must be positive")

    def progress(self, tokens: int, seconds: float) -> float:
        """How much of the run is done, from 0 to 1, after `tokens` tokens and `seconds` of training."""
        done = tokens / self.tokens if self.tokens is not None else seconds / (60 * (self.minutes or 1))
        return min(done, 1.0)

    def learning_rate_at(self, step: int, progress: float) -> float:
        """Linear warm-up over the first steps; flat until `flat`, then linear to `final` times the peak."""
        decay = max(progress - self.flat, 0.0) / (1 - self.flat)
        return self.learning_rate * min((step + 1) / self.warmup_steps, 1.0) * (1 - (1 - self.final) * decay)

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON-ready values, `overrides` as a mapping."""
        return asdict(self) | {"overrides": dict(self.overrides)}


def difference(saved: dict[str, Any], asked: dict[str, Any]) -> str:
    """The settings in which two runs differ, for an error message; empty where they agree."""
    names = [name for name in sorted(saved.keys() | asked.keys()) if saved.get(name) != asked.get(name)]
    return "; ".join(f"{name} was {saved.get(name)!r}, now {asked.get(name)!r}" for name in names)

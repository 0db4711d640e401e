"""What RUN/stages.json holds, as objects: the stages found, their boundaries, the signals, and the signatures' verdicts."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, ClassVar

from depthscope.schema.stages import CANNOT_TELL, NOT_SUPPORTED, SUPPORTED, verdict_shown, written
from depthscope.schema.stored import ALWAYS, Entry, StoredFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage(Entry):
    """Contiguous layers, `first` to `last`. Where a transition was not found, several stages share an entry, joined by +."""

    name: str
    title: str
    first: int
    last: int
    signatures: int
    supported: int

    def __str__(self) -> str:
        layers = f"layer {self.first}" if self.first == self.last else f"layers {self.first}–{self.last}"
        return f"{layers}: {self.title} ({self.supported} of {self.signatures} signatures supported)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary(Entry):
    """A change of the signals at `layer`, the first of the later stage, with its 95% interval over documents.

    `before` and `after` are the stages it separates, None where it is not one of the hypothesis's transitions. `support` is
    the share of resamples that place it at exactly this layer; `without_one` the lowest and highest layer when any one signal
    is left out; `votes` the layer at which each signal that is evidence for it changes on its own, None where it does not.
    """

    layer: int
    low: int | None
    high: int | None
    support: float | None
    without_one: list[int] | None
    votes: dict[str, int | None]
    before: str | None
    after: str | None

    def __str__(self) -> str:
        what = f"{self.before} → {self.after}" if self.before else "a change that is not a transition of the hypothesis"
        interval = "no interval" if self.low is None else f"95% interval {self.low} to {self.high}"
        return f"before layer {self.layer}: {what} ({interval})"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSignal(Entry):
    """A signal over layers as measured (`values`) and as compared (`standardised`, None where stages were not searched for)."""

    name: str
    title: str
    unit: str
    sentence: str
    flat: bool
    values: list[float]
    standardised: list[float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureVerdict(Entry):
    """The test of a signature of the paper's table 1: effect with its 95% interval, threshold, verdict, and its reason.

    `defining`: the stage is not named unless this signature is supported. `threshold_date` is when the threshold was fixed.
    """

    name: str
    title: str
    stage: str
    test: str
    unit: str
    threshold: float
    effect: float | None
    ci_low: float | None
    ci_high: float | None
    verdict: str
    reason: str
    defining: bool = field(default=False, metadata=ALWAYS)
    threshold_date: str | None = field(default=None, metadata=ALWAYS)

    def __str__(self) -> str:
        effect = self.reason if self.effect is None else f"{written(self.effect, self.unit)}"
        return f"{self.title}: {verdict_shown(self.verdict)} ({effect}; threshold {written(self.threshold, self.unit)})"


def _with_all_lists(content: dict[str, Any]) -> dict[str, Any]:
    """Files without a format may lack the unnamed changes and the method."""
    return {"unnamed_changes": [], "method": {}, **content}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Stages(StoredFile):
    """The stages of a model of `layers` layers, and how certain they are. `found`: whether there is at least one boundary.

    `unnamed_changes` are changes of the signals that are not transitions of the hypothesis; `method` states how many changes
    exceed chance.
    """

    format: ClassVar[int] = 1
    migrations: ClassVar = {0: _with_all_lists}
    remedy: ClassVar[str] = "Run the study again: it finds stages from what is already measured"

    found: bool
    summary: str
    layers: int
    stages: list[Stage]
    boundaries: list[Boundary]
    unnamed_changes: list[Boundary]
    signals: list[StageSignal]
    signatures: list[SignatureVerdict]
    method: dict[str, Any]

    def __repr__(self) -> str:
        counts = Counter(one.verdict for one in self.signatures)
        total = ", ".join(
            f"{counts[verdict]} {verdict_shown(verdict)}" for verdict in (SUPPORTED, NOT_SUPPORTED, CANNOT_TELL)
        )
        lines = [self.summary, *self.stages, *self.boundaries, *self.unnamed_changes, f"signatures: {total}"]
        return "\n  ".join(f"{line}" for line in lines)

"""What RUN/stages.json holds, as objects: the stages found, their boundaries, the signals, and the signatures' verdicts."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from depthscope.schema.stages import CANNOT_TELL, NOT_SUPPORTED, SUPPORTED, written

Entry = TypeVar("Entry")


@dataclass(frozen=True, slots=True)
class Stage:
    """A run of layers, `first` to `last`. Where a transition was not found several stages are one entry, joined by +."""

    name: str
    title: str
    first: int
    last: int
    signatures: int
    supported: int

    def __str__(self) -> str:
        layers = f"layer {self.first}" if self.first == self.last else f"layers {self.first}–{self.last}"
        return f"{layers}: {self.title} ({self.supported} of {self.signatures} signatures supported)"


@dataclass(frozen=True, slots=True)
class Boundary:
    """A change of the signals at `layer`, the first of the later stage, with its 95% interval over documents.

    `before` and `after` are the stages it divides, None where it is none of the hypothesis's transitions. `support` is the
    share of resamples that put it at this very layer; `without_one` the lowest and highest layer when any one signal is left
    out; `votes` where each signal that would speak for it changes by itself, None where it does not.
    """

    layer: int
    low: int | None
    high: int | None
    support: float | None
    without_one: list[int] | None
    before: str | None
    after: str | None
    votes: dict[str, int | None]

    def __str__(self) -> str:
        what = f"{self.before} → {self.after}" if self.before else "a change that is no transition of the hypothesis"
        interval = "no interval" if self.low is None else f"95% interval {self.low} to {self.high}"
        return f"before layer {self.layer}: {what} ({interval})"


@dataclass(frozen=True, slots=True)
class StageSignal:
    """A signal over layers as measured, and as compared: `standardised`, None where stages were not looked for."""

    name: str
    title: str
    unit: str
    sentence: str
    flat: bool
    values: list[float]
    standardised: list[float] | None


@dataclass(frozen=True, slots=True)
class SignatureVerdict:
    """A signature of the paper's table 1 as it was tested: effect with its 95% interval, threshold, verdict, and its reason."""

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

    def __str__(self) -> str:
        effect = self.reason if self.effect is None else f"{written(self.effect, self.unit)}"
        return f"{self.title}: {self.verdict} ({effect}; at least {written(self.threshold, self.unit)} is needed)"


@dataclass(frozen=True, slots=True, repr=False)
class Stages:
    """The stages of a model of `layers` layers, and how surely. `found` says whether there is at least one boundary.

    `unnamed_changes` are changes of the signals that are none of the hypothesis's transitions; `method` how many changes
    stood clear of chance.
    """

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
        said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in (SUPPORTED, NOT_SUPPORTED, CANNOT_TELL))
        lines = [self.summary, *self.stages, *self.boundaries, *self.unnamed_changes, f"signatures: {said}"]
        return "\n  ".join(f"{line}" for line in lines)


def read_stages(content: Mapping[str, Any]) -> Stages:
    """The content of stages.json as objects."""
    return Stages(
        found=content["found"],
        summary=content["summary"],
        layers=content["layers"],
        stages=[_read(Stage, one) for one in content["stages"]],
        boundaries=[_read(Boundary, one) for one in content["boundaries"]],
        unnamed_changes=[_read(Boundary, one) for one in content.get("unnamed_changes", [])],
        signals=[_read(StageSignal, one) for one in content["signals"]],
        signatures=[_read(SignatureVerdict, one) for one in content["signatures"]],
        method=content.get("method", {}),
    )


def _read(kind: type[Entry], entry: Mapping[str, Any]) -> Entry:
    """An entry of a list. A run of an earlier version may lack some fields, and a later one's others are left out."""
    return kind(**{field.name: entry.get(field.name) for field in fields(kind)})  # type: ignore[arg-type]

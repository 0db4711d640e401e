"""What RUN/stages.json holds, as objects: the stages found, their boundaries, the signals, and the signatures' verdicts."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, ClassVar

from depthscope.schema.stages import CANNOT_TELL, NOT_SUPPORTED, SUPPORTED, verdict_shown, written
from depthscope.schema.stored import MOST_LAYERS, Entry, EntryError, StoredFile, require_range


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
class Structure(Entry):
    """Whether the signals have a step beyond smooth change with depth and autocorrelated noise.

    `p` is the larger of the p-values against both kinds of null signals, `layer` the first one after the likeliest step.
    """

    p: float
    level: float
    layer: int
    beyond_smooth: bool

    def __str__(self) -> str:
        what = (
            "steps beyond smooth change with depth" if self.beyond_smooth else "nothing beyond smooth change with depth"
        )
        return f"{what} (p = {self.p:.3g})"


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthShape(Entry):
    """How well a shape over depth predicts the signals of a layer that was left out.

    `error` is the mean squared error in units of the signals' variance; `worse` by how much it exceeds that of the best
    shape, with its standard error over layers.
    """

    title: str
    smooth: bool
    error: float
    worse: float
    standard_error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge(Entry):
    """Whether the first or last layer is exceptional in a signal: off the smooth continuation of the other layers.

    `ratio` is the layer's KL divergence over the median layer's, `p` is corrected for the number of such tests.
    """

    end: str
    layer: int
    signal: str
    ratio: float
    p: float
    exceptional: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition(Entry):
    """A transition of the hypothesis: whether it is named, where, and why or why not.

    `layer` is the first layer of the later stage where the transition fits best, with the 95% interval over resamples if it is
    named. `absent` is the share of resamples in which it is not, `places` the share that puts it before each layer.
    `p_readings` is corrected for three transitions; `p_hypotheses` is the share of random hypotheses that fit as well.
    """

    before: str
    after: str
    named: bool
    reason: str
    layer: int | None
    low: int | None
    high: int | None
    absent: float | None
    places: list[float]
    p_readings: float | None
    p_hypotheses: float | None
    defining: str


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
    defining: bool = False
    threshold_date: str | None = None

    def __str__(self) -> str:
        effect = self.reason if self.effect is None else f"{written(self.effect, self.unit)}"
        return f"{self.title}: {verdict_shown(self.verdict)} ({effect}; threshold {written(self.threshold, self.unit)})"


MOST = {"stages": 64, "boundaries": 64, "unnamed_changes": MOST_LAYERS, "transitions": 64, "edges": 64, "shapes": 64}
MOST |= {"signals": 64, "signatures": 256}
"""How many entries each list may have: several times more than the stage finder writes."""


def _with_all_lists(content: dict[str, Any]) -> dict[str, Any]:
    """Files without a format may lack the unnamed changes and the method."""
    return {"unnamed_changes": [], "method": {}, **content}


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Stages(StoredFile):
    """The stages of a model of `layers` layers, and how certain they are. `found`: whether there is at least one boundary.

    `structure` is None where the signals were not compared, and in files of the first finder, which had no tests.
    `boundaries` are the named transitions; `unnamed_changes` a step
    beyond smooth change that is none of them. `method` has the numbers that the procedure depends on.
    """

    format: ClassVar[int] = 2
    sealed_from: ClassVar[int] = 2
    migrations: ClassVar = {0: _with_all_lists, 1: lambda content: content}
    remedy: ClassVar[str] = "Run the study again: it finds stages from what is already measured"

    found: bool
    summary: str
    layers: int
    structure: Structure | None = None
    shapes: list[DepthShape] = field(default_factory=list)
    transitions: list[Transition] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
    stages: list[Stage]
    boundaries: list[Boundary]
    unnamed_changes: list[Boundary]
    signals: list[StageSignal]
    signatures: list[SignatureVerdict]
    method: dict[str, Any]

    def check(self, at: str) -> None:
        """All entries are about layers of this model, and there are no more of them than a run can have."""
        require_range(at, "layers", self.layers, 1, MOST_LAYERS)
        for name, most in MOST.items():
            require_range(at, f"number of {name}", len(getattr(self, name)), 0, most)
        for place, stage in enumerate(self.stages):
            require_range(f"stages[{place}]", "first", stage.first, 0, self.layers - 1)
            require_range(f"stages[{place}]", "last", stage.last, stage.first, self.layers - 1)
        for name in ("boundaries", "unnamed_changes", "transitions", "edges"):
            for place, one in enumerate(getattr(self, name)):
                for entry in ("layer", "low", "high"):
                    require_range(f"{name}[{place}]", entry, getattr(one, entry, None), 0, self.layers)
        self._check_lengths()

    def _check_lengths(self) -> None:
        for place, one in enumerate([*self.boundaries, *self.unnamed_changes]):
            if one.without_one is not None and len(one.without_one) != 2:
                raise EntryError(f"boundaries[{place}].without_one: expected two layers, got {len(one.without_one)}")
        for place, one in enumerate(self.transitions):
            require_range(f"transitions[{place}]", "number of places", len(one.places), 0, self.layers + 1)
        for place, one in enumerate(self.signals):
            count = len(one.values)
            require_range(f"signals[{place}]", "number of values", count, 0, self.layers)
            if one.standardised and len(one.standardised) != count:
                raise EntryError(
                    f"signals[{place}].standardised: expected {count} numbers, got {len(one.standardised)}"
                )

    def __repr__(self) -> str:
        counts = Counter(one.verdict for one in self.signatures)
        total = ", ".join(
            f"{counts[verdict]} {verdict_shown(verdict)}" for verdict in (SUPPORTED, NOT_SUPPORTED, CANNOT_TELL)
        )
        lines = [self.summary, *self.stages, *self.boundaries, *self.unnamed_changes, f"signatures: {total}"]
        return "\n  ".join(f"{line}" for line in lines)

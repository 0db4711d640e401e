"""What is asked of a study besides model and text, checked before either is read. Imports no torch."""

from collections.abc import Sequence
from dataclasses import dataclass

from depthscope.data.bos import AUTO, check_bos
from depthscope.errors import DataError, DepthscopeError
from depthscope.experiments.protocol import TEXT, check_protocol
from depthscope.schema.sweep import check_edits

SWEEP, STAGES = "sweep", "stages"
NAMES = (
    SWEEP,
    "lens",
    "norms",
    "attention",
    "similarity",
    "influence",
    "geometry",
    "neurons",
    "heads",
    "probes",
    STAGES,
)
"""The experiments. Stages are found from what the others measured, in this run of the command or an earlier one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySettings:
    """What decides the numbers of a study besides model and text.

    Raises a DepthscopeError that says what was expected for a value that no model could be studied with.
    """

    experiments: tuple[str, ...] = ()
    """Some of NAMES; all of them by default."""
    edits: tuple[str, ...] | None = None
    """Some of EDIT_KINDS; all that the model has by default."""
    per_token: bool = False
    precision: float | None = None
    """Read until each mean KL of the sweep is known to this share of itself, instead of a number of tokens."""
    window: int | None = None
    bos: str = AUTO
    protocol: str = TEXT
    suffix: str = "ing"
    unit_tokens: int | None = None
    """Tokens of a work unit, of what is computed at once and lost when a run is killed; what suits the device by default."""

    def __post_init__(self) -> None:
        names = experiment_names(self.experiments)
        if SWEEP in names and self.edits is not None:
            check_edits(self.edits)
        check_protocol(self.protocol)
        check_bos(self.bos)
        if self.window is not None:
            check_window(self.window)
        check_precision(self.precision, names)


def experiment_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names, each once and in the order of NAMES, all for none. Raises DepthscopeError for one there is not."""
    if unknown := [name for name in names if name not in NAMES]:
        raise DepthscopeError(f"unknown experiment {', '.join(unknown)}: expected some of {', '.join(NAMES)}")
    return tuple(name for name in NAMES if not names or name in names)


def check_window(length: int) -> None:
    """Raise DataError for a window in which nothing is predicted from anything."""
    if length < 2:
        raise DataError(f"a window of {length} tokens is too short: expected at least 2")


def check_precision(precision: float | None, experiments: Sequence[str]) -> None:
    """Raise DepthscopeError for a goal that is no share, or one without a sweep among the experiments."""
    if precision is None:
        return
    if not 0 < precision < 1:
        raise DepthscopeError(
            f"expected a precision between 0 and 1, such as 0.05 for intervals of ±5 %, got {precision}"
        )
    if SWEEP not in experiments:
        raise DepthscopeError(
            f"--precision is a goal for the KL of the sweep, and only {', '.join(experiments)} would be done: "
            "add sweep to --experiments, or say how much text with --tokens"
        )

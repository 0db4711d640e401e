"""Settings of a study besides model and text, checked before either is read. Imports no torch.

Settings of individual experiments are in their declarations (`schema/`), those of the study are here; the commands,
`ds.study` and the documentation take both from `study_options`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import islice
from typing import Any

from depthscope.data.bos import AUTO, check_bos
from depthscope.errors import DataError, DepthscopeError
from depthscope.printable import shown
from depthscope.schema import experiments as declared
from depthscope.schema.class_tables import COMPANIONS, companions
from depthscope.schema.declaration import Option, check_text
from depthscope.schema.experiments import EXPERIMENTS, experiment_names
from depthscope.schema.layer_maps import EXPERIMENT as MAP
from depthscope.schema.sweep import EXPERIMENT as SWEEP
from depthscope.schema.token_classes import BY_CLASS

MOST_NAMES = 10_000
"""Names in a list: an iterable may have no end."""
LONGEST_WINDOW = 1 << 24
"""Tokens of a window that can be asked for: more than any model's context."""


def check_window(length: Any) -> None:
    """Raise DataError for a window too short to contain a prediction, longer than any context, or not a whole number."""
    if not isinstance(length, int) or isinstance(length, bool):
        raise DataError(f"a window of {shown(length)} tokens: expected a whole number")
    if length < 2:
        raise DataError(f"a window of {shown(length)} tokens is too short: expected at least 2")
    if length > LONGEST_WINDOW:
        raise DataError(f"a window of {shown(length)} tokens is too long: expected at most {LONGEST_WINDOW:,}")


def _check_precision(precision: float) -> None:
    if not 0 < precision < 1:
        raise DepthscopeError(
            f"expected a precision between 0 and 1, such as 0.05 for intervals of ±5 %, got {shown(precision)}"
        )


PRECISION = Option(
    name="precision",
    type=float,
    default=None,
    help="Instead of a number of tokens: read until every mean KL of the sweep, or of a map without one, has a 95% interval "
    "(per row, not for all rows together) within this share of it (0.05 for ±5%), or lies below the dtype's noise floor. A "
    "finer precision on the same --out continues the run.",
    check=_check_precision,
)
AIMED = {SWEEP.name, MAP.name}
"""The experiments that a precision can be the goal of."""
WINDOW = Option(
    name="window",
    type=int,
    default=None,
    help="Tokens in a window.",
    shown_default="the model's context, at most 512",
    check=check_window,
)
BOS = Option(
    name="bos",
    type=str,
    default=AUTO,
    help="BOS token before each window: auto (the tokenizer's default), none or window (always).",
    check=check_bos,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySettings:
    """What determines the numbers of a study besides model and text. Created by `study_settings`, which checks it."""

    experiments: tuple[str, ...]
    """Names, in running order."""
    precision: float | None = None
    window: int | None = None
    bos: str = AUTO
    unit_tokens: int | None = None
    """Tokens per work unit: the work computed at once and lost if a run is killed. The default depends on the device."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The settings of all experiments, by name."""


def experiments_option() -> Option:
    """Which experiments a study runs; the help lists all of them."""
    return Option(
        name="experiments",
        type=tuple,
        default=(),
        help=f"Which experiments, separated by commas: {', '.join(experiment_names())}.{_more_on_request()}",
        shown_default=f"all but {' and '.join(more)}" if (more := declared.on_request()) else "all",
        check=experiment_names,
    )


def _more_on_request() -> str:
    more = declared.on_request()
    deep = [name for name, one in EXPERIMENTS.items() if one.deep]
    named = f" Only where named: {', '.join(more)}." if more else ""
    return named + (f" {declared.DEEP} names {', '.join(deep)}." if deep else "")


def study_options() -> dict[str, Option]:
    """All settings of a study by name: those of the study, then those of its experiments."""
    own = (experiments_option(), PRECISION, WINDOW, BOS)
    return {option.name: option for option in own} | declared.options()


def study_settings(*, unit_tokens: int | None = None, **given: Any) -> StudySettings:
    """The settings from keywords, with defaults for the others.

    Raises DepthscopeError for an unknown name, and whatever an option's check raises for an invalid value. Options of
    experiments that are not requested are not checked.
    """
    there = study_options()
    given = _known(there, given)
    if unit_tokens is not None and not (type(unit_tokens) is int and unit_tokens > 0):
        raise DepthscopeError(f"setting unit_tokens: expected a positive whole number, got {shown(unit_tokens)}")
    names = experiment_names(given.get("experiments") or ())
    if given.get(BY_CLASS.name):
        names = _with_classes(names)
    checked = {PRECISION.name, WINDOW.name, BOS.name, *declared.options(names)}
    values = {name: given.get(name, option.default) for name, option in there.items()}
    for name in checked:
        if values[name] is not None:
            there[name].check(values[name])
    if values[PRECISION.name] is not None:
        _require_aimed(names)
    own = {option.name: values.pop(option.name) for option in (PRECISION, WINDOW, BOS)}
    del values["experiments"]
    return StudySettings(experiments=names, unit_tokens=unit_tokens, options=values, **own)


def settings_from(there: Mapping[str, Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all options by name: those given, checked, and the defaults of the others.

    Raises DepthscopeError for an unknown name or a value of another type, and whatever an option's check raises.
    """
    values = {name: option.default for name, option in there.items()} | _known(there, given)
    for name, value in values.items():
        if value is not None:
            there[name].check(value)
    return values


def _known(there: Mapping[str, Option], given: Mapping[str, Any]) -> dict[str, Any]:
    """Values of options that there are, each of its option's type."""
    if unknown := next((name for name in given if name not in there), None):
        near = get_close_matches(unknown, there, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise DepthscopeError(f"unknown setting {unknown}{hint}: expected some of {', '.join(there)}")
    return {name: _typed(there[name], value) for name, value in given.items()}


def _typed(option: Option, value: Any) -> Any:
    """A value of the option's type; names also from a text that separates them by commas, with hyphens or not.

    Raises DepthscopeError for a value of another type. None is for options that have no default value.
    """
    if value is None and option.default is None:
        return None
    if option.type is tuple and isinstance(value, str):
        return tuple(name.strip().replace("-", "_") for name in value.split(",") if name.strip())
    if option.type is tuple and isinstance(value, Iterable):
        value = tuple(islice(value, MOST_NAMES + 1))
    if option.type is float and isinstance(value, int) and abs(value) < 1 << 1000:  # a larger one is no float
        value = float(value)
    # A bool is an int to Python, but no number of anything.
    fits = isinstance(value, option.type) and (option.type is bool or not isinstance(value, bool))
    names = value if isinstance(value, tuple) else ()
    if not fits or len(names) > MOST_NAMES or not all(isinstance(name, str) for name in names):
        expected = "a list of names" if option.type is tuple else option.type.__name__
        raise DepthscopeError(f"setting {option.name}: expected {expected}, got {shown(value)}")
    if isinstance(value, str):
        check_text(f"setting {option.name}", value)
    return value


def _with_classes(names: tuple[str, ...]) -> tuple[str, ...]:
    """These experiments, and those that break them down by class of the predicted token."""
    if not (more := companions(names)):
        raise DepthscopeError(
            f"--by-class breaks down {', '.join(COMPANIONS)}, but only {', '.join(names)} would run: add one of them"
        )
    return experiment_names([*names, *more])


def _require_aimed(names: Sequence[str]) -> None:
    if not AIMED & set(names):
        raise DepthscopeError(
            f"--precision is a goal for the KL of a sweep or map, but only {', '.join(names)} would run: "
            "add sweep or map to --experiments, or set the amount of text with --tokens"
        )


def command_options(name: str) -> dict[str, Option]:
    """The settings of an experiment's command: those of the experiments it runs, and the precision if it runs the sweep."""
    members = [one.name for one in EXPERIMENTS.values() if one.command == name]
    own = (PRECISION,) if AIMED & set(members) else ()
    return declared.options(members) | {option.name: option for option in (*own, WINDOW, BOS)}

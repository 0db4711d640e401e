"""Groups of options that several commands share, each declared once.

A command takes a group as one parameter, annotated with its dataclass; `grouped` puts the options in its place.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

from depthscope.cli import options

if TYPE_CHECKING:
    from depthscope.models.model import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """How a model's weights are loaded."""

    dtype: options.Dtype = options.DEFAULT_DTYPE
    device: options.Device = "auto"
    revision: options.Revision = None
    stream: options.Stream = "auto"
    unused_tensors: options.UnusedTensors = "refuse"
    device_map: options.DeviceMap = None
    quantize: options.Quantize = None

    def check(self, name: str) -> None:
        """Raise DepthscopeError for a value that is invalid for every model. Imports no torch."""
        options.check_loading(name, **asdict(self))

    def load(self, name: str, *, verify: bool = True) -> "Model":
        """Load the model of a command, as `options.load_quietly`."""
        return options.load_quietly(name, **asdict(self), verify=verify)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading(Weights):
    """The same where an adapter can be applied."""

    adapter: options.Adapter = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How documents become tokens and windows."""

    special_tokens: options.SpecialTokens = "text"
    chat: options.Chat = False
    pack: options.Pack = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling(Reading):
    """The same where intervals are over documents."""

    cluster: options.Cluster = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where work units are computed."""

    engine: options.Engine = "local"
    address: options.Address = None
    replicas: options.Replicas = None
    cpus_per_replica: options.CpusPerReplica = None
    gpus_per_replica: options.GpusPerReplica = None

    def check(self) -> None:
        """Raise DepthscopeError for invalid values, and where the engine is not installed. Imports no torch."""
        from depthscope.run.cluster import cluster_of

        cluster_of(**asdict(self))


def changed(group: Any) -> dict[str, Any]:
    """The options of a group that differ from their defaults, by name."""
    usual = asdict(type(group)())
    return {name: value for name, value in asdict(group).items() if value != usual[name]}


def group_parameters(group: type) -> list[inspect.Parameter]:
    """The options of a group."""
    return list(inspect.signature(group).parameters.values())


def gathered(group: type, given: dict[str, Any]) -> Any:
    """The group with its values, which are taken out of `given`."""
    return group(**{field.name: given.pop(field.name) for field in fields(group)})


def with_parameters(command: Callable[..., None], parameters: Sequence[inspect.Parameter]) -> None:
    """Give a wrapper these parameters instead of those of what it wraps, for typer."""
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del command.__wrapped__  # type: ignore[attr-defined]


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of a group in the place of each parameter that is one."""
    own = inspect.signature(command).parameters.values()
    groups = {
        one.name: one.annotation for one in own if isinstance(one.annotation, type) and is_dataclass(one.annotation)
    }

    @wraps(command)
    def with_options(**given: Any) -> None:
        command(**{name: gathered(group, given) for name, group in groups.items()}, **given)

    parameters = [part for one in own for part in (group_parameters(groups[one.name]) if one.name in groups else [one])]
    with_parameters(with_options, parameters)
    return with_options

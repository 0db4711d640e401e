"""What a study asks of a Ray cluster. Imports neither Ray nor torch; the runner is `run.ray_runner`."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from depthscope.errors import DepthscopeError
from depthscope.printable import shown

LOCAL, RAY = "local", "ray"
ENGINES = (LOCAL, RAY)
MOST_REPLICAS, MOST_PER_REPLICA = 4096, 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Replicas of a model on a Ray cluster: processes that load it once and compute work units. Checked when it is created."""

    address: str | None = None
    """Of a running cluster (HOST:PORT, or `auto` on one of its machines); None starts Ray on this machine for the study."""
    replicas: int | None = None
    """None: as many as the cluster has room for."""
    cpus_per_replica: int | None = None
    """Cores that each reserves, and threads that it computes with. None: as many as this process computes with, or fewer so
    that a given number of replicas fits on this machine."""
    gpus_per_replica: float | None = None
    """GPUs, or the share of one, that each reserves. None: 1 if the model is on CUDA, else 0."""

    def __post_init__(self) -> None:
        for name, least, most, whole in (
            ("replicas", 1, MOST_REPLICAS, True),
            ("cpus_per_replica", 1, MOST_PER_REPLICA, True),
            ("gpus_per_replica", 0, MOST_PER_REPLICA, False),
        ):
            _check_number(name, getattr(self, name), least, most, whole)
        if self.address is not None and not (isinstance(self.address, str) and self.address.strip()):
            raise DepthscopeError(f"address is {shown(self.address)}: expected auto or HOST:PORT of a Ray cluster")


def cluster_of(engine: str, **asked: Any) -> Cluster | None:
    """The cluster of an engine: None for `local`. Raises DepthscopeError for invalid values, and where Ray is not installed.

    `asked` are fields of Cluster, which only `ray` has.
    """
    if engine not in ENGINES:
        raise DepthscopeError(f"unknown engine {shown(engine)}: expected one of {', '.join(ENGINES)}")
    if engine == LOCAL:
        if given := [f"--{name.replace('_', '-')}" for name, value in asked.items() if value is not None]:
            raise DepthscopeError(f"{' and '.join(given)}: expected only with --engine ray")
        return None
    if any(find_spec(name) is None for name in ("ray", "cloudpickle")):
        raise DepthscopeError("--engine ray needs Ray, which is not installed: pip install 'depthscope[cluster]'")
    return Cluster(**asked)


def _check_number(name: str, value: Any, least: int, most: int, whole: bool) -> None:
    if value is None:
        return
    kinds = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        kind = "whole number" if whole else "number"
        raise DepthscopeError(f"{name} is {shown(value)}: expected a {kind} from {least} to {most:,}")
    if value > 1 and value != int(value):
        raise DepthscopeError(f"{name} is {shown(value)}: expected a whole number, or a share below 1")

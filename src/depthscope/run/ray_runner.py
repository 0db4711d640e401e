"""Work units computed by replicas on a Ray cluster. The only module that imports Ray.

Ray starts the replicas, places them on machines, and starts them again, elsewhere if need be, when a process or a machine dies.
Here: which unit goes to which replica, and that a unit whose replica died goes to another, MOST_TRIES times at most.

Whoever can connect to a Ray cluster can run code on it (CVE-2023-48022). A Ray that is started here has no dashboard, listens
on 127.0.0.1 only and asks for a token; it reports nothing to its makers. A cluster at an address is its owner's to protect.
"""

import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

import polars as pl

from depthscope.errors import DepthscopeError, RunError
from depthscope.printable import first_line
from depthscope.run.cluster import RAY, Cluster
from depthscope.run.units import Done

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read when Ray is imported

import ray
from ray import exceptions

MOST_TRIES = 4
"""How often a unit is computed, and a replica started, when its process ends each time."""
STARTS = 3
"""How often Ray starts a replica again that died while it was being built."""
PAUSE = 0.5
"""Seconds before a replica that Ray is starting again is asked again."""
PATIENCE = 60.0
"""Seconds without any replica after which it is said that there is none."""
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's setting, read on every system: 0 makes a new Ray use 127.0.0.1, as it does by itself on Windows and macOS."""


class Performs(Protocol):
    """What replicas are built into."""

    @property
    def processor(self) -> str:
        """Features of the processor that decide how sums are rounded."""
        ...

    def perform(self, task: Any) -> Done:
        """The shards of a task."""
        ...


Build = Callable[[], Performs]


class _Replica:
    """An actor: builds what performs tasks once per process, and performs them.

    `held` contains a reference to what builds it. Not an argument of __init__: what is raised there ends the actor for good.
    """

    def __init__(self) -> None:
        self._built: Performs | None = None

    def start(self, held: list[Any]) -> str:
        """Build it and report the processor."""
        return self._performing(held).processor

    def perform(self, held: list[Any], task: Any) -> Done:
        """Perform a task."""
        return self._performing(held).perform(task)

    def _performing(self, held: list[Any]) -> Performs:
        if self._built is None:
            build: Any = ray.get(held[0])
            self._built = build()
        assert self._built is not None
        return self._built


@dataclass(slots=True)
class _Job:
    """A unit's task, and how often it was given to a replica."""

    unit: int
    task: Any
    tries: int = 0


class RayRunner:
    """Computes units on replicas, in a `with` statement. A Runner.

    `build(cpus)` is what replicas with that many threads are built from; `threads` are those of this process, `units` how many
    there are to compute at most: more replicas are not started. Ray is connected to or started with the first unit. Submitting
    raises RunError for a cluster that cannot be reached or has no room for a replica.
    """

    def __init__(
        self, cluster: Cluster, build: Callable[[int], Build], *, cuda: bool, threads: int, units: int
    ) -> None:
        self.halved = 0
        self._cluster, self._build, self._units = cluster, build, units
        self._cpus, self._gpus = _share(cluster, threads, cuda)
        self._ray = ExitStack()
        self._actors: list[Any] = []
        self._held: list[Any] = []
        """The reference to what replicas are built from: without it Ray deletes the object."""
        self._processors: set[str] = set()
        self._waiting: deque[_Job] = deque()
        self._idle: list[Any] = []
        self._under_way: dict[Any, tuple[Any, _Job | None]] = {}
        self._failed_starts = self._refused = 0

    def __enter__(self) -> "RayRunner":
        return self

    def __exit__(self, *raised: object) -> None:
        self._ray.close()

    def __str__(self) -> str:
        """Where units were computed, for run.json."""
        if not self._actors:
            return RAY
        share = f" and {self._gpus:g} GPUs" if self._gpus else ""
        on = f", {' and '.join(sorted(self._processors))}" if self._processors else ""
        return f"{RAY}: replicas {len(self._actors)}, each with {self._cpus} threads{share}{on}"

    @property
    def room(self) -> int:
        """Two units for each replica: one that it computes, one that is ready when it is done."""
        jobs = sum(job is not None for _, job in self._under_way.values())
        return self._most - jobs - len(self._waiting)

    def ahead(self, in_order: bool) -> int | None:
        """As many units as can be submitted, where results wait for earlier ones; otherwise all."""
        return self._most if in_order else None

    @property
    def _most(self) -> int:
        return 2 * len(self._actors) or 1

    def submit(self, unit: int, task: Any) -> None:
        """Give a unit to an idle replica, or keep it until one is."""
        if not self._actors:
            self._begin()
        self._waiting.append(_Job(unit, task))
        self._assign()

    def next(self) -> tuple[int, Mapping[str, pl.DataFrame]]:
        """The next unit that is done. Raises what a replica raised, and RunError if a unit ends its process MOST_TRIES times
        or no replica can be started."""
        while True:
            self._assign()
            for reference in self._wait():
                replica, job = self._under_way.pop(reference)
                try:
                    result: Any = ray.get(reference)
                except exceptions.RayTaskError as error:
                    raise _raised(error) from None
                except exceptions.RayError as error:
                    self._lost(replica, job, error)
                    continue
                self._idle.append(replica)
                if job is None:
                    self._processors.add(result)
                    self._failed_starts = self._refused = 0
                    continue
                self._assign()
                self.halved += result.halved
                return job.unit, result.shards

    def _begin(self) -> None:
        self._ray.enter_context(_connected(self._cluster.address))
        replicas = min(self._units, _replicas(self._cluster, self._cpus, self._gpus))
        remote: Any = ray.remote(_Replica)  # its attributes are made at run time
        actor = remote.options(max_restarts=-1, max_task_retries=0, num_cpus=self._cpus, num_gpus=self._gpus)
        self._held = [ray.put(self._build(self._cpus))]
        self._ray.callback(self._end)
        for _ in range(replicas):
            replica = actor.remote()
            self._actors.append(replica)
            self._start(replica)

    def _end(self) -> None:
        for replica in self._actors:
            with suppress(exceptions.RayError):
                ray.kill(replica, no_restart=True)

    def _start(self, replica: Any) -> None:
        self._under_way[replica.start.options(max_task_retries=STARTS).remote(self._held)] = (replica, None)

    def _assign(self) -> None:
        while self._waiting and self._idle:
            job, replica = self._waiting.popleft(), self._idle.pop()
            job.tries += 1
            self._under_way[replica.perform.remote(self._held, job.task)] = (replica, job)

    def _wait(self) -> list[Any]:
        """At least one result; says so while no replica is there to work for one."""
        while True:
            ready, _ = ray.wait(list(self._under_way), timeout=PATIENCE)
            if ready:
                return ready
            if all(job is None for _, job in self._under_way.values()):
                warnings.warn(
                    f"no replica has started for {PATIENCE:.0f} s: the cluster has {_named(ray.available_resources())} to "
                    "spare (`ray status` shows what it waits for)",
                    stacklevel=2,
                )

    def _lost(self, replica: Any, job: _Job | None, error: Exception) -> None:
        """A replica's process or machine died: its unit goes to the next idle replica, and Ray starts it again."""
        if isinstance(error, exceptions.ActorUnavailableError) and job is None:
            # Ray is starting the process again; a call during that time fails at once.
            self._refused += 1
            if self._refused * PAUSE > PATIENCE:
                raise RunError(
                    f"a replica has not come back for {PATIENCE:.0f} s ({_reason(error)}). What was finished before is kept: "
                    "give the same command again"
                ) from error
            time.sleep(PAUSE)
        elif job is None:
            self._failed_starts += 1
            if self._failed_starts >= MOST_TRIES:
                raise RunError(
                    f"replicas ended {MOST_TRIES * (STARTS + 1)} times before they were ready ({_reason(error)}). What was "
                    "finished before is kept. Is there memory for the model in each of them? Use fewer --replicas"
                ) from error
        else:
            if job.tries >= MOST_TRIES:
                raise RunError(
                    f"work unit {job.unit} was given to {MOST_TRIES} replicas, and each of their processes ended "
                    f"({_reason(error)}). What was finished before is kept. If memory was short, use fewer --replicas or a "
                    "shorter --window, and give the same command again"
                ) from error
            self._waiting.appendleft(job)
        self._start(replica)


def _share(cluster: Cluster, threads: int, cuda: bool) -> tuple[int, float]:
    """CPUs and GPUs of each replica."""
    cpus = cluster.cpus_per_replica or threads
    if cluster.cpus_per_replica is None and cluster.address is None and cluster.replicas:
        cpus = max(1, min(threads, (os.cpu_count() or 1) // cluster.replicas))
    return cpus, float(cuda) if cluster.gpus_per_replica is None else cluster.gpus_per_replica


def _replicas(cluster: Cluster, cpus: int, gpus: float) -> int:
    """How many replicas to start. Raises RunError if this machine has no room for those requested, or the cluster for none."""
    room = sum(_fitting(node["Resources"], cpus, gpus) for node in ray.nodes() if node["Alive"])
    needed = f"{cpus} CPUs and {gpus:g} GPUs" if gpus else f"{cpus} CPUs"
    if cluster.address is None and room < (cluster.replicas or 1):
        raise RunError(
            f"{cluster.replicas or 1} replicas with {needed} each do not fit on this machine, which has "
            f"{_named(ray.cluster_resources())}: expected at most {room}. Use fewer --replicas, or less for each"
        )
    if not (cluster.replicas or room):
        raise RunError(
            f"no machine of the cluster has room for a replica with {needed}: give --replicas to wait for machines that the "
            "cluster may add, or ask less for each"
        )
    return cluster.replicas or room


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Connected to a cluster: that at `address`, the one this process uses already, or a new one on this machine."""
    if ray.is_initialized():
        own = ray.get_runtime_context().gcs_address
        if address not in (None, "auto", own):
            raise RunError(
                f"this process is connected to the Ray cluster {own}, not to {address}: leave the address out, or call "
                "ray.shutdown() before"
            )
        yield
        return
    settings: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    handlers = _handlers()
    try:
        if address is None:
            with _on_loopback():
                ray.init(address="local", include_dashboard=False, **settings)
        else:
            ray.init(address=address, **settings)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        with suppress(Exception):
            ray.shutdown()
        where = (
            "Ray cannot be started on this machine" if address is None else f"the Ray cluster {address} cannot be used"
        )
        raise RunError(f"{where}: {first_line(error)}. Expected auto or HOST:PORT of a running cluster") from error
    finally:
        _restore(handlers)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _on_loopback() -> Iterator[None]:
    """While open, a Ray that is started uses 127.0.0.1, which Ray offers no argument for."""
    from ray._private import ray_constants

    before, environment = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(LOOPBACK)
    ray_constants.ENABLE_RAY_CLUSTER = False
    os.environ[LOOPBACK] = "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        os.environ.pop(LOOPBACK)
        if environment is not None:
            os.environ[LOOPBACK] = environment


def _handlers() -> dict[int, Any]:
    """What handles the signals that Ray would handle in its own way."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}


def _restore(handlers: Mapping[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _raised(error: exceptions.RayTaskError) -> Exception:
    """What a replica raised, as it would have been raised here."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, DepthscopeError):
        return cause
    return cause if isinstance(cause, Exception) and not isinstance(cause, exceptions.RayError) else error


def _fitting(resources: Mapping[str, float], cpus: int, gpus: float) -> int:
    """How many replicas fit on a node."""
    of_cpus = int(resources.get("CPU", 0) // cpus)
    if not gpus:
        return of_cpus
    there = resources.get("GPU", 0)
    return min(of_cpus, int(there) * int(1 / gpus) if gpus < 1 else int(there // gpus))


def _named(resources: Mapping[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"[:300]

"""A replica of a study's model in another process: loaded again from its files, and used only if it is the same.

Tables are the same bytes wherever their units were computed if the replica's weights, package versions, number of threads,
processor features and forms of the sums are those of the study's own process. All of these but the processor's are required
here, whose features are reported.
"""

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from depthscope.allocator import keep_freed
from depthscope.engine.reductions import Reductions
from depthscope.errors import ModelError, RunError
from depthscope.models.load import load
from depthscope.models.memory import memory_errors
from depthscope.models.model import Model
from depthscope.run.units import Done
from depthscope.studies.detached import attached
from depthscope.studies.provenance import chosen_form, kernels, versions
from depthscope.studies.unit_work import OwnTask, SharedTask, Work

REDUCE = "Use fewer --replicas, more --gpus-per-replica, a shorter --window or --dtype bfloat16"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """What a replica is built from, and what it must be. Called in the replica's process."""

    source: Mapping[str, Any]
    """Arguments of `load`."""
    experiments: bytes
    """Detached from the study's model."""
    logits: float
    """How many logits the study reduces, which decides the form of the sums."""
    threads: int
    expected: Mapping[str, Any]
    """`facts` of the study's model."""

    def __call__(self) -> "Replica":
        """Load and check the model. Raises what loading raises, and RunError, with what differs, if it is another model."""
        keep_freed()
        torch.set_num_threads(self.threads)
        threadpool_limits(limits=self.threads)
        with memory_errors("load a replica of the model", REDUCE):
            model = load(**self.source)
        form, because = chosen_form(model, self.logits)
        found, wanted = facts(model, form, because), self.expected
        differing = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
        if differing:
            lines = "".join(
                f"\n  {name}: {wanted.get(name)} in the study, {found.get(name)} there" for name in differing
            )
            raise RunError(
                f"a replica on {socket.gethostname()} would give other numbers:{lines}\nExpected the same model files and "
                f"packages on every machine, and memory for each replica"
            )
        return Replica(Work(model, attached(self.experiments, model), form))


class Replica:
    """Performs tasks in its own process."""

    def __init__(self, work: Work) -> None:
        self._work = work

    @property
    def processor(self) -> str:
        """The features of the processor, or the name of the GPU, which decide how sums are rounded."""
        return processor(self._work.model)

    def perform(self, task: SharedTask | OwnTask) -> Done:
        """As `Work.perform`. Raises MemoryShortError if there is too little memory for even the smallest piece."""
        with memory_errors("measure in a replica", REDUCE):
            return self._work.perform(task)


def blueprint(
    model: Model, logits: float, threads: int, experiments: bytes, chosen: tuple[Reductions, str]
) -> Callable[[], Replica]:
    """What replicas of a model are built from. Raises ModelError as `require_loadable` does."""
    return Blueprint(
        source=require_loadable(model),
        experiments=experiments,
        logits=logits,
        threads=threads,
        expected=facts(model, *chosen),
    )


def require_loadable(model: Model) -> Mapping[str, Any]:
    """Arguments of `load` that give the model in another process. Raises ModelError for one that was handed in as an object."""
    if model.source is None:
        raise ModelError(
            f"{model.name} was handed in as an object, which other processes cannot load: save it with save_pretrained and "
            "give the folder, or measure without engine='ray'"
        )
    return model.source


def facts(model: Model, form: Reductions, because: str) -> dict[str, Any]:
    """What two processes must agree in to give the same numbers."""
    identity = {name: value for name, value in model.identity().items() if name != "configuration"}
    return {
        "weights": model.weight_hash(),
        **{f"configuration.{name}": value for name, value in model.identity()["configuration"].items()},
        **identity,
        "adapter": None if model.adapter is None else model.adapter.sha256,
        "dtype": model.facts.dtype,
        "device": model.device.type,
        "attention_backend": model.facts.attention_backend,
        **versions(),
        **kernels(model, form, because),
    }


def processor(model: Model) -> str:
    """The features of a CPU that torch computes with, such as AVX512; on CUDA the GPU's name."""
    if model.device.type == "cuda":
        return torch.cuda.get_device_name(model.device)
    return torch.backends.cpu.get_cpu_capability()

"""Experiments as bytes without their model, to be put together with another copy of it in another process.

An experiment holds its model and parts of it: modules, weights, the unembedding. None of these is written, only which part it
is; the copy's own takes its place. Everything else is written: prepared lenses and maps, and what was found out about the model
(COMPUTED), so that a copy does not find it again under other circumstances. Bytes like these are pickles, which run code when
they are read: they pass between a study and its own replicas, and never lie in a file.
"""

import io
import pickle
from collections.abc import Iterator, Sequence
from typing import Any

import cloudpickle
from torch import Tensor

from depthscope.errors import DepthscopeError
from depthscope.experiments.experiment import OwnUnits, Reading
from depthscope.models.model import Model

HELD = ("stack", "unembedding", "kernels")
"""Attributes of a model that experiments may hold by themselves; each copy has its own."""
COMPUTED = ("components", "writers", "shares_components", "inside")
"""Cached attributes of a model that are the same for each copy, such as what mean ablation puts in a neuron's place."""


def detached(experiments: Sequence[Reading | OwnUnits], model: Model) -> bytes:
    """The experiments without the model. Raises DepthscopeError for one that cannot be sent to another process."""
    stream = io.BytesIO()
    for experiment in experiments:  # one by one first, so that the message can name it
        try:
            _Writer(io.BytesIO(), model).dump(experiment)
        except Exception as error:
            raise DepthscopeError(
                f"the experiment {experiment.name} cannot be sent to another process ({type(error).__name__}: {error}): leave "
                "it out, or measure without --engine ray"
            ) from error
    computed = {name: vars(model)[name] for name in COMPUTED if name in vars(model)}
    _Writer(stream, model).dump((computed, list(experiments)))
    return stream.getvalue()


def attached(content: bytes, model: Model) -> list[Reading | OwnUnits]:
    """The experiments, with `model` in the place of the one they were detached from; what is COMPUTED is put into it."""
    computed, experiments = _Reader(io.BytesIO(content), model).load()
    vars(model).update(computed)
    return experiments


def _parts(model: Model) -> Iterator[tuple[str, Any]]:
    """The parts of a model that can be held by themselves, by name."""
    yield "model", model
    yield from ((name, getattr(model, name)) for name in HELD)
    yield from ((f"module {name}", module) for name, module in model.hf.named_modules())
    yield from ((f"weight {name}", weight) for name, weight in model.hf.named_parameters())
    yield from ((f"buffer {name}", buffer) for name, buffer in model.hf.named_buffers())


class _Writer(cloudpickle.Pickler):
    def __init__(self, stream: io.BytesIO, model: Model) -> None:
        super().__init__(stream)
        self._model = model
        self._names = {id(part): name for name, part in _parts(model)}

    def persistent_id(self, obj: Any) -> str | None:
        return self._names.get(id(obj))

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Tensor) and obj.device.type == "cuda":  # the replica's device may have another number
            return _on_device, (self._model, obj.detach().cpu())
        return super().reducer_override(obj)


class _Reader(pickle.Unpickler):
    def __init__(self, stream: io.BytesIO, model: Model) -> None:
        super().__init__(stream)
        self._parts = dict(_parts(model))

    def persistent_load(self, pid: str) -> Any:
        return self._parts[pid]


def _on_device(model: Model, tensor: Tensor) -> Tensor:
    return tensor.to(model.device)

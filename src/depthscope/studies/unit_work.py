"""The work of a unit, as a task that can be computed in any process with the same model and experiments."""

from collections.abc import Iterable
from dataclasses import dataclass

from depthscope.data.windows import Windows
from depthscope.engine.reductions import Reductions
from depthscope.experiments.experiment import Halving, OwnUnits, Reading
from depthscope.models.model import Model
from depthscope.run.units import Done
from depthscope.studies.read_windows import read_windows


@dataclass(frozen=True, slots=True)
class SharedTask:
    """Windows that readings, by name, take their shards from in one run of the model."""

    readings: tuple[str, ...]
    windows: Windows


@dataclass(frozen=True, slots=True)
class OwnTask:
    """A unit of an experiment with own units."""

    experiment: str
    unit: int


class Work:
    """Performs tasks: a model, the experiments made for it, and the form of the passes over the vocabulary."""

    def __init__(self, model: Model, experiments: Iterable[Reading | OwnUnits], form: Reductions) -> None:
        self.model, self.form = model, form
        self._readings = {one.name: one for one in experiments if isinstance(one, Reading)}
        self._others = {one.name: one for one in experiments if isinstance(one, OwnUnits)}

    def perform(self, task: SharedTask | OwnTask) -> Done:
        """The shards of a task. Raises whatever measuring raises."""
        if isinstance(task, OwnTask):
            with self.model.measuring():
                return Done({task.experiment: self._others[task.experiment].work(task.unit)})
        before = self._halved()
        readings = [self._readings[name] for name in task.readings]
        shards = read_windows(self.model, readings, task.windows, self.form)
        return Done(shards, self._halved() - before)

    def _halved(self) -> int:
        return sum(reading.halved for reading in self._readings.values() if isinstance(reading, Halving))

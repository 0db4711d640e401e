"""The subject of a study: model, text and settings, and the text as the work units in which it is read."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import polars as pl

from depthscope.data.corpus import Corpus
from depthscope.data.windows import make_windows
from depthscope.engine.sizes import sizes_for
from depthscope.experiments.experiment import Subject
from depthscope.models.model import Model
from depthscope.run.by_document import by_document
from depthscope.run.units import Unit, units_between, work_units
from depthscope.studies import precision
from depthscope.studies.settings import StudySettings

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, units done, total units). While documents are read, the total is a lower bound."""


@dataclass(frozen=True, slots=True)
class Studied(Subject):
    """The subject of a study, with all its settings."""

    settings: StudySettings

    @property
    def aimed(self) -> bool:
        """Whether there is a goal of precision."""
        return self.settings.precision is not None

    @property
    def order(self) -> precision.ReadingOrder:
        """The order in which the shared pass reads the text: as it is, unless there is a precision goal."""
        return precision.ReadingOrder.of(self.windows) if self.aimed else precision.ReadingOrder(self.windows, [])

    @property
    def windows_per_unit(self) -> int:
        """At most."""
        tokens = (
            self.settings.unit_tokens or sizes_for(self.model.device, self.model.unembedding.weight.shape[1]).tokens
        )
        return max(1, tokens // self.windows.length)

    def units(self, order: precision.ReadingOrder) -> list[Unit]:
        """The work units of the shared pass; with a precision goal none goes past a look."""
        if self.aimed:
            return units_between(order.looks, self.windows_per_unit)
        return work_units(len(self.windows), self.windows_per_unit)

    def document_by_document(self, read: Callable[[], Iterable[pl.DataFrame]], units: int) -> Iterable[pl.DataFrame]:
        """The first `units` shards of the shared pass, sums over documents, with each document's rows together."""
        if not self.aimed:
            return read()
        order = self.order
        windows = order.windows.part(0, self.units(order)[units - 1].stop)
        return by_document(read, np.unique(windows.document).tolist())


def studied(model: Model, corpus: Corpus, settings: StudySettings, tell: Progress) -> Studied:
    """The subject of a study, its text read: with a precision goal, the largest amount that may be."""
    read = corpus if settings.precision is None else precision.longest_text(corpus)
    windows = make_windows(read, model, length=settings.window, bos=settings.bos, tell=tell)
    return Studied(model, corpus, windows, settings.bos, settings.options, settings)

"""The experiments by name, and how each is made for a model and a text."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from depthscope.data.corpus import Corpus
from depthscope.data.windows import Windows
from depthscope.errors import DepthscopeError
from depthscope.experiments import (
    attention,
    geometry,
    heads,
    influence,
    lens,
    neurons,
    norms,
    probes,
    similarity,
    sweep,
)
from depthscope.experiments.experiment import Experiment, OwnUnits, Reading
from depthscope.models.model import Model
from depthscope.studies.settings import StudySettings, experiment_names


@dataclass(frozen=True, slots=True)
class Subject:
    """What a study is about."""

    model: Model
    corpus: Corpus
    windows: Windows
    settings: StudySettings


def _sweep(subject: Subject) -> Experiment:
    kinds, _ = sweep.possible_edits(subject.settings.edits, subject.model)
    return sweep.Sweep(subject.model, subject.windows.length, kinds, subject.settings.per_token)


EXPERIMENTS: Mapping[str, Callable[[Subject], Experiment]] = {
    sweep.NAME: _sweep,
    lens.NAME: lambda s: lens.Lens(s.model, s.settings.protocol),
    norms.NAME: lambda s: norms.Norms(s.model),
    attention.NAME: lambda s: attention.Attention(s.model, s.windows.length, s.settings.protocol),
    similarity.NAME: lambda s: similarity.Similarity(s.model),
    influence.NAME: lambda s: influence.Influence(s.model),
    geometry.NAME: lambda s: geometry.Geometry(s.model, s.windows),
    neurons.NAME: lambda s: neurons.Neurons(s.model),
    heads.NAME: lambda s: heads.Heads(s.model, s.corpus, bos=s.settings.bos),
    probes.NAME: lambda s: probes.Probes(s.model, s.corpus, suffix=s.settings.suffix),
}


def make_experiments(subject: Subject) -> tuple[list[Reading], list[OwnUnits], dict[str, str]]:
    """The experiments of a study, readings apart from those with units of their own, and why others cannot be done.

    Raises the reason when it is the only experiment asked for.
    """
    readings, others, not_done = [], [], {}
    names = experiment_names(subject.settings.experiments)
    for name in (name for name in names if name in EXPERIMENTS):
        try:
            made = EXPERIMENTS[name](subject)
        except DepthscopeError as error:
            if len(names) == 1:
                raise
            not_done[name] = str(error)
            continue
        not_done |= made.refused if isinstance(made, sweep.Sweep) else {}
        (readings if isinstance(made, Reading) else others).append(made)
    if sweep.NAME in names and sweep.NAME not in not_done:
        not_done |= sweep.possible_edits(subject.settings.edits, subject.model)[1]
    return readings, others, not_done

"""The measuring commands: `study`, and one per experiment, derived from its declaration."""

import inspect
from collections.abc import Callable
from typing import Any

from depthscope.cli import lens, neurons, painters, series
from depthscope.cli.request import Request, measuring, run_and_show
from depthscope.schema.experiments import EXPERIMENTS, command_members
from depthscope.studies.settings import command_options, study_options

SINGLE: dict[str, Callable[..., bool]] = {
    "lens": lens.one_prompt,
    "neurons": neurons.one_neuron,
    "sweep": painters.painters_edits,
}
"""Extra modes of some commands, with their own options. Each returns whether its mode was requested, in which case it ran."""


def study_command() -> Callable[..., None]:
    """`depthscope study`."""

    def command(request: Request, **own: Any) -> None:
        """Study a model: run all experiments, find the stages, write tables and page, print a summary.

        You can stop it at any time: the same command resumes it and produces the same tables. --revisions and --recipe study
        several models in one directory.
        """
        if not series.several(request, **own):
            run_and_show(request)

    command.__signature__ = inspect.signature(series.several)  # type: ignore[attr-defined]
    return measuring(list(study_options().values()), command)


def experiment_command(name: str) -> Callable[..., None]:
    """The command of an experiment, which also runs the experiments declared to share the command."""
    members = command_members(name)
    single = SINGLE.get(name, _nothing_else)

    def command(request: Request, **own: Any) -> None:
        if not single(request, **own):
            run_and_show(request, members)

    command.__signature__ = inspect.signature(single)  # type: ignore[attr-defined]
    command.__doc__ = "\n\n".join(filter(None, (EXPERIMENTS[name].question, inspect.getdoc(single))))
    return measuring(list(command_options(name).values()), command)


def _nothing_else(request: Request) -> bool:
    return False

"""The experiments in the order they run, one line each. Their declarations are next to their tables."""

from collections.abc import Sequence

from depthscope.errors import DepthscopeError
from depthscope.schema import (
    ablation,
    attention,
    class_tables,
    dependency,
    depth_probes,
    depth_regime,
    dimension,
    effective_depth,
    entropy_neurons,
    guess_refine,
    heads,
    layer_maps,
    lens,
    linearity,
    massive,
    neurons,
    norms,
    painters,
    patching,
    probes,
    prune,
    similarity,
    sinks,
    sweep,
)
from depthscope.schema.declaration import Experiment, Option, Registry

STAGES = "stages"
"""Stages are found from what the experiments measured, in this command or an earlier one on the same run."""

DEEP = "deep"
"""As a name in `--experiments`: all experiments declared so."""

TAKEN = (
    STAGES,
    DEEP,
    "study",
    "explore",
    "report",
    "compare",
    "check",
    "info",
    "tune",
    "verify",
    "eval",
    "eval_text",
    "prune",
    "generate",
    "export",
    "heal",
)
"""Names that no experiment can have: its command would replace another."""

EXPERIMENTS: Registry[Experiment] = Registry(
    "an experiment",
    *(
        (one.name, one)
        for one in (
            sweep.EXPERIMENT,
            lens.EXPERIMENT,
            norms.EXPERIMENT,
            attention.EXPERIMENT,
            similarity.EXPERIMENT,
            similarity.INFLUENCE,
            similarity.GEOMETRY,
            neurons.EXPERIMENT,
            heads.EXPERIMENT,
            probes.EXPERIMENT,
            layer_maps.EXPERIMENT,
            painters.EXPERIMENT,
            dependency.EXPERIMENT,
            class_tables.SWEEP_CLASSES,
            class_tables.LENS_CLASSES,
            class_tables.MAP_CLASSES,
            dimension.DIMENSION,
            dimension.TRAJECTORY,
            ablation.HEAD_ABLATION,
            ablation.NEURON_ABLATION,
            sinks.EXPERIMENT,
            massive.EXPERIMENT,
            linearity.EXPERIMENT,
            effective_depth.EXPERIMENT,
            guess_refine.EXPERIMENT,
            depth_probes.EXPERIMENT,
            patching.EXPERIMENT,
            depth_regime.EXPERIMENT,
            entropy_neurons.EXPERIMENT,
        )
    ),
)


SEPARATE = {prune.NAME: prune.EXPERIMENT}
"""Experiments that a study does not run: each has a command of its own, and a run directory as a study has."""


def declared_experiments() -> dict[str, Experiment]:
    """All experiments by name, those of a study first."""
    return {**EXPERIMENTS, **SEPARATE}


def register_experiment(experiment: Experiment) -> Experiment:
    """Add a custom experiment to studies, commands and pages; one registered earlier under the same name is replaced.

    Raises DepthscopeError for the name of a built-in experiment or of a command, for an option that differs from another
    experiment's option of the same name, or for a table that another experiment writes.
    """
    if experiment.name in TAKEN:
        raise DepthscopeError(f"the name {experiment.name} is taken: register yours under another name")
    others = [one for one in EXPERIMENTS.values() if one.name != experiment.name]
    known = {option.name: option for one in others for option in one.options}
    for option in experiment.options:
        if known.get(option.name, option) != option:
            raise DepthscopeError(f"a different option {option.name} already exists: give yours another name")
    for other in (*others, *SEPARATE.values()):
        if shared := experiment.tables.keys() & other.tables.keys():
            raise DepthscopeError(f"{other.name} already writes the table {min(shared)}: give yours another name")
    return EXPERIMENTS.register(experiment.name, experiment)


def unregister_experiment(name: str) -> None:
    """Remove a registered experiment. Raises DepthscopeError if there is none of that name."""
    EXPERIMENTS.unregister(name)


def experiment_names(names: Sequence[str] = ()) -> tuple[str, ...]:
    """The names, each once and in running order; if none is given, those that a study runs by default.

    `deep` stands for all experiments declared so. Raises DepthscopeError for an unknown name.
    """
    there = (*EXPERIMENTS, STAGES)
    if unknown := [name for name in names if name not in (*there, DEEP)]:
        raise DepthscopeError(f"unknown experiment {', '.join(unknown)}: expected some of {', '.join((*there, DEEP))}")
    asked = set(names) or {name for name in there if name not in on_request()}
    if DEEP in names:
        asked |= {name for name, one in EXPERIMENTS.items() if one.deep}
    return tuple(name for name in there if name in asked)


def on_request() -> tuple[str, ...]:
    """The names of the experiments that a study runs only where they are asked for."""
    return tuple(name for name, one in EXPERIMENTS.items() if not one.in_study)


def command_members(command: str) -> tuple[str, ...]:
    """The names of the experiments that a command runs by default."""
    together = EXPERIMENTS[command].deep
    return tuple(
        name
        for name, one in EXPERIMENTS.items()
        if one.command == command and (one.in_study or name == command or (one.deep and together))
    )


def options(names: Sequence[str] = ()) -> dict[str, Option]:
    """The options of these experiments by name, of all experiments if none is given; a shared option appears once."""
    there = experiment_names(names or [*EXPERIMENTS])
    return {option.name: option for name in there if name != STAGES for option in EXPERIMENTS[name].options}

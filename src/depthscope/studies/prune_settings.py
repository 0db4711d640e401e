"""The settings of a search for blocks to remove, checked before model and text are read. Imports no torch."""

from typing import Any

from depthscope.errors import DepthscopeError
from depthscope.schema.prune import COMPONENTS, DROP, EXPERIMENT, GOALS, METHOD, NAME, OF_BLOCKS, OF_METHODS, OF_SEARCH
from depthscope.studies.settings import BOS, WINDOW, StudySettings, settings_from

OPTIONS = (*EXPERIMENT.options, WINDOW, BOS)


def prune_settings(**given: Any) -> StudySettings:
    """The settings from keywords, with defaults for the others.

    Raises DepthscopeError for an unknown name, an invalid value, and settings that contradict each other: exactly one of keep,
    remove and drop is needed, and drop leaves nothing to search.
    """
    values = settings_from({option.name: option for option in OPTIONS}, given)
    goals = [option.name for option in GOALS if values[option.name] is not None]
    if len(goals) != 1:
        said = "none of them" if not goals else " and ".join(f"--{name}" for name in goals)
        raise DepthscopeError(f"expected one of --keep, --remove and --drop, got {said}")
    changed = {option.name for option in OF_SEARCH if values[option.name] != option.default}
    if values[DROP.name] is not None and changed:
        name = next(option.name for option in OF_SEARCH if option.name in changed)
        raise DepthscopeError(
            f"--{name} is about a search, and --drop leaves nothing to search: expected only one of them"
        )
    used = {option.name for method in values[METHOD.name] for option in OF_METHODS.get(method, ())}
    if unused := changed - used - {METHOD.name, COMPONENTS.name}:
        of = next(method for method, options in OF_METHODS.items() if unused & {option.name for option in options})
        raise DepthscopeError(
            f"--{min(unused)} is a setting of {of}, which is not among the criteria: add it to --method"
        )
    if values[COMPONENTS.name] and set(values[METHOD.name]) <= set(OF_BLOCKS):
        raise DepthscopeError(
            f"--components: {' and '.join(values[METHOD.name])} only rank whole blocks, expected another criterion in --method"
        )
    own = {option.name: values.pop(option.name) for option in (WINDOW, BOS)}
    return StudySettings(experiments=(NAME,), options=values, **own)

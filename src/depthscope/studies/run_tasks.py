"""Tasks of the lm-evaluation-harness under edits, with the same edits on a text, in one run directory."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from depthscope.data.bos import AUTO, check_bos
from depthscope.data.corpus import Corpus
from depthscope.data.tasks import check_include
from depthscope.edit_registry import Edit, as_edit, check_edits, route_of
from depthscope.errors import DepthscopeError, RouteError
from depthscope.experiments.edit_text import EditText
from depthscope.experiments.sweep import layer_edits, possible_edits, runnable
from depthscope.experiments.tasks import TaskAnswers, load_tasks
from depthscope.models.memory import MEASURING, memory_errors, require_headroom
from depthscope.models.model import Model
from depthscope.printable import shown
from depthscope.routes import Route, parse_route
from depthscope.run.store import RunDirectory
from depthscope.schema.declaration import check_text
from depthscope.schema.stored import MOST_LAYERS
from depthscope.schema.tasks import EDIT_TEXT, EVAL, MOST_EDITS, MOST_LIMIT, MOST_SHOTS, check_number, task_names
from depthscope.studies.run_study import run_experiments
from depthscope.studies.settings import StudySettings, check_window
from depthscope.studies.studied import Progress, studied

if TYPE_CHECKING:
    from depthscope.experiments.task_harness import HarnessTasks

HARNESS = "lm-eval"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRun:
    """What is asked of a model in tasks, checked and with the tasks' data sets at hand; the model is not loaded yet."""

    tasks: "HarnessTasks"
    edits: tuple[Edit | Route, ...] = ()
    routes: tuple[str, ...] = ()
    """Routes as text, which can only be read for a model's depth."""
    sweep: tuple[str, ...] = ()
    window: int | None = None
    bos: str = AUTO


def task_run(
    tasks: Any,
    edits: Any = (),
    *,
    routes: Sequence[str] = (),
    sweep: Any = (),
    limit: int | None = None,
    shots: int | None = None,
    window: int | None = None,
    bos: str = AUTO,
    include_path: str | Path | None = None,
    allow_task_code: bool = False,
) -> TaskRun:
    """The TaskRun of these settings, as `depthscope.evaluate` has them.

    Raises DepthscopeError for values that are invalid for every model, and for tasks that cannot be had.
    """
    names = task_names(tasks)
    check_number("limit", limit, 1, MOST_LIMIT)
    check_number("shots", shots, 0, MOST_SHOTS)
    kinds = _kinds(sweep)
    if kinds:
        check_edits(kinds)
    wanted = tuple(as_edit(edit) for edit in _listed(edits))
    if len(wanted) + len(routes) > MOST_EDITS:
        raise RouteError(f"expected at most {MOST_EDITS:,} edits, got more")
    for route in routes:
        check_text("a route", route)
        parse_route(route, MOST_LAYERS)
    check_bos(bos)
    if window is not None:
        check_window(window)
    if include_path is not None:
        check_include(Path(include_path), allow_task_code)
    include = None if include_path is None else str(include_path)
    loaded = load_tasks(names, limit=limit, shots=shots, include=include)
    return TaskRun(tasks=loaded, edits=wanted, routes=tuple(routes), sweep=kinds, window=window, bos=bos)


def _listed(edits: Any) -> list[Any]:
    several = isinstance(edits, Iterable) and not isinstance(edits, Route | str)
    return list(islice(edits, MOST_EDITS + 1)) if several else [edits]


def _kinds(sweep: Any) -> tuple[str, ...]:
    names = sweep.split(",") if isinstance(sweep, str) else sweep
    found = list(islice(names, MOST_EDITS)) if isinstance(names, Iterable) else [None]
    if not all(isinstance(name, str) for name in found):
        raise DepthscopeError(f"sweep is {shown(sweep)}: expected kinds of edits, such as drop")
    return tuple(str(name).strip().replace("-", "_") for name in found if str(name).strip())


def named_routes(model: Model, asked: TaskRun) -> tuple[dict[str, Route], dict[str, str]]:
    """The routes of a TaskRun by name: its edits, its routes, then its sweep; and why some of the sweep cannot be done.

    The unmodified model, which is measured anyway, is left out. Raises RouteError for a route that the model cannot run.
    """
    edits = [*asked.edits, *(parse_route(text, model.depth) for text in asked.routes)]
    routes = {edit.name: route_of(edit, model.depth) for edit in edits if edit != Edit()}
    for route in routes.values():
        model.check_route(route)
    if not asked.sweep:
        return routes, {}
    kinds, lacking = possible_edits(asked.sweep, model)
    found, refused = runnable(layer_edits(kinds, model.depth, model.components), model)
    routes |= {f"{edit.kind}({edit.layer})": edit.route for edit in found}
    return routes, {**refused, **lacking}


@memory_errors("run tasks", "Use fewer edits at a time, --stream yes or --dtype bfloat16; the same command goes on")
def run_tasks(
    model: Model, corpus: Corpus, out: str | Path, asked: TaskRun, progress: Progress | None = None
) -> RunDirectory:
    """Do the remaining work of tasks in directory `out`, then write its tables.

    On `corpus` the KL of the same edits is measured. Raises RunMismatchError if `out` was made with other settings, and
    whatever reading or measuring raises.
    """
    require_headroom("running tasks", MEASURING)
    model.kernels.forget()
    tell = progress or (lambda what, done, units: None)
    routes, not_done = named_routes(model, asked)
    settings = StudySettings(experiments=(EDIT_TEXT, EVAL), window=asked.window, bos=asked.bos)
    text = EditText(model, routes) if routes else None
    answers = TaskAnswers(model, asked.tasks, routes, text)
    subject = studied(model, corpus, settings, tell)
    readings = [] if text is None else [text]
    return run_experiments(subject, readings, [answers], not_done, out, tell, {HARNESS: version(HARNESS)})

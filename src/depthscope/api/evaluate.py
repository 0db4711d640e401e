"""Tasks of the lm-evaluation-harness on edited models."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from depthscope.api.inputs import corpus, model_of
from depthscope.api.study import Study
from depthscope.data.corpus import BOOKSHELF, Corpus
from depthscope.edit_registry import Edit
from depthscope.models.model import Model
from depthscope.routes import Route
from depthscope.run.mirror import destination
from depthscope.run.store import RunDirectory
from depthscope.studies.run_tasks import TaskRun, run_tasks, task_run
from depthscope.studies.studied import Progress


def evaluate(
    model: Model | str,
    tasks: str | Sequence[str],
    edits: Edit | Route | str | Sequence[Edit | Route | str] = (),
    *,
    sweep: str | Sequence[str] = (),
    out: str | Path | None = None,
    limit: int | None = None,
    shots: int | None = None,
    text: Corpus | str | Path | Sequence[Any] = BOOKSHELF,
    tokens: int | None = None,
    window: int | None = None,
    bos: str = "auto",
    include_path: str | Path | None = None,
    allow_task_code: bool = False,
    progress: bool | Progress = True,
) -> Study:
    """Run tasks of the lm-evaluation-harness on a model and on edited versions of it; keep the result in `out`, as `study`.

    `tasks` are names of the harness's tasks (`hellaswag`, `arc_easy`, `gsm8k`, …), or `bookshelf_last_word`,
    `bookshelf_next_sentence` and `bookshelf_write_word`, which need no network. `edits` are any of Edit, Route or text such
    as "drop(3)"; `sweep` are kinds of edits that are applied at every layer, such as "drop". `limit` is the number of
    examples of each task, `shots` how many examples precede a question. On `text` (see `corpus`) the KL of the same edits
    is measured, as much of it as `tokens` says. The same call on the same directory resumes. `include_path` is a folder
    with tasks of your own, which can run any program: `allow_task_code` says that you have read them.

    The tables are `tasks` (each metric with the harness's standard error, and its difference to the unmodified model with a
    paired 95 % interval), `task_examples`, `edit_kl` and `task_correlations`. Raises a DepthscopeError that states what was
    expected and what was found; unknown tasks and invalid values are rejected before the model is loaded. Needs the extra
    `eval`.
    """
    text = text if isinstance(text, Corpus) else corpus(text)
    text = text if tokens is None else replace(text, tokens=tokens)
    asked = task_run(
        tasks,
        edits,
        sweep=sweep,
        limit=limit,
        shots=shots,
        window=window,
        bos=bos,
        include_path=include_path,
        allow_task_code=allow_task_code,
    )
    with destination(tempfile.mkdtemp(prefix="depthscope-") if out is None else out) as directory:
        RunDirectory.check_place(directory)
        return evaluated(model_of(model), asked, text, directory, progress)


def evaluated(model: Model, asked: TaskRun, text: Corpus, out: Path, progress: bool | Progress = True) -> Study:
    """The same for settings that have been checked."""
    if progress is True:
        from depthscope.progress import progress_bar

        with progress_bar() as tell:
            return Study(run_tasks(model, text, out, asked, tell).path)
    return Study(run_tasks(model, text, out, asked, progress or None).path)

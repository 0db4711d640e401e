"""`depthscope eval`."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from depthscope.cli import options
from depthscope.cli.console import console, errors_console
from depthscope.cli.groups import Loading, grouped
from depthscope.cli.request import say_kept
from depthscope.cli.signals import status_of
from depthscope.data.bos import AUTO
from depthscope.printable import printable

if TYPE_CHECKING:
    from depthscope.api.study import Study
    from depthscope.models.model import Model

Tasks = Annotated[
    str,
    typer.Option(
        help="Tasks of the lm-evaluation-harness, separated by commas: bookshelf_last_word, bookshelf_next_sentence and "
        "bookshelf_write_word need no network; hellaswag, arc_easy, gsm8k and others download a data set."
    ),
]
Out = Annotated[str, typer.Option(metavar="DIR|URL", help=options.RUN_PLACE)]
EditText = Annotated[
    list[str] | None,
    typer.Option(
        "--edit", help="An edit such as 'drop(3) | swap(5)' or 'drop_head(4, 3)'; can be given several times."
    ),
]
RouteText = Annotated[
    list[str] | None, typer.Option("--route", help="A route such as '0-2 4 3 5-11'; can be given several times.")
]
Sweep = Annotated[
    str | None, typer.Option(help="Kinds of edits, separated by commas, to apply at every layer in turn: drop, swap, …")
]
Limit = Annotated[int | None, typer.Option(min=1, help="The first examples of each task.", show_default="all examples")]
Shots = Annotated[
    int | None, typer.Option(min=0, help="Examples before each question.", show_default="the task's own number")
]
IncludePath = Annotated[
    Path | None, typer.Option(help="A folder with tasks of your own, as YAML files of the harness.", show_default=False)
]
AllowTaskCode = Annotated[
    bool,
    typer.Option(
        "--allow-task-code",
        help="Run what the tasks of --include-path contain: their functions and templates can do anything that you can.",
    ),
]
Window = Annotated[
    int | None,
    typer.Option(help="Tokens in a window of the text for KL.", show_default="the model's context, at most 512"),
]
Bos = Annotated[str, typer.Option(help="BOS token before each window of the text: auto, none or window.")]
MOST_SHOWN = 60
"""Rows that are printed; all are in the table and on the page."""


@grouped
def command(
    model: options.ModelName = options.DEFAULT_MODEL,
    *,
    tasks: Tasks,
    out: Out,
    edit: EditText = None,
    route: RouteText = None,
    sweep: Sweep = None,
    limit: Limit = None,
    shots: Shots = None,
    data: options.Data = options.DEFAULT_DATA,
    tokens: options.Tokens = None,
    window: Window = None,
    bos: Bos = AUTO,
    include_path: IncludePath = None,
    allow_task_code: AllowTaskCode = False,
    loading: Loading,
) -> None:
    """Run tasks on a model and on edited versions of it, with paired intervals for what each edit changes.

    The lm-evaluation-harness makes the requests and computes the metrics, of given and of generated text; all edits are
    measured together. The KL of the same edits is measured on a text, to see whether it predicts what happens to the task. You
    can stop it at any time: the same command resumes it.
    """
    loading.check(model)
    options.check_place("--out", out)
    if include_path is not None:
        options.check_path("--include-path", include_path)
    settings = {
        "routes": route or (),
        "sweep": sweep or (),
        "limit": limit,
        "shots": shots,
        "window": window,
        "bos": bos,
        "include_path": include_path,
        "allow_task_code": allow_task_code,
    }
    from depthscope.run.mirror import destination

    with destination(out) as directory:
        study = _run(partial(loading.load, model), tasks, edit or (), directory, (data, tokens), settings)
        page = study.report()
        _print(study.table("tasks").to_dicts())
        console.print(f"tables {printable(study.path / 'tables')}", soft_wrap=True)
        console.print(f"page   {printable(page)}", soft_wrap=True)
    say_kept(out)


def _run(
    load: Callable[[], "Model"],
    tasks: str,
    edits: Sequence[str],
    out: Path,
    of_text: tuple[str, int | None],
    settings: dict[str, Any],
) -> "Study":
    """Measure; what is wrong in the settings, and tasks that cannot be had, are reported before the model is loaded."""
    from depthscope.data.corpus import Corpus
    from depthscope.report.page_file import require_replaceable
    from depthscope.run.layout import PAGE
    from depthscope.run.store import RunDirectory

    require_replaceable(out / PAGE)
    RunDirectory.check_place(out)
    data, tokens = of_text
    text = Corpus(source=data, tokens=tokens)
    text.check()
    options.require_room_to_import()
    from depthscope.api.evaluate import evaluated
    from depthscope.studies.run_tasks import task_run

    asked = task_run(tasks, edits, **settings)
    loaded = load()
    try:
        return evaluated(loaded, asked, text, out)
    except KeyboardInterrupt as stop:
        errors_console.print(f"stopped; the same command resumes it ({printable(out)})", soft_wrap=True)
        raise typer.Exit(status_of(stop)) from None


def _print(rows: list[dict]) -> None:
    for (task, metric), of_metric in groupby(rows[:MOST_SHOWN], itemgetter("task", "metric")):
        shown = Table(header_style="bold", box=None, pad_edge=False, title_justify="left", title_style="none")
        shown.title = printable(f"{task}, {metric}")
        shown.add_column("edit")
        for heading in ("value ± standard error", "difference [95%, paired]", "changed"):
            shown.add_column(heading, justify="right", no_wrap=True)
        for row in of_metric:
            error = "" if row["stderr"] is None else f" ± {row['stderr']:.3g}"
            bounds = "" if row["ci_low"] is None else f" [{row['ci_low']:+.3g}, {row['ci_high']:+.3g}]"
            value = "infinite" if row["value"] is None else f"{row['value']:.4g}{error}"
            difference = (
                "" if row["difference"] is None or row["edit"] == "none" else f"{row['difference']:+.3g}{bounds}"
            )
            changed = "" if row["edit"] == "none" else f"{row['changed']} of {row['examples']}"
            shown.add_row(*map(printable, (row["edit"], value, difference, changed)))
        console.print(shown)
    if len(rows) > MOST_SHOWN:
        console.print(f"and {len(rows) - MOST_SHOWN} more rows in the table tasks")

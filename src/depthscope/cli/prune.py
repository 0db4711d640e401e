"""`depthscope prune`."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from depthscope.cli import options
from depthscope.cli.console import console, errors_console
from depthscope.cli.request import Request, measuring, say_kept, slug
from depthscope.cli.signals import status_of
from depthscope.printable import printable

if TYPE_CHECKING:
    from depthscope.api.study import Study
    from depthscope.data.corpus import Corpus

NoExport = Annotated[bool, typer.Option("--no-export", help="Search and measure only; write no model.")]


def prune_command() -> Callable[..., None]:
    """`depthscope prune`."""
    from depthscope.studies.prune_settings import OPTIONS

    return measuring(OPTIONS, command)


def command(request: Request, *, no_export: NoExport = False) -> None:
    """Choose blocks to remove by the measured KL to the unmodified model, and write the model without them to OUT/model.

    Give one of --keep, --remove and --drop. Every 2nd document is held out of the search; what each criterion's set costs is
    measured there, so that you see which criterion misleads. The same command resumes a search that was interrupted.
    """
    from depthscope.run.mirror import destination
    from depthscope.studies.prune_settings import prune_settings

    request.check()
    prune_settings(**request.settings)
    text = request.text()
    text.check()
    out = request.place(slug(f"{request.model}-{request.data}-prune"))
    with destination(out) as directory:
        _prune(request, text, directory, no_export)
    say_kept(out)


def _prune(request: Request, text: "Corpus", directory: Path, no_export: bool) -> None:
    from depthscope.report.page_file import require_replaceable
    from depthscope.run.layout import PAGE
    from depthscope.run.remote import shown_place
    from depthscope.run.store import RunDirectory

    RunDirectory.check_place(directory)
    require_replaceable(directory / PAGE)
    options.require_room_to_import()
    from depthscope.api.prune import export_chosen, prune, require_place
    from depthscope.progress import progress_bar

    loaded = request.load()
    # A card is read elsewhere: the directory's name is enough.
    line = shlex.join(["depthscope", *(directory.name if one == request.out else one for one in sys.argv[1:])])
    where = shown_place(directory if request.out is None else request.out)
    try:
        if not no_export:
            require_place(loaded, directory)
        study = prune(loaded, text, out=directory, export=False, **request.settings)
        page = study.report()
        _print_outcome(study)
        console.print(f"tables {printable(study.path / 'tables')}", soft_wrap=True)
        console.print(f"page   {printable(page)}", soft_wrap=True)
        if not no_export:
            with progress_bar() as tell:
                written = export_chosen(loaded, study, command=line, tell=tell)
            console.print(f"model  {printable(written)}", soft_wrap=True)
    except KeyboardInterrupt as stop:
        errors_console.print(f"stopped; the same command resumes it ({where})", soft_wrap=True)
        raise typer.Exit(status_of(stop)) from None


def _print_outcome(study: "Study") -> None:
    from depthscope.report.sections.prune import outcome_of, rows, sentences

    shown = Table(header_style="bold", box=None, pad_edge=False)
    for place, title in enumerate(("criterion", "removed", "KL, search", "KL, held-out", "above chosen")):
        shown.add_column(title, justify="left" if place < 2 else "right", no_wrap=place > 1)
    for name, removed, searched, held_out, _agreement, _perplexity, above in rows(study.table("prune_methods")):
        shown.add_row(*map(printable, (name, removed, searched, held_out, above)))
    console.print(
        "\nvalues are mean ± half-width of the 95% interval over documents; KL in nats, above chosen: minus the KL of the "
        "chosen set on held-out documents, paired\n"
    )
    console.print(shown)
    console.print()
    for sentence in sentences(study.run):
        console.print(printable(sentence))
    for what, why in (outcome_of(study.run).not_found | study.run.manifest.not_done).items():
        console.print(f"not done: {printable(what)}, because {printable(why)}")
    console.print()

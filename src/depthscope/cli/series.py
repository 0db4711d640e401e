"""Several studies with one command: `depthscope study --recipe` and `depthscope study MODEL --revisions`."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from depthscope.cli import options
from depthscope.cli.console import console, errors_console
from depthscope.cli.groups import changed
from depthscope.cli.request import Request, say_kept, slug
from depthscope.cli.signals import status_of
from depthscope.errors import DepthscopeError
from depthscope.printable import printable

if TYPE_CHECKING:
    from depthscope.studies.planned import Planned

Revisions = Annotated[
    str | None,
    typer.Option(
        help="Study these checkpoints of a training run: revisions of a Hugging Face model, separated by commas, or folders in "
        "the folder MODEL (all: every one). The page shows depth × training.",
        show_default=False,
    ),
]
Recipe = Annotated[
    Path | None,
    typer.Option(
        help="Study each model of this TOML file on each of its texts, instead of MODEL; with more in the file, only what is "
        "new is done.",
        show_default=False,
    ),
]


def several(request: Request, *, revisions: Revisions = None, recipe: Recipe = None) -> bool:
    """Do the studies of a recipe or of checkpoints, if one was requested; returns whether it was."""
    if recipe is None and revisions is None:
        return False
    if recipe is not None:
        _check_recipe_alone(request, revisions)
        options.check_path("--recipe", recipe)
        from depthscope.studies.recipe import read_recipe

        planned = read_recipe(recipe)
        name = slug(recipe.stem)
    else:
        request.check()
        if request.loading.revision is not None:
            raise DepthscopeError("--revision names one revision, --revisions several: expected one of the two")
        from depthscope.studies.checkpoints import revision_studies

        loading = {key: value for key, value in changed(request.loading).items() if key != "revision"}
        names = [name.strip() for name in (revisions or "").split(",") if name.strip()]
        planned = revision_studies(request.model, names, request.text(), loading, request.settings)
        name = slug(f"{request.model}-{request.data}-training")
    request.placement.check()
    out = request.place(name)
    from depthscope.run.mirror import destination
    from depthscope.run.remote import shown_place

    with destination(out) as directory:
        failed = _run(planned, directory, shown_place(out), asdict(request.placement))
    say_kept(out)
    if failed:
        first, why = next(iter(failed.items()))
        raise DepthscopeError(
            f"{len(failed)} of {len(planned)} studies could not be done; the same command tries them again. {first}: {why}"
        )
    return True


def _check_recipe_alone(request: Request, revisions: str | None) -> None:
    """Raise DepthscopeError for options that a recipe states itself."""
    usual = Request(settings={})
    given = {
        **({"revisions": revisions} if revisions else {}),
        **({"MODEL": request.model} if request.model != usual.model else {}),
        **({"data": request.data} if request.data != usual.data else {}),
        **({"tokens": request.tokens} if request.tokens else {}),
        **changed(request.sampling),
        **changed(request.loading),
        **_changed_settings(request.settings),
    }
    if given:
        raise DepthscopeError(
            f"--recipe states what is studied and how: move {', '.join(given)} into the file. Only --out, --engine and its "
            "options can be given too"
        )
    if request.out is not None:
        options.check_place("--out", request.out)


def _changed_settings(settings: dict[str, Any]) -> dict[str, Any]:
    from depthscope.studies.settings import study_options

    known = study_options()

    def usual(name: str) -> Any:
        default = known[name].default
        return ",".join(default) if isinstance(default, tuple) else default

    return {name: value for name, value in settings.items() if value != usual(name)}


def _run(planned: "list[Planned]", out: Path, where: str, placement: dict[str, Any]) -> dict[str, str]:
    """Do the studies in a directory, which is at `where` to the user; returns why some could not be done, by name."""
    from depthscope.report.page_file import require_replaceable
    from depthscope.run.series import PAGE, SeriesDirectory

    SeriesDirectory.check_place(out)
    require_replaceable(out / PAGE)
    options.require_room_to_import()
    from depthscope.api.series import run_planned
    from depthscope.run.cluster import cluster_of

    options.silence_advice()
    console.print(f"{len(planned)} {'study' if len(planned) == 1 else 'studies'}, into {where}")
    try:
        series = run_planned(planned, out, report=_say, cluster=cluster_of(**placement))
    except KeyboardInterrupt as stop:
        errors_console.print(f"stopped; the same command resumes it ({where})", soft_wrap=True)
        raise typer.Exit(status_of(stop)) from None
    console.print(f"page   {printable(series.path / PAGE)}", soft_wrap=True)
    return series.failed


def _say(study: "Planned", state: str, why: str) -> None:
    console.print(
        f"{printable(study.name)}: {state}{printable(f': {why}') if why else ''}", markup=False, soft_wrap=True
    )

"""`depthscope report`."""

from pathlib import Path
from typing import Annotated

import typer

from depthscope.cli import options
from depthscope.cli.console import console
from depthscope.errors import DepthscopeError
from depthscope.printable import printable

Runs = Annotated[
    list[str],
    typer.Argument(metavar="RUN ...", help="A run directory or its URL, several to compare, or that of a series."),
]
Page = Annotated[
    Path | None,
    typer.Option(help="Where to write the page.", show_default="RUN/report.html; of several runs comparison.html"),
]
Figures = Annotated[
    Path | None,
    typer.Option(help="Also write every figure into this directory, as SVG, PDF and PNG (needs matplotlib)."),
]
Reference = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Also show reference models that ship with depthscope, over relative depth: all, or some of their names, "
        "separated by commas (an unknown name lists them).",
    ),
]


def command(runs: Runs, out: Page = None, figures: Figures = None, reference: Reference = None) -> None:
    """Write the page of a run, or one page that compares several: one HTML file that opens offline. Needs no torch."""
    for option, path in (("--out", out), ("--figures", figures)):
        if path is not None:
            options.check_path(option, path)
    paths = [options.run_path("RUN", run) for run in runs]
    from depthscope.run.series import is_series

    if len(paths) == 1 and is_series(paths[0]):
        if figures or reference:
            option = "--figures" if figures else "--reference"
            raise DepthscopeError(
                f"{option} is for runs, and {paths[0]} is a series of them: name runs in {paths[0] / 'runs'}"
            )
        write_series(paths[0], out)
    elif len(paths) == 1:
        write_one(paths[0], out, figures, reference)
    else:
        write_several(paths, out, figures, reference)


def write_one(path: Path, out: Path | None, figures: Path | None, reference: str | None = None) -> None:
    """Write the page of one run, with faint lines of reference models and its figures if requested."""
    from depthscope.report.page import write_page
    from depthscope.run.references import reference_runs
    from depthscope.run.store import RunDirectory

    run = RunDirectory.reading(path)
    say_page(write_page(run, out or path / "report.html", reference_runs(reference) if reference else ()))
    if figures:
        from depthscope.report.publish import publish_run

        say_figures(publish_run(run, figures), figures)


def write_series(path: Path, out: Path | None) -> None:
    """Write the page of a series of studies again."""
    from depthscope.report.series_page import write_series as write
    from depthscope.run.series import SeriesDirectory

    say_page(write(SeriesDirectory.reading(path), out))


def write_several(paths: list[Path], out: Path | None, figures: Path | None, reference: str | None = None) -> None:
    """Write the page that compares runs, and reference models and its figures if requested."""
    from depthscope.report.comparison import write_comparison
    from depthscope.run.references import reference_runs
    from depthscope.run.store import RunDirectory

    runs = [*(RunDirectory.reading(path) for path in paths), *(reference_runs(reference) if reference else ())]
    say_page(write_comparison(runs, out or Path("comparison.html")))
    if figures:
        from depthscope.report.publish import publish_comparison

        say_figures(publish_comparison(runs, figures), figures)


def say_page(page: Path) -> None:
    """Print the page's path."""
    console.print(f"page    {printable(page)}", soft_wrap=True)


def say_figures(files: list[Path], folder: Path) -> None:
    """Print the figures' folder and the number of files."""
    console.print(f"figures {printable(folder)} ({len(files)} files)", soft_wrap=True)

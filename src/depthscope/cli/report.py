"""`depthscope report`."""

from pathlib import Path
from typing import Annotated

import typer

from depthscope.cli.console import console

Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]
Page = Annotated[Path | None, typer.Option(help="Where to write the page.", show_default="RUN/report.html")]


def command(run: Run, out: Page = None) -> None:
    """Write the page of a run: one HTML file that opens offline. Needs no torch."""
    from depthscope.report.page import write_page
    from depthscope.run.store import RunDirectory

    page = write_page(RunDirectory.reading(run), out or run / "report.html")
    console.print(f"page   {page}", highlight=False, soft_wrap=True)

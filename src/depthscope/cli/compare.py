"""`depthscope compare`."""

from pathlib import Path
from typing import Annotated

import typer

from depthscope.cli import options
from depthscope.cli.report import Figures, Reference, write_several

Runs = Annotated[
    list[str],
    typer.Argument(metavar="RUN RUN ...", help="Run directories or their URLs, at least two; one with --reference."),
]
Page = Annotated[Path, typer.Option(help="Where to write the page.")]


def command(
    runs: Runs, out: Page = Path("comparison.html"), figures: Figures = None, reference: Reference = None
) -> None:
    """Compare runs: one page with all models' curves over relative depth, stages and signatures side by side."""
    write_several([options.run_path("RUN", run) for run in runs], out, figures, reference)

"""`depthscope verify`."""

import typer
from rich.table import Table

from depthscope.cli import options
from depthscope.cli.console import console, styled
from depthscope.cli.groups import Loading, grouped
from depthscope.printable import printable


@grouped
def command(
    model: options.ModelName = options.DEFAULT_MODEL,
    *,
    loading: Loading,
) -> None:
    """Check that replaying a model's blocks and head reproduces its logits. Exit status 1 if not."""
    from depthscope.models.verify import verify

    checks = verify(loading.load(model, verify=False))
    shown = Table(box=None, show_header=False, pad_edge=False)
    for check in checks:
        passed = styled("passed", "green") if check.passed else styled("failed", "bold red")
        shown.add_row(passed, printable(check.name), printable(check.detail))
    console.print(shown)
    if not all(check.passed for check in checks):
        raise typer.Exit(1)

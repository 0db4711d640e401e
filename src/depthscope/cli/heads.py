"""`depthscope heads`."""

from depthscope.cli.request import Request, measuring, run_and_show


@measuring
def command(request: Request) -> None:
    """Find heads that merge the parts of words, and previous-token, duplicate-token and induction heads."""
    run_and_show(request, experiments=("heads",))

"""`depthscope attention`."""

from depthscope.cli.request import Request, measuring, run_and_show


@measuring
def command(request: Request) -> None:
    """How much attention falls on the tokens just before, the first token and the token itself, per head and layer."""
    run_and_show(request, experiments=("attention",))

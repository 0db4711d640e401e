"""`depthscope norms`."""

from depthscope.cli.request import Request, measuring, run_and_show


@measuring
def command(request: Request) -> None:
    """How much attention and MLP of every layer add to the residual stream."""
    run_and_show(request, experiments=("norms",))

"""`depthscope probes`."""

from depthscope.cli import options
from depthscope.cli.request import Request, measuring, run_and_show


@measuring
def command(request: Request, *, suffix: options.Suffix = "ing") -> None:
    """Which neurons tell that the next token ends in a suffix: alone and together, compared with random ones."""
    run_and_show(request, experiments=("probes",), suffix=suffix)

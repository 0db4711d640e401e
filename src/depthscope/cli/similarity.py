"""`depthscope similarity`."""

from depthscope.cli.request import Request, measuring, run_and_show


@measuring
def command(request: Request) -> None:
    """How alike layers write under swaps, and how alike the residual streams of two depths are.

    Cosines under every swap of neighbours; block influence; angular distance and linear CKA between depths.
    """
    run_and_show(request, experiments=("similarity", "influence", "geometry"))
